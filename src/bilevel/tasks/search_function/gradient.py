"""Descent by gradients of the function."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from bilevel.settings import Configurable, Positive
from bilevel.tasks.search_function.base import STRICT


@dataclass(frozen=True, config=STRICT)
class Gradient(Configurable):
    """Adam in the cube, from the first random draw. A point that leaves the cube is moved to its face.

    learning_rate: of Adam, in sides of the cube.
    """

    learning_rate: Positive = 0.1


METHOD = Gradient
