"""Progress of long work on standard error."""

from __future__ import annotations

import sys
import time


class Progress:
    """A line about once a second, and at the end: how much is done, seconds so far, seconds left.

    name: of what is under way. unit: what is counted.
    """

    def __init__(self, name: str, unit: str) -> None:
        self._name, self._unit = name, unit
        self._start = self._reported = time.perf_counter()

    def report(self, done: int, total: int, note: str = "", *, ended: bool | None = None) -> None:
        """After `done` of `total`; `ended`: there will be no other, as after the last unless said otherwise."""
        now = time.perf_counter()
        if now - self._reported < 1 and not (done == total if ended is None else ended):
            return
        self._reported = now
        seconds = now - self._start
        left = seconds / done * (total - done)
        print(
            f"{self._name}: {self._unit} {done}/{total}, {seconds:.1f} s, {left:.1f} s left{note}",
            file=sys.stderr,
            flush=True,
        )
