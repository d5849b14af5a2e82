"""The best constant rate and momentum, by a grid over both."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from bilevel.settings import STRICT, Configurable


@dataclass(frozen=True, config=STRICT)
class Grid(Configurable):
    """A whole training at every point of a grid of rates and momenta, the same for all steps; the best is kept.

    What is lowered is the loss that schedules are learned on, of a training of its own draws for all points.

    trials: number of points at most, those of a square of which none is left out.
    """

    trials: Annotated[int, Field(ge=4)] = 36


METHOD = Grid
