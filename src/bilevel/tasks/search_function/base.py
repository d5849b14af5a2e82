"""Searches without gradients as methods of a task, on points as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from bilevel.settings import STRICT as STRICT
from bilevel.settings import Configurable, SettingsError

if TYPE_CHECKING:  # Optuna takes a second to import, which the arms with gradients should not wait
    from bilevel.search import Found, Params, Space

Objective = Callable[[Tensor], Tensor]
"""Points (S, d) in float64, one a seed -> values (S,), NaN where a trial failed."""


class Search(Configurable, ABC):
    """A search without gradients. It has no settings: how many evaluations it has is the study's to say.

    blind: whether its points are fixed beforehand, whatever is found there.
    """

    blind: ClassVar[bool] = False

    @abstractmethod
    def minimize_each(
        self, objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
    ) -> list[Found]:
        """See `bilevel.search`."""

    def affords(self, dimension: int, trials: int) -> bool:
        """Whether there is such a search in so many dimensions with so few trials."""
        return True


def check_affordable(search: Search, setting: str, dimensions: Sequence[int], trials: int) -> None:
    """SettingsError where the search cannot be made in any of these dimensions, which are the values of `setting`."""
    if not any(search.affords(dimension, trials) for dimension in dimensions):
        raise SettingsError(
            f"{setting}: in {min(dimensions)} dimensions or more a grid has more than {trials} points; expected a "
            "smaller number as well, more evaluations, or another method"
        )


def run(
    search: Search, objective: Objective, dimension: int, bounds: tuple[float, float], trials: int, seeds: Sequence[int]
) -> None:
    """A search for each seed in a cube, side by side: `objective` sees a point of each, and keeps what it wants."""
    names = [f"x{axis:05d}" for axis in range(dimension)]

    def each(params: Sequence[Params]) -> Sequence[float]:
        points = torch.tensor([[point[name] for name in names] for point in params], dtype=torch.float64)
        values: list[float] = objective(points).tolist()
        return values

    search.minimize_each(each, dict.fromkeys(names, (*bounds, False)), trials, seeds)


def best_so_far(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least value after each trial, and the trial that has it, both (N, S), of values (N, S) in which NaN is a failure.

    Infinite as long as all have failed.
    """
    least, places = values.nan_to_num(torch.inf, torch.inf, -torch.inf).cummin(0)
    return least, places
