"""The results as tables, ratios and files."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cases import QUANTITIES, Quantity
from benchmarks.measure import Result

PACKAGES = ("torch", "higher", "torchopt", "jax", "jaxlib", "numpy")
PYTORCH_PEERS = ("torch", "higher", "torchopt")
COLUMNS = (
    "case",
    "quantity",
    "contestant",
    "label",
    "correct",
    "error",
    "seconds",
    "cpu_seconds",
    "memory_mb",
    "note",
    "failure",
)


def machine(threads: int, repeats: int) -> dict[str, Any]:
    """What the figures depend on."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "repeats": repeats,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(folder: Path, results: Sequence[Result], about: dict[str, Any]) -> None:
    """`bench.csv`, one row a result, and `bench.json`, with every single timing and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "bench.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(_row(result) for result in results)
    rows = [_row(result) | {"wall": result.wall, "cpu": result.cpu} for result in results]
    content = about | {"results": rows, "ratios": dict(ratios(results))}
    (folder / "bench.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _row(result: Result) -> dict[str, Any]:
    return {
        "case": result.case,
        "quantity": result.quantity,
        "contestant": result.contestant,
        "label": result.label,
        "correct": result.correct,
        "error": result.error,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "memory_mb": result.memory,
        "note": result.note,
        "failure": result.failure,
    }


def tables(results: Sequence[Result]) -> str:
    """A table a case: quantity by quantity, the fastest first; then the ratios."""
    parts = [_table(case, [result for result in results if result.case == case]) for case in _cases(results)]
    compared = ratios(results)
    width = max((len(name) for name, _ in compared), default=0)
    lines = [f"{name:<{width}} {value:6.2f}" for name, value in compared]
    return "\n\n".join([*parts, "\n".join(["Ratios (below 1: the first is better)", *lines])])


def _table(case: str, results: Sequence[Result]) -> str:
    titles = " ".join(f"{title:>8}" for title in ("error", "wall s", "/bilevel", "cpu s"))
    lines = [case, f"  {'quantity':<12} {'library':<9} {'method':<26} {titles} {'MB':>7}"]
    for quantity in QUANTITIES:
        of_quantity = [result for result in results if result.quantity == quantity]
        own = _fastest(of_quantity, "bilevel")
        for result in sorted(of_quantity, key=lambda result: result.seconds or float("inf")):
            lines.append(f"  {quantity:<12} {result.contestant:<9} {result.label:<26} {_figures(result, own)}")
    return "\n".join(line.rstrip() for line in lines)


def _figures(result: Result, own: Result | None) -> str:
    if result.failure:
        return f"not measured: {result.failure}"
    ratio = _quotient(result, own, _seconds) if own else None
    remark = "" if result.correct else "WRONG"
    figures = [
        _number(result.error, 8, ".1e"),
        _number(result.seconds, 8, ".4f"),
        _number(ratio, 8, ".2f"),
        _number(result.cpu_seconds, 8, ".4f"),
        _number(result.memory, 7, ".0f"),
    ]
    return f"{' '.join(figures)}  {'; '.join(part for part in (remark, result.note) if part)}"


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:>{width}{form}}"


def ratios(results: Sequence[Result]) -> list[tuple[str, float]]:
    """The comparisons that matter, by name; those whose sides were not both measured, and right, are left out."""
    found: list[tuple[str, float | None]] = []
    for case in _cases(results):
        here = [result for result in results if result.case == case]
        for quantity in QUANTITIES:
            found += _against_peers(case, quantity, [result for result in here if result.quantity == quantity])
        found += _among_own(case, here)
    return [(name, value) for name, value in found if value is not None]


def _against_peers(case: str, quantity: Quantity, results: Sequence[Result]) -> list[tuple[str, float | None]]:
    own = _one(results, "bilevel", "unrolled") if quantity == "exact" else _fastest(results, "bilevel")
    if own is None:
        return []
    found = []
    for title, peer in (("PyTorch peer", _fastest(results, *PYTORCH_PEERS)), ("JAX", _fastest(results, "jax"))):
        if peer is not None:
            name = f"{case}, {quantity}, time: bilevel {own.label} / fastest correct {title} ({_name(peer)})"
            found.append((name, _quotient(own, peer, _seconds)))
    return found


def _among_own(case: str, results: Sequence[Result]) -> list[tuple[str, float | None]]:
    steps = [result for result in results if result.quantity == "inner steps"]
    unrolled, aggregated = _one(results, "bilevel", "unrolled"), _one(results, "bilevel", "aggregated")
    segments = _one(results, "jax", "scan, √T rematerialized")
    found = []
    for label in ("checkpointed", "reversible"):
        own = _one(results, "bilevel", label)
        found.append((f"{case}, exact, time: {label} / unrolled", _quotient(own, unrolled, _seconds)))
        found.append((f"{case}, exact, memory: {label} / unrolled", _quotient(own, unrolled, _memory)))
    for label in ("unrolled", "checkpointed", "reversible"):
        own = _one(results, "bilevel", label)
        found.append((f"{case}, exact, memory: {label} / JAX √T rematerialized", _quotient(own, segments, _memory)))
    for own, label in ((aggregated, "aggregated"), (unrolled, "unrolled")):
        for contestant, title in (("bilevel", "inner steps of bilevel"), ("torch", "inner steps in plain PyTorch")):
            name = f"{case}, time: {label} / {title}"
            found.append((name, _quotient(own, _fastest(steps, contestant), _seconds)))
    return found


def _cases(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result.case for result in results))


def _fastest(results: Iterable[Result], *contestants: str) -> Result | None:
    fit = [result for result in results if result.contestant in contestants and result.correct and result.wall]
    return min(fit, key=lambda result: _seconds(result) or float("inf"), default=None)


def _one(results: Iterable[Result], contestant: str, label: str) -> Result | None:
    fit = (result for result in results if (result.contestant, result.label) == (contestant, label) and result.correct)
    return next(fit, None)


def _name(result: Result) -> str:
    return result.contestant if result.contestant == "torch" else f"{result.contestant}, {result.label}"


def _seconds(result: Result) -> float | None:
    return result.seconds


def _memory(result: Result) -> float | None:
    return result.memory


def _quotient(left: Result | None, right: Result | None, of: Callable[[Result], float | None]) -> float | None:
    top, bottom = (None if result is None else of(result) for result in (left, right))
    return None if top is None or not bottom else top / bottom
