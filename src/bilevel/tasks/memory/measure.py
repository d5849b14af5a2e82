"""Seconds and peak memory of one estimate, each in a process of its own where the system allows."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import NamedTuple

import torch

from bilevel import peak_memory
from bilevel.cost import Cost

Estimate = Callable[[int], tuple[Cost, bool]]
"""Runs so many steps and estimates; returns what it cost, and whether the result is finite."""

WARM_UP = 2
ENOUGH, MOST = 0.05, 5  # seconds, repeats
PAGE = 4096  # bytes


class Measurement(NamedTuple):
    """One estimate: what it cost, whether it is finite, its seconds and its peak of memory above that at its start.

    A peak is a page at least, the unit in which the system tells it.
    """

    cost: Cost
    finite: bool
    seconds: float
    peak_bytes: int | None


def measure(estimate: Estimate, steps: int, device: torch.device) -> Measurement:
    """Measure `estimate(steps)`: seconds as the median of a few times, memory as the peak of the first.

    On the CPU of a Linux system in a fork of this process, which begins with none of the memory that earlier estimates
    freed but did not give back; elsewhere in this process and, but for CUDA, without memory.

    Raises RuntimeError where the forked process fails; its traceback is on standard error.
    """
    if device.type == "cpu" and sys.platform == "linux" and torch.get_num_threads() == 1:
        return _in_fork(lambda: _measure(estimate, steps, device))
    return _measure(estimate, steps, device)


def _measure(estimate: Estimate, steps: int, device: torch.device) -> Measurement:
    estimate(WARM_UP)
    before = peak_memory.begin(device)
    begin = time.perf_counter()
    cost, finite = estimate(steps)
    _finish(device)
    seconds = [time.perf_counter() - begin]
    peak = peak_memory.peak(device)
    while sum(seconds) < ENOUGH and len(seconds) < MOST:
        begin = time.perf_counter()
        estimate(steps)
        _finish(device)
        seconds.append(time.perf_counter() - begin)
    grown = None if before is None or peak is None else max(PAGE, peak - before)
    return Measurement(cost, finite, statistics.median(seconds), grown)


def _in_fork(work: Callable[[], Measurement]) -> Measurement:
    """The result of `work`, done in a fork. One thread runs here, so that nothing that it needs is left behind."""
    import_module("torch.fx.experimental.symbolic_shapes")  # autograd's first call does: in every fork, if not here
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(source)
            with os.fdopen(sink, "w") as file:
                found = work()
                json.dump({**found._asdict(), "cost": asdict(found.cost)}, file)
            status = 0
        except BaseException:  # whatever happens, a fork must not go on as if it were this process
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(sink)
    with os.fdopen(source) as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError("the process in which an estimate was measured failed; see its traceback above")
    values = json.loads(data)
    return Measurement(**{**values, "cost": Cost(**values["cost"])})


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
