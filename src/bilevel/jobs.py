"""The jobs that compute: some seeds of a run, or a teacher, from what was asked for to the files that are left."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bilevel import peak_memory, preloaded, registry, results, teachers
from bilevel.checkpoint import CheckpointFile
from bilevel.config import MAX_SEED, check_kind
from bilevel.data import Corpus, Dataset, counts
from bilevel.data import load as load_data
from bilevel.errors import UserError
from bilevel.files import not_ahead_of_the_clock
from bilevel.progress import say
from bilevel.settings import OnData, Settings
from bilevel.tasks import create_method, task_class
from bilevel.tasks import run as run_task

_RUN = {"deck", "task", "settings", "method", "method_settings", "device", "threads"}
_TEACHER = {"teacher", "settings", "device", "threads"}

_GRACE = 10
"""Seconds from a signal to end until the process is ended, saved or not."""


@dataclass(frozen=True)
class Files:
    """What a job reads and writes.

    data: made by `bilevel data`; None where the job needs none. teachers: digests, one for each seed or one for all.
    checkpoint: state while the job goes on, saved every so many seconds; None: it is not kept.
    """

    output: Path
    data: Path | None
    teachers: tuple[Path, ...]
    checkpoint: Path | None
    checkpoint_seconds: float

    def dataset(self) -> Dataset | Corpus | None:
        """The data, checked against their digest."""
        return None if self.data is None else load_data(self.data)

    def digests(self) -> dict[str, Any]:
        """Of the data, by name."""
        return {path.stem: json.loads(path.read_text()) for path in self._data_digest()}

    def read(self) -> list[Path]:
        """The files that results must not be older than."""
        tensors = [digest.with_suffix(".safetensors") for digest in self.teachers]
        return [*self._data_digest(), *self.teachers, *tensors]

    def _data_digest(self) -> list[Path]:
        return [] if self.data is None else [self.data.with_suffix(".json")]


def teacher(name: str, seed: int, spec: dict[str, Any], files: Files) -> None:
    """Train the teacher that the configuration calls so.

    Raises: UserError, or an error of settings or files, with what is wrong.
    """
    keep_memory()
    begin = time.perf_counter()
    _check_spec(spec, _TEACHER, [seed])
    device = _prepared_device(spec)
    kind = teachers.teacher_class(spec["teacher"])
    code = registry.teacher_code_hash(spec["teacher"])
    settings, dataset = kind.read_settings(spec["settings"]), files.dataset()
    _check_data(kind, settings, dataset)
    training = kind(name, settings, dataset, device)
    made_of = {**spec, "data": files.digests()}
    checkpoint = _checkpoint(files, device, settings=[name, seed, spec], code=code, data=made_of["data"])
    training.checkpoint = checkpoint.root
    trained = training.train(seed)
    teachers.save(trained, files.output, name=name, seed=seed, spec=made_of)
    not_ahead_of_the_clock(*files.read())
    checkpoint.remove()
    metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in trained.metrics.items())
    say(f"teacher {name}, seed {seed}: {metrics}; {time.perf_counter() - begin:.1f} s")


def run(study: str, row: str, seeds: Sequence[int], spec: dict[str, Any], files: Files) -> None:
    """Run the method of that row of a study for some seeds.

    Raises: UserError, or an error of settings or files, with what is wrong.
    """
    keep_memory()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.perf_counter()
    _check_spec(spec, _RUN | ({"teacher"} if files.teachers else set()), seeds)
    _check_teachers(files, seeds)
    device = _prepared_device(spec)
    task = task_class(spec["task"])
    settings = task.read_settings(spec["settings"])
    method: Any = create_method(spec["task"], spec["method"], spec["method_settings"])
    # taken before the work, so that an edit while a job runs is seen afterwards
    code = registry.run_code_hash(spec["task"], spec["method"])
    dataset = files.dataset()
    _check_data(task, settings, dataset)
    if bool(files.teachers) != (task.teacher_kind is not None):
        raise UserError(f"--teachers: {spec['task']} {'needs some' if task.teacher_kind else 'distills none'}")
    found = [teachers.load(digest) for digest in files.teachers]
    made_of = {
        "data": files.digests(),
        "teachers": {str(digest.seed): digest.sha256 for _, digest in found},
    }
    checkpoint = _checkpoint(files, device, settings=[study, row, spec], code=code, seeds=list(seeds), **made_of)
    result = run_task(
        task,
        method,
        study=study,
        settings=settings,
        dataset=dataset,
        seeds=seeds,
        device=device,
        teachers=[tensors for tensors, _ in (found * len(seeds) if len(found) == 1 else found)],
        name=f"{study} {row}",
        checkpoint=checkpoint.root,
    )
    record = {
        "spec": spec,
        "task": spec["task"],
        "deck": spec["deck"],
        "settings": {
            "task": settings.model_dump(),
            "method": {"method": spec["method"], **dataclasses.asdict(method)},
        },
        "code_hash": code,
        **made_of,
        **results.surroundings(device),
        "seconds": checkpoint.earlier + time.perf_counter() - begin,
        "resumed": checkpoint.resumed,
        "peak_memory_mb": peak_memory.of_process() / 1e6 + preloaded.shared_mb(),
        "started": started,
    }
    results.save(result, files.output, study=study, method=row, seeds=seeds, record=record)
    not_ahead_of_the_clock(*files.read())
    checkpoint.remove()
    say(f"{study} {row}: {int(result.alive.sum())} of {len(seeds)} seeds ok, {record['seconds']:.1f} s")


def _checkpoint(files: Files, device: torch.device, **made_of: Any) -> CheckpointFile:
    """State of a job that is `made_of` these; signals to end are obeyed after a save."""
    surroundings = results.surroundings(device)
    file = CheckpointFile(files.checkpoint, {**made_of, **surroundings}, files.checkpoint_seconds)
    if files.checkpoint is None:
        return file

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(_GRACE)  # which ends the process, should there be no opportunity to save before
        file.end(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return file


def _check_spec(spec: Any, keys: set[str], seeds: Sequence[int]) -> None:
    if not isinstance(spec, dict) or set(spec) != keys:
        raise UserError(f"--spec: expected a JSON object with the keys {', '.join(sorted(keys))}")
    wrong = [key for key in ("settings", "method_settings") if not isinstance(spec.get(key, {}), dict)]
    if wrong:
        raise UserError(f"--spec: {wrong[0]}: expected keys and values, got {spec[wrong[0]]!r}")
    if not isinstance(spec["threads"], int) or spec["threads"] < 1:
        raise UserError(f"--spec: threads must be 1 or more, got {spec['threads']!r}")
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise UserError(f"--seeds: expected different seeds from 0 to {MAX_SEED}, got {seeds}")


def _check_data(kind: type[OnData], settings: Settings, dataset: Dataset | Corpus | None) -> None:
    """UserError where what --data names does not serve."""
    try:
        name = None if dataset is None else dataset.name
        check_kind(name, kind.data_kind)
        kind.check_data(settings, name, {} if name is None else counts(name))
    except UserError as error:
        raise UserError(f"--{error}" if str(error).startswith("data: ") else str(error)) from None


def _check_teachers(files: Files, seeds: Sequence[int]) -> None:
    if len(files.teachers) not in (0, 1, len(seeds)):
        raise UserError(
            f"--teachers: expected one for all seeds or one for each of {len(seeds)}, got {len(files.teachers)}"
        )


def _prepared_device(spec: dict[str, Any]) -> torch.device:
    """The device that `spec` asks for, with torch set up as every computation is."""
    device = _device(spec["device"])
    torch.set_num_threads(spec["threads"])
    # what torch.use_deterministic_algorithms does, which however imports a compiler, for a second and a half
    torch.set_deterministic_debug_mode("error")
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # untyped; nothing reads it
    return device


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"compute.device: expected auto, cpu or cuda, got {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device: cuda was asked for, but torch finds no CUDA device; use cpu or auto")
    return torch.device(name)


def keep_memory() -> None:
    """Have the C library keep freed memory.

    A training step frees and asks for the same megabytes over and over; giving them back to the system each time costs
    up to a fifth of the run. No effect where the C library is not glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(top_pad, 2**26)
        library.mallopt(mmap_max, 0)
    except (OSError, AttributeError):
        return
