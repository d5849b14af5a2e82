"""How far a pipeline has come, from the files that its jobs write: logs, records, and the configuration.

Nothing is asked of Snakemake, so that it does not matter where jobs run, and nothing is written.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from bilevel.config import Config
from bilevel.files import read_object
from bilevel.plan import aligned
from bilevel.progress import ENDED, FINISHED

SILENT = 600.0
"""Seconds without a line in the log after which nobody knows whether a job is still at work."""

_TAIL = 8192  # bytes of a log that are looked at

_PROGRESS = re.compile(r"^.+?: (?P<step>[a-z ]+ \d+/\d+), [\d.]+ s, (?P<left>[\d.]+) s left(?:, (?P<note>.*))?$")

_Word = Literal["running", "silent", "failed", "waiting", "done"]

WORDS: tuple[_Word, ...] = ("running", "silent", "failed", "waiting", "done")
"""What may be said of a job. silent: begun, but without a line for `SILENT` seconds: it was killed, or takes long."""


class Job(NamedTuple):
    """A run or a teacher, as its files tell.

    step: how far it is, such as `outer step 3/25`. left: seconds to come, by its own estimate. note: its last metric,
    or why it failed. age: seconds since the last line of its log.
    """

    name: str
    study: str
    state: _Word
    step: str = ""
    left: float | None = None
    note: str = ""
    age: float | None = None


def jobs(config: Config, results: Path, now: float | None = None) -> Iterator[Job]:
    """Every teacher and every run that the configuration asks for.

    A run is done if it has a record of the settings that are asked for; whether its code is that of today is for
    Snakemake to say.
    """
    now = time.time() if now is None else now
    for path in sorted({path for run in config.runs() for path in config.teachers_of(run)}):
        spec = json.loads(config.teacher_spec(path.partition("/")[0]))
        digest = read_object(results / "teachers" / f"{path}.json").get("spec", {})
        done = bool(digest) and {key: digest.get(key) for key in spec} == spec
        yield _job(f"teacher {path}", "teachers", results / "logs" / "teachers" / f"{path}.log", now, done)
    for run in config.runs():
        record = read_object(results / "runs" / run.folder / "record.json")
        done = bool(record) and record.get("spec") == json.loads(config.spec(run.study, run.method))
        job = _job(run.folder, run.study, results / "logs" / "runs" / f"{run.folder}.log", now, done)
        diverged = list(record.get("status", {}).values()).count("diverged") if done else 0
        yield job._replace(note=f"{job.note}; {diverged} seeds diverged".lstrip("; ")) if diverged else job


def text(found: list[Job], *, every: bool = False) -> str:
    """Tables in plain text: a line for each study, and one for each job that is at work or has failed, or for `every`
    job."""
    studies = list(dict.fromkeys(job.study for job in found))
    counts = {study: Counter(job.state for job in found if job.study == study) for study in studies}
    total = Counter(job.state for job in found)
    lines = [("study", *WORDS)]
    lines += [(study, *(str(counts[study][word] or "") for word in WORDS)) for study in studies]
    lines.append(("total", *(str(total[word] or "") for word in WORDS)))
    parts = [aligned(lines, (0,))]
    shown = [job for job in found if every or job.state in ("running", "silent", "failed")]
    if shown:
        header = ("run", "state", "step", "left", "last line", "note")
        rows = [
            (job.name, job.state, job.step, _duration(job.left), _duration(job.age, " ago"), job.note) for job in shown
        ]
        parts.append(aligned([header, *rows], (0, 1, 2, -1)))
    return "\n\n".join(parts)


def watch(config: Config, results: Path, *, once: bool, every: bool, pause: float) -> None:
    """Print `text` now, and, unless it is to be `once`, again after each `pause` seconds, until every job is done."""
    while True:
        found = list(jobs(config, results))
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not once else ""
        print(f"{clear}{results}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n\n{text(found, every=every)}\n", flush=True)
        if once or all(job.state == "done" for job in found):
            return
        time.sleep(pause)


def _job(name: str, study: str, log: Path, now: float, done: bool) -> Job:
    lines, written = _tail(log)
    if written is None:
        return Job(name, study, "done" if done else "waiting")
    step, left, note, begin = "", None, "", 0
    for number, line in enumerate(lines):
        if found := _PROGRESS.match(line):
            step, left, note, begin = found["step"], float(found["left"]), found["note"] or "", number + 1
    if done:
        return Job(name, study, "done", step, None, note)
    age = max(0.0, now - written)
    if any(FINISHED.search(line) for line in lines[begin:]):
        return Job(name, study, "waiting", "", None, "was made with other settings", age)
    if any(line.endswith(ENDED) for line in lines[begin:]):
        return Job(name, study, "waiting", step, left, "goes on from its checkpoint", age)
    if reason := _failure(lines[begin:]):
        return Job(name, study, "failed", step, None, reason, age)
    return Job(name, study, "running" if age < SILENT else "silent", step, left, note, age)


def _failure(lines: list[str]) -> str:
    """Why the job that wrote these lines ended; empty if it did not say."""
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return next((line for line in reversed(lines) if re.match(r"[A-Za-z_][\w.]*(:|$)", line)), "a traceback")
    return ""


def _tail(log: Path) -> tuple[list[str], float | None]:
    """The last lines of a log and when it was written; None where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            content = file.read().decode("utf-8", errors="replace")
        return [line for line in content.splitlines() if line.strip()], log.stat().st_mtime
    except OSError:
        return [], None


def _duration(seconds: float | None, after: str = "") -> str:
    if seconds is None:
        return ""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}{after}"
    return f"{seconds:.0f} s{after}"
