"""Files of trained teachers, and what the configuration says of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bilevel import config
from bilevel.registry import teacher_names
from bilevel.settings import SettingsError
from bilevel.teachers import Trained, load, save
from bilevel.teachers.store import TeacherError

ROOT = Path(__file__).parent.parent
DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
TRAINED = Trained({"params": torch.arange(6.0).view(2, 3).t(), "ids": torch.tensor([3, 1])}, {"accuracy": 0.5})


def write(folder: Path, trained: Trained = TRAINED) -> None:
    save(trained, folder, name="own", seed=4, spec={"teacher": "kind"})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    write(tmp_path)
    tensors, digest = load(tmp_path / "4.json")
    assert set(tensors) == {"params", "ids"}
    assert torch.equal(tensors["params"], TRAINED.tensors["params"])
    assert torch.equal(tensors["ids"], TRAINED.tensors["ids"])
    assert (digest.name, digest.seed, digest.metrics) == ("own", 4, {"accuracy": 0.5})


def test_the_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    write(tmp_path / "a")
    reordered = Trained(dict(reversed(TRAINED.tensors.items())), TRAINED.metrics)
    write(tmp_path / "b", reordered)
    assert (tmp_path / "a/4.json").read_bytes() == (tmp_path / "b/4.json").read_bytes()
    write(tmp_path / "b", Trained({**TRAINED.tensors, "ids": torch.tensor([3, 2])}, TRAINED.metrics))
    assert (tmp_path / "a/4.json").read_bytes() != (tmp_path / "b/4.json").read_bytes()


def test_a_file_that_is_missing_or_changed_is_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"4\.json: no such file; train the teacher first"):
        load(tmp_path / "4.json")
    write(tmp_path)
    content = bytearray((tmp_path / "4.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "4.safetensors").write_bytes(content)
    with pytest.raises(TeacherError, match=r"4\.safetensors: is not what its digest says; delete it and run again"):
        load(tmp_path / "4.json")
    (tmp_path / "4.json").write_text("{}")
    with pytest.raises(TeacherError, match=r"4\.json: is not the digest of a teacher"):
        load(tmp_path / "4.json")


def changed(**keys: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DEFAULT), **keys}


def test_unknown_teachers_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"teachers\.own\.teacher: .*unknown kind of teacher; there are"):
        config.read(changed(teachers={"own": {"teacher": "nobody"}}))
    values = changed()
    values["studies"]["cleaning_corrected"]["teacher"] = "nobody"
    with pytest.raises(SettingsError, match=r"studies\.cleaning_corrected\.teacher: 'nobody' is not under teachers"):
        config.read(values)


def test_an_unknown_teacher_is_named_without_the_rest_of_the_configuration() -> None:
    values = changed()
    values["studies"]["distillation_published"]["teacher"] = "nobody"
    with pytest.raises(SettingsError) as caught:
        config.read(values)
    assert len(str(caught.value).splitlines()) == 2
    assert len(str(caught.value)) < 300


def test_a_shared_teacher_is_trained_once() -> None:
    values = changed()
    chosen = config.read(values)
    for study, method in (("distillation_published", "naive"), ("distillation_corrected", "naive")):
        (run,) = [run for run in chosen.runs() if run[:2] == (study, method)]
        name = chosen.studies[study].teacher
        seeds = [0] if study == "distillation_published" else run.seeds
        assert chosen.teachers_of(run) == [f"{name}/{seed}" for seed in seeds]
    assert all(not chosen.teachers_of(run) for run in chosen.runs() if run.study == "cleaning_corrected")


@pytest.mark.parametrize(
    ("study", "teacher", "message"),
    [
        ("distillation_published", {"teacher": "convnet", "data": "mnist_5k"}, "of the kind 'logistic', and own is of"),
        (
            "distillation_images",
            {"teacher": "convnet", "data": "mnist"},
            "own is trained on mnist, and the study's data",
        ),
        ("distillation_published", {"teacher": "logistic"}, "name a teacher with the setting draws: published"),
        (
            "distillation_published",
            {"teacher": "logistic", "settings": {"draws": "published", "test_size": 100}},
            "without sizes of its own",
        ),
        (
            "distillation_images",
            {"teacher": "convnet", "data": "mnist_5k", "settings": {"train_size": 400}},
            "student_size: 500 of the teacher's train images are asked for, it has 400",
        ),
    ],
)
def test_teachers_that_cannot_teach_are_refused_before_any_job(
    study: str, teacher: dict[str, Any], message: str
) -> None:
    values = changed(teachers={**DEFAULT["teachers"], "own": teacher})
    values["studies"][study]["teacher"] = "own"
    with pytest.raises(SettingsError, match=rf"studies\.{study}\.teacher.*{message}"):
        config.check(config.read(values))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "none", "task": {"prediction": {"length": 10, "every": 2}}}, "no gradients to predict"),
        ({"method": "tpe", "task": {"prediction": {"length": 10, "every": 2}}}, "no gradients to predict"),
        ({"method": "truncated", "steps": 1, "task": {"start": "none"}}, "gradients cannot move it"),
        (
            {"method": "truncated", "steps": 1, "task": {"prediction": {"length": 9000, "every": 2}}},
            "its 9000 iterations are the whole run of 5000",
        ),
    ],
)
def test_methods_that_make_no_sense_are_refused_before_any_job(method: dict[str, Any], message: str) -> None:
    values = changed()
    values["studies"]["distillation_corrected"]["methods"]["own"] = method
    with pytest.raises(SettingsError, match=rf"studies\.distillation_corrected\.methods\.own.*{message}"):
        config.check(config.read(values))


def test_every_kind_reads_its_defaults_and_is_hashed() -> None:
    from bilevel.registry import teacher_code_hash
    from bilevel.teachers import teacher_class

    for name in teacher_names():
        assert teacher_class(name).read_settings({})
        assert len(teacher_code_hash(name)) == 16


def test_a_task_that_distills_nothing_refuses_a_teacher() -> None:
    kind = teacher_names()[0]
    values = changed(teachers={**DEFAULT["teachers"], "own": {"teacher": kind}})
    values["studies"]["cleaning_corrected"]["teacher"] = "own"
    chosen = config.read(values)
    with pytest.raises(SettingsError, match=r"studies\.cleaning_corrected\.teacher: .* distills no teacher, got 'own'"):
        config.check(chosen)
    assert json.loads(chosen.spec("cleaning_corrected", "none"))["teacher"] == "own"
    assert json.loads(chosen.teacher_spec("own"))["teacher"] == kind
