"""What a configuration will take before any of it has started: runs, core-hours, GPU-hours, memory, seeds for claims.

A job's time is taken from the records of earlier runs: of the same settings if there are any, else of the run of the
same task and method whose settings are nearest, scaled by the work that there is to do (`bilevel.work`). Where results
hold no such run, measured times that come with the code are used (`REFERENCE`). Scaled times are right within about a
factor of two, on a machine like the one they were measured on.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bilevel import work
from bilevel.config import Config
from bilevel.files import read_object, replacing
from bilevel.progress import FINISHED
from bilevel.settings import SettingsError
from bilevel.statistics import MOST_SEEDS

REFERENCE = Path("report/reference/seconds.csv")
"""Measured times that come with the code, made by `bilevel plan --save`."""

STARTUP = 0.5
"""Seconds of a core that a job takes besides its run, on the machine of snakemake itself. (Elsewhere it imports torch
first, which takes some seconds more.)"""

_FIXED = 0.1
"""Seconds of a run that do not depend on its size."""


class Measured(NamedTuple):
    """What jobs of one specification took: the median of their seconds, the most memory in MB.

    spec: what `bilevel run` was given. data: name of the data set; empty: none. device: `cpu` or `cuda`.
    """

    spec: dict[str, Any]
    data: str
    seeds: int
    seconds: float
    memory_mb: float
    device: str


class Guess(NamedTuple):
    """What one job will take: seconds and memory in MB, on which device they were measured, and whether with the same
    settings."""

    seconds: float
    memory_mb: float
    device: str
    measured: bool


@dataclass
class Row:
    """One study, or the teachers: jobs in all, and finished; hours and memory of those that are to come.

    unknown: jobs of which nothing is known. scaled: jobs whose time is that of other settings, scaled. on_cpu: jobs for
    a GPU whose time is that of a CPU. longest: hours of the longest job.
    """

    name: str
    runs: int = 0
    done: int = 0
    unknown: int = 0
    scaled: int = 0
    on_cpu: int = 0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    longest: float = 0.0
    memory_mb: float = 0.0

    def add(self, guess: Guess | None, threads: int, device: str) -> None:
        """A job that is to come."""
        if guess is None:
            self.unknown += 1
            return
        hours = (guess.seconds + STARTUP) / 3600
        self.scaled += not guess.measured
        self.on_cpu += guess.device != device
        self.core_hours += hours * threads
        self.gpu_hours += hours if device == "cuda" else 0.0
        self.longest = max(self.longest, hours)
        self.memory_mb = max(self.memory_mb, guess.memory_mb)


class Claim(NamedTuple):
    """A claim without a verdict: seeds it was looked at with, seeds that would decide it (None: nobody would repeat the
    experiment so often), seeds that are planned."""

    id: str
    study: str
    seeds: int
    needed: int | None
    planned: int


class Plan(NamedTuple):
    """Rows of teachers and studies, and claims without a verdict."""

    rows: list[Row]
    claims: list[Claim]


def make(config: Config, results: Path, finished: Collection[Path], reference: Path = REFERENCE) -> Plan:
    """The plan of a configuration.

    finished: folders of the runs that are there and of today. reference: measured times for what `results` has none of.
    """
    device, threads = _device(config.compute.device), config.compute.threads
    estimator = Estimator([*measured(results), *read(reference)], device)
    rows = {name: Row(name) for name in config.studies}

    @cache
    def guess(study: str, method: str, seeds: int) -> Guess | None:
        return estimator.guess(json.loads(config.spec(study, method)), config.studies[study].data or "", seeds)

    for run in config.runs():
        row = rows[run.study]
        row.runs += 1
        if results / "runs" / run.folder in finished:
            row.done += 1
        else:
            row.add(guess(run.study, run.method, len(run.seeds)), threads, device)
    teachers = Row("teachers")
    for path in sorted({path for run in config.runs() for path in config.teachers_of(run)}):
        name = path.partition("/")[0]
        teachers.runs += 1
        if (results / "teachers" / f"{path}.json").exists():
            teachers.done += 1
        else:
            spec = _as_run(json.loads(config.teacher_spec(name)))
            teachers.add(estimator.guess(spec, config.teachers[name].data or "", 1), threads, device)
    claims = list(_claims(config, results / "tables" / "claims.csv"))
    return Plan([*([teachers] if teachers.runs else []), *rows.values()], claims)


class Estimator:
    """Times of jobs from those that were measured; of a CPU where a task was not measured on the device asked for."""

    def __init__(self, known: Iterable[Measured], device: str) -> None:
        by_task: dict[str, list[tuple[Measured, float]]] = defaultdict(list)
        for each in known:
            amount = _work(each.spec, each.data)
            if amount is not None:
                by_task[each.spec["task"]].append((each, amount))
        self._known = {
            task: [pair for pair in found if pair[0].device == device] or found for task, found in by_task.items()
        }

    def guess(self, spec: Mapping[str, Any], data: str, seeds: int) -> Guess | None:
        """What a job of so many seeds will take; None where its task was never measured."""
        known, amount = self._of(spec["task"]), _work(spec, data)
        if not known or amount is None:
            return None
        nearest, units = max(known, key=lambda pair: _nearness(pair[0], pair[1], spec, data, amount, seeds))
        if nearest.seeds == seeds and _same(nearest, spec, data):
            return Guess(nearest.seconds, nearest.memory_mb, nearest.device, True)
        ratio = amount / units * (1.0 if spec["task"] in work.TOGETHER else seeds / nearest.seeds)
        fixed = min(_FIXED, nearest.seconds)
        return Guess(fixed + (nearest.seconds - fixed) * ratio, nearest.memory_mb, nearest.device, False)

    def _of(self, task: str) -> list[tuple[Measured, float]]:
        """Measured jobs of a task, or of those that are like it."""
        return self._known.get(task) or [pair for other in work.alike(task) for pair in self._known.get(other, [])]


def measured(results: Path) -> list[Measured]:
    """What the jobs in a folder of results took; jobs that differ in their seeds alone are put together."""
    jobs: dict[str, list[Measured]] = defaultdict(list)
    for job in _jobs(results):
        key = json.dumps([job.spec, job.data, job.seeds, job.device], sort_keys=True)
        jobs[key].append(job)
    return [
        same[0]._replace(
            seconds=statistics.median(job.seconds for job in same), memory_mb=max(job.memory_mb for job in same)
        )
        for _, same in sorted(jobs.items())
    ]


def read(path: Path) -> list[Measured]:
    """Measured times as `write` left them; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Measured(
                json.loads(row["spec"]),
                row["data"],
                int(row["seeds"]),
                float(row["seconds"]),
                float(row["memory_mb"]),
                row["device"],
            )
            for row in csv.DictReader(file)
        ]


