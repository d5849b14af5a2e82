"""Every task, interrupted after saves of its checkpoint and begun again, ends with the bytes of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from made_images import blobs
from test_runs import Watched

from bilevel import config
from bilevel.checkpoint import NOWHERE, Checkpoint, CheckpointFile
from bilevel.columns import COLUMNS
from bilevel.data import Corpus, Dataset, Parallel
from bilevel.registry import method_names, task_names, teacher_names
from bilevel.results import Result, save
from bilevel.runs import greedy, honest
from bilevel.settings import Settings
from bilevel.tasks import Task, create_method, run, task_class
from bilevel.teachers import Trained, teacher_class
from bilevel.trajectory import LocallyLinear

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SEARCHES = ("grid", "random", "sobol", "tpe", "gaussian_process", "tuned")
ELSEWHERE = {"complexity_control_published": "complexity_control"}
"""Tasks of the full preset alone, and where their small settings are."""


class StoppedError(Exception):
    """As if the process had been killed right after a save."""


class Case(NamedTuple):
    """A row of the smoke preset."""

    study: str
    row: str

    def __str__(self) -> str:
        return f"{self.study}-{self.row}"


@cache
def smoke() -> config.Config:
    values = config.layered([ROOT / "config.yaml", ROOT / "workflow/presets/smoke.yaml"])
    for task, other in ELSEWHERE.items():
        study = next(study for study in values["studies"].values() if study["task"] == other)
        values["studies"][task] = {**study, "task": task}
    return config.read(values)


def kind(entry: config.Method) -> tuple[str, bool]:
    """What decides the course of a run."""
    course = "search" if entry.method in SEARCHES else "none" if entry.method == "none" else "gradient"
    return course, "prediction" in entry.task


def cases() -> Iterator[Case]:
    """The first row of each kind of each task."""
    seen = set()
    for name, study in smoke().studies.items():
        for row, entry in study.methods.items():
            key = (study.task, *kind(entry), entry.task.get("hypernetwork"))
            if key not in seen:
                seen.add(key)
                yield Case(name, row)


CASES = list(cases())


@cache
def images() -> Dataset:
    return Dataset("made", {"all": blobs(1400, random_labels=True)})


@cache
def text() -> Corpus:
    draws, words = torch.Generator().manual_seed(0), ("light", "door", "window", "is", "was", "open", "closed", "warm")
    lines = [
        tuple(
            f"{prefix} " + " ".join(words[place] for place in torch.randint(len(words), (4,), generator=draws).tolist())
            for _ in range(450)
        )
        for prefix in ("the", "das")
    ]
    return Corpus("made", {"all": Parallel(*lines)})


def dataset(task: Any, name: str | None) -> Dataset | Corpus | None:
    if name is None:
        return None
    return images() if task.data_kind == "images" else text()


@cache
def teacher(name: str, seed: int) -> Trained:
    chosen = smoke().teachers[name]
    made = teacher_class(chosen.teacher)
    settings = made.read_settings(chosen.settings)
    return made(name, settings, images() if chosen.data else None, CPU).train(seed)


def perform(
    case: Case, checkpoint: Checkpoint = NOWHERE, seeds: list[int] | None = None, device: torch.device = CPU
) -> Result:
    study = smoke().studies[case.study]
    seeds = seeds or study.jobs()[0]
    entry, task = study.methods[case.row], task_class(study.task)
    taught = [path.split("/") for path in smoke().teachers_of(config.Run(case.study, case.row, seeds))]
    tensors = [teacher(name, int(seed)).tensors for name, seed in taught]
    return run(
        task,
        create_method(study.task, entry.method, entry.settings),
        study=case.study,
        settings=task.read_settings({**study.settings, **entry.task}),
        dataset=dataset(task, study.data),
        seeds=seeds,
        device=device,
        teachers=tensors * len(seeds) if len(tensors) == 1 else tensors,
        checkpoint=checkpoint,
    )


def attempt(
    case: Case, path: Path, saves: int, monkeypatch: pytest.MonkeyPatch, device: torch.device = CPU
) -> Result | None:
    """From the checkpoint on, if there is one, until so many saves are made; None before the end."""
    made, whole = 0, CheckpointFile.save

    def counted(file: CheckpointFile) -> None:
        nonlocal made
        whole(file)
        made += 1
        if made == saves:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFile, "save", counted)
        try:
            return perform(case, CheckpointFile(path, {"case": str(case)}, 0.0).root, device=device)
        except StoppedError:
            return None


def tables(case: Case, result: Result, folder: Path, seeds: list[int] | None = None) -> dict[str, bytes]:
    seeds = seeds or smoke().studies[case.study].jobs()[0]
    save(result, folder, study=case.study, method=case.row, seeds=seeds, record={})
    return {name: (folder / f"{name}.csv").read_bytes() for name in COLUMNS if name != "measurements"}


def interrupted(
    case: Case, growth: int, folder: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device = CPU
) -> tuple[Result, int]:
    """The result, and how often it was interrupted: after 1 save, then after `growth` more, `growth`² more, …"""
    interruptions = 0
    while True:
        found = attempt(case, folder / "run.safetensors", growth**interruptions, monkeypatch, device)
        if found is not None:
            return found, interruptions
        interruptions += 1


def test_every_task_is_among_the_cases() -> None:
    assert {smoke().studies[case.study].task for case in CASES} == set(task_names())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, interruptions = interrupted(case, 3, tmp_path, monkeypatch)
    assert tables(case, found, tmp_path / "interrupted") == tables(case, perform(case), tmp_path / "undisturbed")
    seconds = ("numeric", "algorithms")  # which end before anything could be lost
    assert interruptions or smoke().studies[case.study].task in seconds


@pytest.mark.parametrize(
    "task",
    ["learned_optimizer", "rotated_mnist_corrected", "language_model", "lenet_l2", "distillation_images"],
)
def test_every_save_is_one_to_go_on_from(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [case for case in CASES if smoke().studies[case.study].task == task]
    case = next((case for case in found if "linear" in case.row), found[0])
    result, interruptions = interrupted(case, 1, tmp_path, monkeypatch)
    assert tables(case, result, tmp_path / "interrupted") == tables(case, perform(case), tmp_path / "undisturbed")
    assert interruptions > 2


@pytest.mark.parametrize("loop", [greedy, honest])
@pytest.mark.parametrize("of", [None, "gradients", "values"])
def test_a_loop_goes_on_with_seeds_that_are_done_or_diverged(
    loop: Any, of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task() -> Watched:
        made = Watched([0, 1, 2], outer_steps=8, tolerance=0.01 if loop is honest else None)
        made.breaks, made.evaluate_every = (1, 2), 3
        made.prediction = None if of is None else LocallyLinear(length=2, every=2, of=of)
        return made

    def kept() -> Watched:
        made = task()
        made.checkpoint = CheckpointFile(tmp_path / "file", {}, 0.0).root
        return made

    whole = CheckpointFile.save

    def save_and_stop(file: CheckpointFile) -> None:
        whole(file)
        raise StoppedError

    def rows(result: Result, name: str) -> dict[str, bytes]:
        save(result, tmp_path / name, study="s", method="m", seeds=[0, 1, 2], record={})
        return {file: (tmp_path / name / f"{file}.csv").read_bytes() for file in ("scalars", "trace")}

    method, interruptions = create_method("kernel_logistic", "unrolled", {}), 0
    monkeypatch.setattr(CheckpointFile, "save", save_and_stop)
    while True:
        try:
            found = loop(kept(), method)
            break
        except StoppedError:
            interruptions += 1
    expected = loop(task(), method)
    assert rows(found, "found") == rows(expected, "expected")
    assert interruptions >= 6
    assert expected.alive.tolist() == [True, False, True]
    if loop is honest:
        first, _, last = expected.summary["outer_steps_done"].tolist()
        assert first < last, "the test needs seeds of different length"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", sorted({smoke().studies[case.study].task for case in CASES}))
def test_an_interrupted_run_on_a_gpu(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, gpu = next(case for case in CASES if smoke().studies[case.study].task == task), torch.device("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        found, _ = interrupted(case, 2, tmp_path, monkeypatch, gpu)
        undisturbed = perform(case, device=gpu)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tables(case, found, tmp_path / "interrupted") == tables(case, undisturbed, tmp_path / "undisturbed")


@pytest.mark.parametrize("name", sorted(smoke().teachers))
def test_an_interrupted_teacher_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = smoke().teachers[name]
    made, expected = teacher_class(chosen.teacher), teacher(name, 0)
    saves, whole = 0, CheckpointFile.save

    def save_and_stop(file: CheckpointFile) -> None:
        nonlocal saves
        whole(file)
        saves += 1
        if saves in (1, 3):
            raise StoppedError

    monkeypatch.setattr(CheckpointFile, "save", save_and_stop)
    for last in (False, False, True):
        settings = made.read_settings({**chosen.settings, **({"epochs": 4} if chosen.data else {})})
        kept = made(name, settings, images() if chosen.data else None, CPU)
        kept.checkpoint = CheckpointFile(tmp_path / "teacher.safetensors", {}, 0.0).root
        if last:
            found = kept.train(0)
        else:
            with pytest.raises(StoppedError):
                kept.train(0)
    if chosen.data:
        expected = made(name, settings, images(), CPU).train(0)
    assert found.metrics == expected.metrics
    assert all(torch.equal(found.tensors[key], values) for key, values in expected.tensors.items())


def test_kinds_of_teachers_are_all_there() -> None:
    assert {chosen.teacher for chosen in smoke().teachers.values()} == set(teacher_names())


# --- seeds one after another


@pytest.mark.parametrize("task", ["cleaning_corrected", "lenet_l2", "rotated_mnist_corrected"])
def test_seeds_one_after_another_have_the_bytes_of_separate_jobs(task: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if smoke().studies[case.study].task == task)
    seeds = smoke().studies[case.study].seed_list
    assert len(seeds) > 1
    together = tables(case, perform(case, seeds=seeds), tmp_path / "together", seeds)
    apart = [tables(case, perform(case, seeds=[seed]), tmp_path / str(seed), [seed]) for seed in seeds]
    for name, content in together.items():
        header, *rows = content.splitlines()
        assert [header] == apart[0][name].splitlines()[:1]
        assert rows == [row for one in apart for row in one[name].splitlines()[1:]]


class Counted(Task):
    """Writes down which seeds it is made for."""

    one_by_one_on_cpu = True
    made: ClassVar[list[tuple[list[int], list[int]]]] = []

    def __init__(self, study: str, settings: Any, dataset: Any, seeds: Any, device: Any) -> None:
        self.seeds = list(seeds)

    def use_teachers(self, teachers: Any) -> None:
        self.made.append((self.seeds, [int(tensors["seed"]) for tensors in teachers]))

    def run(self, method: Any, name: str) -> Result:
        values = torch.tensor(self.seeds, dtype=torch.float64)
        return Result(torch.ones(len(values), dtype=torch.bool), {}, {"seed": values})


@pytest.mark.parametrize(
    ("device", "one_by_one", "expected"),
    [
        ("cpu", True, [([3], [3]), ([5], [5])]),
        ("cuda", True, [([3, 5], [3, 5])]),
        ("cpu", False, [([3, 5], [3, 5])]),
    ],
)
def test_seeds_are_run_one_after_another_on_a_cpu_where_a_task_says_so(
    device: str, one_by_one: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "one_by_one_on_cpu", one_by_one)
    monkeypatch.setattr(Counted, "made", [])
    found = run(
        Counted,
        None,
        study="study",
        settings=Settings(),
        dataset=None,
        seeds=[3, 5],
        device=torch.device(device),
        teachers=[{"seed": torch.tensor(seed)} for seed in (3, 5)],
    )
    assert Counted.made == expected
    assert found.summary["seed"].tolist() == [3, 5]


def test_methods_of_the_cases_are_many() -> None:
    used = {smoke().studies[case.study].methods[case.row].method for case in CASES}
    assert len(used & set(method_names())) > 5
