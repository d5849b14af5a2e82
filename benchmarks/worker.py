"""A process for one library: it answers requests over a pipe, so that several can be measured in turns."""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases import Array, Case, Data, Quantity
from benchmarks.contestants import Entry, Run

GIVE_BACK = 2**30  # bytes kept from one turn to the next; the largest runs of all libraries would not fit side by side

# One allocator for all: freed memory is kept, as in a program that computes one hypergradient after another.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26), "MALLOC_MMAP_MAX_": "0"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Listed(NamedTuple):
    """An entry as the other process sees it."""

    label: str
    quantity: Quantity
    note: str
    missing: str


class WorkerError(Exception):
    """What went wrong in a worker, in one line."""


class Worker:
    """The measuring side's handle of a process.

    keep_memory: for timing; where memory is measured, the allocator is left as it is.
    """

    def __init__(self, contestant: str, threads: int, keep_memory: bool) -> None:
        environment = {name: str(threads) for name in THREAD_VARIABLES} | {"JAX_PLATFORMS": "cpu"}
        if keep_memory:
            environment |= KEEP_MEMORY
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, contestant, threads), daemon=True)
        before = dict(os.environ)
        os.environ.update(environment)  # the allocator and OpenMP read theirs when a process starts
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        there.close()

    def open(self, case: Case, data: Data) -> list[Listed]:
        """Make a case the current one; returns what can be asked for."""
        listed: list[Listed] = self._ask("open", case, data)
        return listed

    def run(self, label: str, quantity: Quantity) -> Array:
        """One run: its result."""
        result: Array = self._ask("run", label, quantity)
        return result

    def time(self, label: str, quantity: Quantity) -> tuple[float, float]:
        """One run: wall seconds and CPU seconds of all threads."""
        seconds: tuple[float, float] = self._ask("time", label, quantity)
        return seconds

    def memory(self, label: str, quantity: Quantity) -> float:
        """One run: its peak of resident memory above the start, in MB."""
        peak: float = self._ask("memory", label, quantity)
        return peak

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            failed, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise WorkerError(f"the process ended with exit code {self._process.exitcode}") from None
        if failed:
            raise WorkerError(answer)
        return answer


def _serve(pipe: Connection, contestant: str, threads: int) -> None:
    """The process: answer until the other side closes the pipe."""
    if hasattr(os, "sched_setaffinity"):  # libraries size their pools by it, JAX by nothing else
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    server = _Server(contestant)
    while True:
        try:
            request, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, getattr(server, request)(*arguments))
        except Exception as error:
            answer = (True, traceback.format_exception_only(error)[-1].strip().splitlines()[-1])
        pipe.send(answer)


class _Server:
    """One method for each request; see `Worker`."""

    def __init__(self, contestant: str) -> None:
        self._contestant = contestant
        self._entries: dict[tuple[str, Quantity], Entry] = {}
        self._runs: dict[tuple[str, Quantity], Run] = {}
        self._before = 0
        self._cold = False

    def open(self, case: Case, data: Data) -> list[Listed]:
        self._entries.clear()
        self._runs.clear()
        module = importlib.import_module(f"benchmarks.contestants.{self._contestant}")
        entries = module.contest(case, data)
        give_back()
        self._before = resident("VmRSS")
        self._entries = {(entry.label, entry.quantity): entry for entry in entries}
        return [Listed(entry.label, entry.quantity, entry.note, entry.missing) for entry in entries]

    def run(self, label: str, quantity: Quantity) -> Array:
        result = self._built(label, quantity)()
        self._settle()
        return result

    def time(self, label: str, quantity: Quantity) -> tuple[float, float]:
        run = self._built(label, quantity)
        if self._cold:
            run()
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        self._settle()
        return seconds

    def memory(self, label: str, quantity: Quantity) -> float:
        run = self._built(label, quantity)
        give_back()
        start = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        run()
        return (resident("VmHWM") - start) / 1e6

    def _settle(self) -> None:
        """After a run: make room for the other processes, if it was a large one; the next one is cold then."""
        self._cold = resident("VmRSS") > self._before + GIVE_BACK
        if self._cold:
            give_back()

    def _built(self, label: str, quantity: Quantity) -> Run:
        key = label, quantity
        if key not in self._runs:
            self._runs[key] = self._entries[key].build()
        return self._runs[key]


def resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