def write(found: Iterable[Measured], path: Path) -> None:
    """A CSV file of measured times, with the columns of `Measured`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Measured._fields)
    for each in found:
        spec = json.dumps(each.spec, sort_keys=True)
        table.writerow([spec, each.data, each.seeds, f"{each.seconds:.3f}", f"{each.memory_mb:.0f}", each.device])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def text(plan: Plan, cores: int) -> str:
    """The plan as plain text, for a machine with so many cores."""
    rows = [row for row in plan.rows if row.runs]
    header = ("study", "runs", "done", "core-hours", "GPU-hours", "memory", "estimate")
    total = _total(rows)
    lines = [header, *(_cells(row) for row in rows), _cells(total)]
    parts = [aligned(lines)]
    if total.runs > total.done:
        wall = max(total.core_hours / cores, total.longest)
        parts.append(f"On {cores} cores: about {_hours(wall)}, of which the longest job takes {_hours(total.longest)}.")
        largest = max(rows, key=lambda row: row.core_hours)
        if largest.core_hours > total.core_hours / 2 and len(rows) > 1:
            rest = _total([row for row in rows if row is not largest])
            parts[-1] += f"\nWithout {largest.name}: about {_hours(max(rest.core_hours / cores, rest.longest))}."
    if total.scaled:
        parts.append(
            "scaled: from runs of other settings or on other data, by the work there is to do; right within about a "
            "factor of two.\nMemory is then that of the runs it was scaled from."
        )
    if total.on_cpu:
        parts.append(f"{total.on_cpu} jobs for a GPU were measured on a CPU only: their hours are an upper bound.")
    if total.unknown:
        parts.append(f"{total.unknown} jobs are in no sum: their task was never run; one seed of it would tell.")
    parts.append(_claims_text(plan.claims))
    return "\n\n".join(parts)


def aligned(lines: Sequence[tuple[str, ...]], left: Collection[int] = (0, -1)) -> str:
    """Cells in columns: those with numbers `left` to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    to_left = {column % len(widths) for column in left}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _jobs(results: Path) -> Iterator[Measured]:
    for path in sorted((results / "runs").glob("*/*/*/record.json")):
        record = read_object(path)
        if not record:  # broken: Snakemake makes it again
            continue
        yield Measured(
            record["spec"],
            next(iter(record["data"]), ""),
            len(record["seeds"]),
            record["seconds"],
            record["peak_memory_mb"],
            record["device"].split()[0],
        )
    for path in sorted((results / "teachers").glob("*/*.json")):
        spec = read_object(path).get("spec")
        if not spec:
            continue
        log = results / "logs" / path.relative_to(results).with_suffix(".log")
        seconds = FINISHED.findall(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
        if seconds:
            device = "cuda" if spec["device"] == "cuda" else "cpu"
            yield Measured(_as_run(spec), next(iter(spec["data"]), ""), 1, float(seconds[-1]), 0.0, device)


def _as_run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a teacher in the form of that of a run."""
    return {
        "task": f"teacher {spec['teacher']}",
        "settings": spec["settings"],
        "method": "",
        "method_settings": {},
        "threads": spec["threads"],
    }


def _work(spec: Mapping[str, Any], data: str) -> float | None:
    """Work of one seed, times the number of trials of a search; None for settings that are none of today's."""
    from bilevel import data as data_sets
    from bilevel.tasks import task_class
    from bilevel.teachers import teacher_class

    teacher, _, kind = spec["task"].partition(" ")
    try:
        counts = data_sets.counts(data) if data else {}
        cls = teacher_class(kind) if kind else task_class(teacher)
        settings = cls.read_settings(spec["settings"])
    except (SettingsError, KeyError):
        return None
    amount = work.of_teacher(kind, settings, counts) if kind else work.of_task(teacher, settings, counts)
    return max(1.0, amount) * float(spec["method_settings"].get("trials", 1))


def _same(known: Measured, spec: Mapping[str, Any], data: str) -> bool:
    keys = ("task", "settings", "method", "method_settings", "threads")
    return known.data == data and all(known.spec.get(key) == spec.get(key) for key in keys)


def _nearness(
    known: Measured, units: float, spec: Mapping[str, Any], data: str, amount: float, seeds: int
) -> tuple[Any, ...]:
    """The larger, the better a known job stands for another: first its method, then what was chosen, then its size."""
    mine, other = _choices(spec), _choices(known.spec)
    return (
        _same(known, spec, data),
        known.spec["method"] == spec["method"],
        -sum(mine.get(key) != other.get(key) for key in mine | other),
        -abs(math.log(units * known.seeds / (amount * seeds))),
        known.data == data,
    )


def _choices(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are no sizes: all of the task but whole numbers and lists, and all of the method."""
    chosen = {
        key: value
        for key, value in spec["settings"].items()
        if isinstance(value, bool) or not isinstance(value, int | list)
    }
    return chosen | {f"method.{key}": value for key, value in spec["method_settings"].items()}


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _claims(config: Config, path: Path) -> Iterator[Claim]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["verdict"] == "undecided" and row["study"] in config.studies:
                needed = int(float(row["seeds_to_decide"])) if row["seeds_to_decide"] else None
                planned = len(config.studies[row["study"]].seed_list)
                yield Claim(row["id"], row["study"], int(float(row["n"] or 0)), needed, planned)


def _total(rows: list[Row]) -> Row:
    total = Row("total")
    for row in rows:
        for name in ("runs", "done", "unknown", "scaled", "on_cpu", "core_hours", "gpu_hours"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.longest = max(total.longest, row.longest)
        total.memory_mb = max(total.memory_mb, row.memory_mb)
    return total


def _cells(row: Row) -> tuple[str, ...]:
    left = row.runs - row.done
    basis = [
        *([f"{row.unknown} unknown"] if row.unknown else []),
        *([f"{row.scaled} scaled"] if row.scaled else []),
    ]
    measured_jobs = left - row.unknown - row.scaled
    if left and measured_jobs:
        basis.insert(0, f"{measured_jobs} measured")
    known = left > row.unknown
    return (
        row.name,
        str(row.runs),
        str(row.done),
        _figure(row.core_hours) if known else "",
        _figure(row.gpu_hours) if row.gpu_hours else "",
        f"{row.memory_mb / 1000:.1f} GB" if row.memory_mb else "",
        ", ".join(basis) if left else "done",
    )


def _figure(hours: float) -> str:
    return f"{hours:.2f}" if hours < 100 else f"{hours:,.0f}"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    if hours < 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"


def _claims_text(claims: list[Claim]) -> str:
    if not claims:
        return "No claim is waiting for more seeds, or there are no verdicts yet (results/tables/claims.csv)."
    header = ("claim without a verdict", "study", "seeds", "needed", "planned", "")
    lines = [
        (
            claim.id,
            claim.study,
            str(claim.seeds),
            f"more than {MOST_SEEDS}" if claim.needed is None else str(claim.needed),
            str(claim.planned),
            "enough" if _is_enough(claim) else "too few",
        )
        for claim in claims
    ]
    return (
        f"Seeds that would decide at 80 % power, from effect and spread so far: {sum(map(_is_enough, claims))} of "
        f"{len(claims)} claims will have enough.\n{aligned([header, *lines], (0, 1, -1))}"
    )


def _is_enough(claim: Claim) -> bool:
    return claim.needed is not None and claim.planned >= claim.needed
