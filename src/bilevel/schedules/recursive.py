"""The recursion that schedules share which reverse one step at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from bilevel.schedules.actions import Action, Advance, Discard, Restore, Reverse, Store
from bilevel.schedules.base import Schedule


class Recursive(Schedule):
    """To reverse the steps start, …, stop − 1 from state `start`: store it, advance to a state in between, reverse what
    comes after, restore, reverse what comes before. A subclass says where in between; the last of the steps is reversed
    without being stored.
    """

    def __iter__(self) -> Iterator[Action]:
        """The actions, in order."""
        stored: list[int] = []
        current = 0
        for last in reversed(range(self.steps)):
            if stored and current != stored[-1]:
                current = stored[-1]
                yield Restore(current)
            while current < last:
                if not stored or stored[-1] != current:
                    stored.append(current)
                    yield Store(current)
                following = self._next(current, last, self.snapshots - len(stored) + 1)
                yield Advance(current, following)
                current = following
            yield Reverse(last, last + 1)
            if stored and stored[-1] == last:
                stored.pop()
                yield Discard(last)

    def _next(self, current: int, last: int, snapshots: int) -> int:
        # without room for another state there is nothing to choose
        return last if snapshots == 1 else current + self._split(last + 1 - current, snapshots)

    @abstractmethod
    def _split(self, length: int, snapshots: int) -> int:
        """How far to advance, 1 to length − 1, in order to reverse `length` ≥ 2 steps from a state just stored.

        snapshots: how many states these steps may use, the one just stored included; 2 or more.
        """
