"""One run: the outer loop over hyperparameter updates, its trace, and the files it leaves."""

from __future__ import annotations

import csv
import io
import json
import platform
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.files import replacing
from bilevel.hypergradients import Estimate, Hypergradient
from bilevel.tasks.base import Histogram, Task

SCALARS = ("study", "method", "seed", "status", "metric", "value")
TRACE = ("study", "method", "seed", "step", "metric", "value")
HISTOGRAMS = ("study", "method", "seed", "quantity", "group", "left", "right", "count")
PACKAGES = ("torch", "numpy", "scipy", "pandas", "bilevel")


@dataclass(frozen=True)
class Result:
    """What the outer loop leaves; metrics are (S,) each.

    alive: False for a seed in which a NaN or an infinity appeared.
    trace: item k holds the metrics after k outer steps.
    """

    alive: Tensor
    trace: list[dict[str, Tensor]]
    summary: dict[str, Tensor]
    histograms: list[Histogram]
    cost: Cost
    outer_steps: int


def optimize(task: Task, method: Hypergradient, name: str = "run") -> Result:
    """Alternate inner optimization with hyperparameter updates, `task.outer_steps` times.

    A seed in which a number stops being finite is marked and no longer updated; the others go on.
    """
    state, hyper = task.start()
    outer = task.outer_optimizer()
    alive = torch.ones(hyper.shape[0], dtype=torch.bool)
    cost = Cost()
    trace = [{**task.evaluate(state, hyper), "jvps_total": _constant(alive, 0)}]
    start = time.perf_counter()
    for step in range(task.outer_steps):
        estimate = method(task.problem, task.optimizer, state, hyper, *task.draw(step))
        state, cost = estimate.state, cost + estimate.cost
        alive = alive & _finite(estimate)
        moves = alive.to(hyper.device).unsqueeze(-1)
        hyper = outer.step(hyper, torch.where(moves, estimate.hypergradient, 0.0))
        metrics = {**task.evaluate(state, hyper), "outer_loss": estimate.outer_loss.cpu().double()}
        trace.append({**_blank(metrics, alive), "jvps_total": _constant(alive, cost.jvps)})
        _report(name, step + 1, task.outer_steps, time.perf_counter() - start, alive)
    summary = _blank(task.summarize(state, hyper, trace), alive)
    return Result(alive, trace, summary, task.histograms(hyper), cost, task.outer_steps)


def save(
    result: Result, folder: Path, *, study: str, method: str, seeds: Sequence[int], record: dict[str, Any]
) -> None:
    """Write `scalars.csv`, `trace.csv`, `histograms.csv` and, last, `record.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    status = ["ok" if good else "diverged" for good in result.alive.tolist()]
    summary = {**result.summary, **_cost_scalars(result)}
    scalars = (
        (study, method, seed, status[i], metric, _number(values[i]))
        for i, seed in enumerate(seeds)
        for metric, values in summary.items()
    )
    trace = (
        (study, method, seed, step, metric, _number(values[i]))
        for i, seed in enumerate(seeds)
        for step, metrics in enumerate(result.trace)
        for metric, values in metrics.items()
    )
    histograms = (
        (study, method, *astuple(row)) for row in result.histograms if status[list(seeds).index(row.seed)] == "ok"
    )
    _write_csv(folder / "scalars.csv", SCALARS, scalars)
    _write_csv(folder / "trace.csv", TRACE, trace)
    _write_csv(folder / "histograms.csv", HISTOGRAMS, histograms)
    full = {
        **record,
        "study": study,
        "method": method,
        "seeds": list(seeds),
        "status": dict(zip(map(str, seeds), status, strict=True)),
    }
    with replacing(folder / "record.json") as file:
        file.write((json.dumps(full, indent=2, sort_keys=True) + "\n").encode())


def surroundings(device: torch.device) -> dict[str, Any]:
    """What a result may depend on besides its settings: versions, device, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _finite(estimate: Estimate) -> Tensor:
    parts = (estimate.state.flatten(1), estimate.hypergradient, estimate.outer_loss.unsqueeze(-1))
    return torch.stack([torch.isfinite(part).all(-1) for part in parts]).all(0).cpu()


def _blank(metrics: dict[str, Tensor], alive: Tensor) -> dict[str, Tensor]:
    return {name: torch.where(alive, values, torch.nan) for name, values in metrics.items()}


def _constant(like: Tensor, value: float) -> Tensor:
    return torch.full(like.shape, float(value), dtype=torch.float64)


def _cost_scalars(result: Result) -> dict[str, Tensor]:
    """Counts per outer step; the peak and the bits are those of the largest step."""
    whole = {"peak_states", "bits"}
    counts = {field.name: getattr(result.cost, field.name) for field in fields(Cost) if field.name != "seconds"}
    counts["jvps"] = result.cost.jvps
    return {
        name: _constant(result.alive, count if name in whole else count / result.outer_steps)
        for name, count in counts.items()
    }


def _number(value: Tensor) -> str:
    number = value.item()
    if number != number:
        return ""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _report(name: str, step: int, steps: int, seconds: float, alive: Tensor) -> None:
    diverged = int((~alive).sum())
    note = f", {diverged} of {len(alive)} seeds diverged" if diverged else ""
    left = seconds / step * (steps - step)
    print(
        f"{name}: outer step {step}/{steps}, {seconds:.1f} s, {left:.1f} s left{note}",
        file=sys.stderr,
        flush=True,
    )
