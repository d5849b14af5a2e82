"""What every schedule offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from bilevel.schedules.actions import Action


class Schedule(ABC):
    """Actions that reverse steps T − 1, …, 0 from state 0, with at most `snapshots` states stored at once.

    The actions are made as they are asked for; iterating again begins anew.

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

    @property
    def together(self) -> int:
        """Most steps that are reversed at once."""
        return 1

    @abstractmethod
    def __iter__(self) -> Iterator[Action]:
        """The actions, in order."""

    @abstractmethod
    def _default_snapshots(self) -> int:
        """The schedule's own choice for `self.steps`."""
