"""Grid search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from bilevel.tasks.search_function.base import STRICT, Search

if TYPE_CHECKING:
    from bilevel.search import Found, Params, Space


@dataclass(frozen=True, config=STRICT)
class Grid(Search):
    """See `bilevel.search.grid`.

    places: k on each axis, the `ends` among them, or the `middles` of k equal parts.
    """

    blind = True

    places: Literal["ends", "middles"] = "ends"

    def minimize_each(
        self, objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
    ) -> list[Found]:
        """See `Search`."""
        from bilevel.search import grid

        if self.places == "middles":
            space = _inside(space, grid.places(len(space), trials))
        return grid.minimize_each(objective, space, trials, seeds)

    def affords(self, dimension: int, trials: int) -> bool:
        """Two places an axis are the fewest that make a grid."""
        return dimension < trials.bit_length()


def _inside(space: Space, places: int) -> Space:
    """Without half a part of `places` at either end; of ranges that are not searched by their logarithm."""
    margins = {name: (high - low) / (2 * places) for name, (low, high, _) in space.items()}
    return {name: (low + margins[name], high - margins[name], log) for name, (low, high, log) in space.items()}


METHOD = Grid
