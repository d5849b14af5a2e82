"""Bayesian optimization with a Gaussian process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from bilevel.tasks.search_function.base import STRICT, Search

if TYPE_CHECKING:
    from bilevel.search import Found, Params, Space


@dataclass(frozen=True, config=STRICT)
class GaussianProcess(Search):
    """See `bilevel.search.gaussian_process`. No settings."""

    def minimize_each(
        self, objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
    ) -> list[Found]:
        """See `Search`."""
        from bilevel.search.gaussian_process import minimize_each

        return minimize_each(objective, space, trials, seeds)


METHOD = GaussianProcess
