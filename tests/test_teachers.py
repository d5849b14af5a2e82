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
    tensors, digest = load(tmp_path, 4)
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
        load(tmp_path, 4)
    write(tmp_path)
    content = bytearray((tmp_path / "4.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "4.safetensors").write_bytes(content)
    with pytest.raises(TeacherError, match=r"4\.safetensors: is not what its digest says; delete it and run again"):
        load(tmp_path, 4)
    (tmp_path / "4.json").write_text("{}")
    with pytest.raises(TeacherError, match=r"4\.json: is not the digest of a teacher"):
        load(tmp_path, 4)


def changed(**keys: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DEFAULT), **keys}


def test_unknown_teachers_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"teachers\.own\.teacher: .*unknown kind of teacher; there are"):
        config.read(changed(teachers={"own": {"teacher": "nobody"}}))
    values = changed()
    values["studies"]["cleaning_corrected"]["teacher"] = "nobody"
    with pytest.raises(SettingsError, match=r"studies\.cleaning_corrected\.teacher: 'nobody' is not under teachers"):
        config.read(values)


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
