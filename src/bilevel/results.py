"""What a run leaves: its result, and the files that hold it."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel.checkpoint import State
from bilevel.columns import COLUMNS, TableName
from bilevel.files import write_together

PACKAGES = ("torch", "numpy", "scipy", "pandas", "bilevel")

Metrics = Mapping[str, Tensor]
"""Name of a metric -> its values, (S,)."""


@dataclass(frozen=True)
class Histogram:
    """Counts of `quantity` among `group` in [left, right), for one seed."""

    seed: int
    quantity: str
    group: str
    left: float
    right: float
    count: int


@dataclass(frozen=True)
class Point:
    """`quantity` at (x, y), for one seed: a sample of a data set, or a function on a grid."""

    seed: int
    quantity: str
    x: float
    y: float
    value: float


@dataclass(frozen=True)
class Structure:
    """An operation of an edge of one domain's cell, for one seed: its weight p_ijk s_ij after the search (see
    `bilevel.architecture.Space`), and whether the discrete cell has it, 1 or 0."""

    seed: int
    domain: str
    source: int
    target: int
    operation: str
    weight: float
    chosen: int


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    alive: False for a seed in which a NaN or an infinity appeared, (S,).
    trace: metrics by step; what a step is, the task says (outer updates done, inner steps, …).
    summary: metrics of the run as a whole.
    histograms, points, structures: what figures need besides, of the seeds that the task chooses.
    measurements: what differs from one execution to the next (seconds, memory), by step, `WHOLE_RUN` for the run's own;
        kept apart from the tables that are the same every time.
    """

    alive: Tensor
    trace: Mapping[int, Metrics]
    summary: Metrics
    histograms: Sequence[Histogram] = ()
    measurements: Mapping[int, Metrics] = field(default_factory=dict)
    points: Sequence[Point] = ()
    structures: Sequence[Structure] = ()

    def state(self) -> State:
        """What `restored` takes, for a checkpoint."""
        rows = {name: [astuple(row) for row in getattr(self, name)] for name in _ROWS}
        return {**{name: getattr(self, name) for name in ("alive", "trace", "summary", "measurements")}, **rows}

    @classmethod
    def restored(cls, state: State) -> Result:
        """The result with this state."""
        return cls(**{**state, **{name: [kind(*row) for row in state[name]] for name, kind in _ROWS.items()}})


_ROWS = {"histograms": Histogram, "points": Point, "structures": Structure}


def joined(results: Sequence[Result]) -> Result:
    """Results of several runs, whose seeds follow one another, as that of one run of all these seeds.

    What one of them has no number for, such as the steps after a seed diverged, is NaN, as it would be in a run of all.
    """
    return Result(
        alive=torch.cat([result.alive for result in results]),
        trace=_joined_steps([result.trace for result in results], results),
        summary=_joined_metrics([result.summary for result in results], results),
        histograms=[row for result in results for row in result.histograms],
        measurements=_joined_steps([result.measurements for result in results], results),
        points=[row for result in results for row in result.points],
        structures=[row for result in results for row in result.structures],
    )


def _joined_steps(parts: Sequence[Mapping[int, Metrics]], results: Sequence[Result]) -> dict[int, Metrics]:
    steps = dict.fromkeys(step for part in parts for step in part)
    return {step: _joined_metrics([part.get(step, {}) for part in parts], results) for step in steps}


def _joined_metrics(parts: Sequence[Metrics], results: Sequence[Result]) -> Metrics:
    missing = [torch.full(result.alive.shape, torch.nan, dtype=torch.float64) for result in results]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: torch.cat([part.get(name, none) for part, none in zip(parts, missing, strict=True)]) for name in names
    }


def save(
    result: Result, folder: Path, *, study: str, method: str, seeds: Sequence[int], record: dict[str, Any]
) -> None:
    """Write a file for each of `COLUMNS` and `record.json`: either all of them appear, `record.json` last, or none."""
    status = ["ok" if good else "diverged" for good in result.alive.tolist()]
    scalars = (
        (study, method, seed, status[i], metric, _number(values[i]))
        for i, seed in enumerate(seeds)
        for metric, values in result.summary.items()
    )
    good = {seed for seed, state in zip(seeds, status, strict=True) if state == "ok"}
    histograms = ((study, method, *astuple(row)) for row in result.histograms if row.seed in good)
    points = (
        (study, method, row.seed, row.quantity, repr(row.x), repr(row.y), repr(row.value))
        for row in result.points
        if row.seed in good
    )
    structures = ((study, method, *astuple(row)) for row in result.structures if row.seed in good)
    rows: dict[TableName, Iterable[Sequence[Any]]] = {
        "scalars": scalars,
        "trace": _by_step(study, method, seeds, result.trace),
        "histograms": histograms,
        "points": points,
        "structures": structures,
        "measurements": _by_step(study, method, seeds, result.measurements),
    }
    full = {
        **record,
        "study": study,
        "method": method,
        "seeds": list(seeds),
        "status": dict(zip(map(str, seeds), status, strict=True)),
    }
    contents = {"record.json": json.dumps(full, indent=2, sort_keys=True) + "\n"}
    contents |= {f"{name}.csv": _csv_text(COLUMNS[name], part) for name, part in rows.items()}
    write_together(folder, contents)


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


def _by_step(
    study: str, method: str, seeds: Sequence[int], steps: Mapping[int, Metrics]
) -> Iterator[tuple[str, str, int, int, str, str]]:
    for i, seed in enumerate(seeds):
        for step, metrics in steps.items():
            for metric, values in metrics.items():
                yield study, method, seed, step, metric, _number(values[i])


def _number(value: Tensor) -> str:
    number = value.item()
    if number != number:
        return ""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _csv_text(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
