"""Random search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.tasks.search_function.base import STRICT, Search, run

if TYPE_CHECKING:
    from bilevel.search import Found, Params, Space


@dataclass(frozen=True, config=STRICT)
class Random(Search):
    """See `bilevel.search.random`. No settings."""

    blind = True

    def minimize_each(
        self, objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
    ) -> list[Found]:
        """See `Search`."""
        from bilevel.search.random import minimize_each

        return minimize_each(objective, space, trials, seeds)


def first_points(dimension: int, bounds: tuple[float, float], seeds: Sequence[int]) -> Tensor:
    """Where all searches but the grid begin, (S, d): the first random draw."""
    found: list[Tensor] = []

    def objective(points: Tensor) -> Tensor:
        found.append(points)
        return torch.zeros(len(points))

    run(Random(), objective, dimension, bounds, 1, seeds)
    return found[0]


METHOD = Random
