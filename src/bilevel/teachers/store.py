"""Files of trained teachers: tensors in safetensors, and a digest that students depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as decode
from safetensors.torch import save as encode
from torch import Tensor

from bilevel.errors import UserError
from bilevel.files import replacing
from bilevel.teachers.base import Trained


class TeacherError(UserError):
    """The file of a teacher is missing or was changed; the message names it and says what to do."""


class TeacherDigest(BaseModel):
    """What identifies a trained teacher: how it was made, and the checksum of its tensors.

    Nothing in it changes from one training to the next, so that a teacher which comes out the same re-runs no student.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    spec: dict[str, Any]
    metrics: dict[str, float]
    sha256: str


def save(trained: Trained, folder: Path, *, name: str, seed: int, spec: Mapping[str, Any]) -> None:
    """Write `<seed>.safetensors` and, last, its digest `<seed>.json`; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = encode({key: trained.tensors[key].contiguous() for key in sorted(trained.tensors)})
    digest = TeacherDigest(
        name=name,
        seed=seed,
        spec=dict(spec),
        metrics=dict(trained.metrics),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    with replacing(folder / f"{seed}.safetensors") as file:
        file.write(content)
    with replacing(folder / f"{seed}.json") as file:
        file.write((json.dumps(digest.model_dump(), indent=2, sort_keys=True) + "\n").encode())


def load(digest_file: Path) -> tuple[dict[str, Tensor], TeacherDigest]:
    """Tensors and digest of a teacher, from `<seed>.json`, beside which its tensors lie.

    Raises TeacherError where a file is missing or is not what the digest says.
    """
    path = digest_file.with_suffix(".safetensors")
    try:
        digest = TeacherDigest.model_validate_json(digest_file.read_bytes())
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise TeacherError(f"{error.filename}: no such file; train the teacher first") from error
    except ValidationError as error:
        raise TeacherError(f"{digest_file}: is not the digest of a teacher: {error.errors()[0]['msg']}") from error
    if hashlib.sha256(content).hexdigest() != digest.sha256:
        raise TeacherError(f"{path}: is not what its digest says; delete it and run again")
    try:
        return decode(content), digest
    except SafetensorError as error:
        raise TeacherError(f"{path}: expected a whole safetensors file, found: {error}") from error
