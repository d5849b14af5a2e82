"""Progress of long work on standard error."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable

ENDED = "ended by a signal; run again to go on from here"
"""What a process says last whose state was kept when it was told to end."""

FINISHED = re.compile(r"^(?:teacher .*;|.*: \d+ of \d+ seeds ok,) ([\d.]+) s$", re.MULTILINE)
"""What a job says last that has left its results, and the seconds it took."""


class Progress:
    """A line about once a second, and at the end: how much is done, seconds so far, seconds left.

    name: of what is under way. unit: what is counted. first: how much was done before, in an earlier process.
    """

    def __init__(self, name: str, unit: str, first: int = 0) -> None:
        self._name, self._unit, self._first = name, unit, first
        self._start = self._reported = time.perf_counter()

    def report(self, done: int, total: int, note: Callable[[], str] = str, *, ended: bool | None = None) -> None:
        """After `done` of `total`; `ended`: there will be no other, as after the last unless said otherwise."""
        now = time.perf_counter()
        if now - self._reported < 1 and not (done == total if ended is None else ended):
            return
        self._reported = now
        seconds = now - self._start
        left = seconds / max(1, done - self._first) * (total - done)
        say(f"{self._name}: {self._unit} {done}/{total}, {seconds:.1f} s, {left:.1f} s left{note()}")


def say(text: str) -> None:
    """A line on standard error. A log that cannot be written, as on a full disk, ends no run."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
