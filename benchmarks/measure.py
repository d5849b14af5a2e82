"""Measurements: timings of all libraries in turns, memory of each by itself, errors against double precision."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from benchmarks import cases
from benchmarks.cases import Array, Case, Data, Quantity
from benchmarks.reference import Reference
from benchmarks.worker import Listed, Worker, WorkerError, give_back

WRONG = (
    1e-2  # relative error from which a result counts as wrong; rounding to single precision stays below a tenth of it
)


@dataclass
class Result:
    """One way of computing a quantity of a case, measured.

    error: max |g − g₆₄| / max |g₆₄|. wall, cpu: seconds of each run. memory: MB above the start.
    failure: the last line of what went wrong, or why it was not run; then the rest may be missing.
    """

    case: str
    contestant: str
    label: str
    quantity: Quantity
    note: str = ""
    failure: str = ""
    error: float | None = None
    memory: float | None = None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        """Whether it ran and agrees with the reference."""
        return not self.failure and self.error is not None and self.error < WRONG

    @property
    def seconds(self) -> float | None:
        """Median wall time."""
        return statistics.median(self.wall) if self.wall else None

    @property
    def cpu_seconds(self) -> float | None:
        """Median CPU time."""
        return statistics.median(self.cpu) if self.cpu else None


def measure(chosen: Sequence[Case], contestants: Sequence[str], repeats: int, threads: int) -> list[Result]:
    """Everything, case by case; progress goes to standard error."""
    digits, results = cases.mnist(), []
    workers = {name: Worker(name, threads, keep_memory=True) for name in contestants}
    try:
        for case in chosen:
            data = cases.make(case, digits)
            _say(f"{case.name}: reference in double precision")
            reference = Reference(case, data).quantities()
            give_back()
            measured = _timed(case, data, reference, workers, repeats)
            _say(f"{case.name}: memory")
            for name in contestants:
                of_contestant = [result for result in measured if result.contestant == name and not result.failure]
                _add_memory(case, data, of_contestant, name, threads)
            results += measured
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _timed(
    case: Case, data: Data, reference: dict[Quantity, Array], workers: dict[str, Worker], repeats: int
) -> list[Result]:
    _say(f"{case.name}: first runs, which warm up and show whether results are right")
    results = [result for name, worker in workers.items() for result in _opened(case, data, name, worker)]
    for result in results:
        _attempt(result, lambda result=result: _check(result, workers[result.contestant], reference))  # type: ignore[misc]
    for turn in range(repeats):
        _say(f"{case.name}: round {turn + 1} of {repeats}")
        # each round starts elsewhere, so that nobody always runs after the same neighbor
        start = turn * len(results) // repeats
        for result in results[start:] + results[:start]:
            _attempt(result, lambda result=result: _time(result, workers[result.contestant]))  # type: ignore[misc]
    return results


def _opened(case: Case, data: Data, name: str, worker: Worker) -> list[Result]:
    try:
        listed: list[Listed] = worker.open(case, data)
    except WorkerError as failure:
        return [Result(case.name, name, "", "exact", failure=str(failure))]
    return [Result(case.name, name, entry.label, entry.quantity, entry.note, entry.missing) for entry in listed]


def _check(result: Result, worker: Worker, reference: dict[Quantity, Array]) -> None:
    """The first run, which also warms up."""
    expected = reference[result.quantity]
    found = worker.run(result.label, result.quantity)
    result.error = float(np.abs(found - expected).max() / np.abs(expected).max())


def _time(result: Result, worker: Worker) -> None:
    wall, cpu = worker.time(result.label, result.quantity)
    result.wall.append(wall)
    result.cpu.append(cpu)


def _add_memory(case: Case, data: Data, results: list[Result], name: str, threads: int) -> None:
    """In a fresh process, the least demanding quantities first, so that what they leave behind is little."""
    with closing(Worker(name, threads, keep_memory=False)) as worker:
        short = case.shortened(2)
        try:
            # two steps of everything load what libraries load at first use
            _ = worker.open(short, Data(data.params, data.hyper, data.images[:2], data.labels[:2], *_outer(data)))
            for result in results:
                worker.run(result.label, result.quantity)
            worker.open(case, data)
        except WorkerError as failure:
            _say(f"{case.name}: memory of {name}: {failure}")
            return
        for result in sorted(results, key=lambda result: result.quantity == "exact"):
            _attempt(result, lambda result=result: _weigh(result, worker))  # type: ignore[misc]


def _outer(data: Data) -> tuple[Array, Array]:
    return data.outer_images, data.outer_labels


def _weigh(result: Result, worker: Worker) -> None:
    result.memory = worker.memory(result.label, result.quantity)


def _attempt(result: Result, action: Callable[[], None]) -> None:
    """A library that fails is noted and left out from then on; the others go on."""
    if result.failure:
        return
    try:
        action()
    except WorkerError as failure:
        result.failure = str(failure)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
