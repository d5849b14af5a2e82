"""What a schedule asks for. State t is the state before step t; one state, the current one, is at hand at all times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advance:
    """Run steps start, …, stop − 1 and keep nothing: state `start`, the current one, becomes state `stop`."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Store:
    """Keep a copy of the current state, which is state `step`."""

    step: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Make the stored state `step` the current one; it stays stored."""

    step: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget the stored state `step`."""

    step: int


@dataclass(frozen=True, slots=True)
class Reverse:
    """Reverse steps stop − 1, …, start from state `start`, which is the current one and stays so.

    More than one of them at once: their states, computed on the way forward, are kept until all are reversed.
    """

    start: int
    stop: int


Action = Advance | Store | Restore | Discard | Reverse
