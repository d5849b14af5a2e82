"""What every schedule offers, and the recursion that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from bilevel.schedules.actions import Action, Advance, Discard, Restore, Reverse, Store


class Schedule(ABC):
    """Actions that reverse steps T − 1, …, 0 from state 0, with at most `snapshots` states stored at once.

    To reverse the steps start, …, stop − 1 from state `start`: store it, advance to a state in between, reverse what
    comes after, restore, reverse what comes before. A subclass says where in between; the last of the steps is reversed
    without being stored. The actions are made as they are asked for; iterating again begins anew.

    steps: T, 0 or more.
    snapshots: limit on the states stored at once, state 0 included; None for the schedule's own choice. Afterwards the
        attribute is the limit in force, which is never more than T − 1.

    Raises ValueError for negative `steps` and for `snapshots` below 1.
    """

    def __init__(self, steps: int, snapshots: int | None = None) -> None:
        if steps < 0:
            raise ValueError(f"steps: expected 0 or more, got {steps}")
        if snapshots is not None and snapshots < 1:
            raise ValueError(f"snapshots: expected 1 or more, got {snapshots}; one holds the state at the start")
        self.steps = steps
        limit = self._default_snapshots() if snapshots is None else snapshots
        self.snapshots = max(0, min(limit, steps - 1))

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
            yield Reverse(last)
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

    @abstractmethod
    def _default_snapshots(self) -> int:
        """The schedule's own choice for `self.steps`."""
