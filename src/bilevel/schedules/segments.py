"""Segments of equal length, reversed one after another from all of their states."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from bilevel.schedules.actions import Action, Advance, Discard, Restore, Reverse, Store
from bilevel.schedules.base import Schedule


class Segments(Schedule):
    """Cuts the steps into segments of k = ⌈T / (snapshots + 1)⌉, stores the state before each but the last, and
    reverses them one by one, last to first, each from the states of its k steps.

    No step is advanced more than once, and each runs once more on the way to be reversed: the least time with less
    memory than T states. Without a limit: about √T snapshots, so that k is about √T as well.

    Source: Chen et al. 2016 (√T segments).
    """

    @property
    def together(self) -> int:
        """k."""
        return -(-self.steps // (self.snapshots + 1))

    def __iter__(self) -> Iterator[Action]:
        """The actions, in order."""
        length = self.together
        starts = list(range(0, self.steps, length)) if length else []
        for start in starts[:-1]:
            yield Store(start)
            yield Advance(start, start + length)
        for start in reversed(starts):
            stored = start != starts[-1]
            if stored:
                yield Restore(start)
            yield Reverse(start, min(start + length, self.steps))
            if stored:
                yield Discard(start)

    def _default_snapshots(self) -> int:
        return max(1, isqrt(max(self.steps - 1, 0)))
