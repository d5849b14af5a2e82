"""CIFAR-10 from made files of the authors' binary format, in an archive and unpacked."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import data
from bilevel.data import cifar10
from bilevel.data.catalog import SPECS
from bilevel.data.spec import Bytes, Digest, ImageDigest, Official, RecordedImages

EACH = 3  # images of a class in a file
KNOWN = SPECS["cifar10"]


def made(number: int) -> tuple[Bytes, Bytes]:
    """Images (N, 3, 32, 32) and labels (N,) of a file."""
    draws = np.random.default_rng(number)
    labels = draws.permutation(np.repeat(np.arange(10, dtype=np.uint8), EACH))
    return draws.integers(256, size=(len(labels), 3, 32, 32), dtype=np.uint8), labels


CONTENT = {file: made(number) for number, file in enumerate(cifar10.FILES)}


def encoded(images: Bytes, labels: Bytes) -> bytes:
    """A label, then 1024 bytes of red, of green and of blue, row by row."""
    return b"".join(
        bytes([label]) + image[0].tobytes() + image[1].tobytes() + image[2].tobytes()
        for image, label in zip(images, labels, strict=True)
    )


def write(folder: Path, **other: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in CONTENT.items():
        (folder / file).write_bytes(other.get(file.removesuffix(".bin"), encoded(*content)))


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        files = {name: encoded(*parts) for name, parts in CONTENT.items()}
        for name, content in {**files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known data set, with as many images as the made files have."""
    counts = {"train": (5 * EACH,) * 10, "test": (EACH,) * 10}
    splits = {
        name: RecordedImages(count=sum(each), image_shape=(3, 32, 32), class_counts=each)
        for name, each in counts.items()
    }
    spec = dataclasses.replace(KNOWN, digest=Digest(name="cifar10", splits=splits))
    monkeypatch.setitem(SPECS, "cifar10", spec)


def test_what_is_known_of_it() -> None:
    train, test = (KNOWN.digest.splits[name] for name in ("train", "test"))
    assert isinstance(train, RecordedImages)
    assert isinstance(test, RecordedImages)
    assert (train.count, sum(train.class_counts), test.count, sum(test.class_counts)) == (50_000,) * 2 + (10_000,) * 2
    assert train.image_shape == test.image_shape == (3, 32, 32)
    assert KNOWN.official is not None
    assert KNOWN.official().resources == (("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),)


@pytest.mark.parametrize("packed", [True, False])
def test_images_come_from_the_archive_and_from_the_files_in_it(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "files"
    if packed:
        folder.mkdir()
        (folder / "cifar-10-binary.tar.gz").write_bytes(archive())
    else:
        write(folder / "cifar-10-batches-bin")
    output = tmp_path / "cifar10.safetensors"
    digest = data.prepare("cifar10", output, [folder])
    found = data.load(output)
    assert isinstance(found, data.Dataset)
    for split, files in cifar10.SPLITS.items():
        images, labels = (np.concatenate([CONTENT[file][part] for file in files]) for part in (0, 1))
        assert torch.equal(found.splits[split].images, torch.from_numpy(images))
        assert torch.equal(found.splits[split].labels, torch.from_numpy(labels).long())
        written = digest.splits[split]
        assert isinstance(written, ImageDigest)
        assert written.images_sha256 == hashlib.sha256(images.tobytes()).hexdigest()
        assert written.class_counts == tuple(np.bincount(labels))
    assert len(found.splits["train"].labels) == 5 * 10 * EACH


def test_it_is_downloaded_and_what_came_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    content = archive()
    (served / "cifar-10-binary.tar.gz").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    official = Official((served.as_uri(),), (("cifar-10-binary.tar.gz", md5),))
    monkeypatch.setitem(SPECS, "cifar10", dataclasses.replace(SPECS["cifar10"], official=lambda: official))
    output = tmp_path / "cifar10.safetensors"
    data.prepare("cifar10", output, download=True)
    assert data.load(output).name == "cifar10"
    written = bytearray(output.read_bytes())
    written[-1] ^= 1
    output.write_bytes(written)
    with pytest.raises(data.DataError, match="changed under way: delete it and run again"):
        data.load(output)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_batch_2", b"\0" * 3074, r"expected images of 3073 bytes each in data_batch_2.bin, found 3074 bytes"),
        ("test_batch", b"", "in test_batch.bin, found 0 bytes"),
        ("data_batch_5", b"\x0a" + b"\0" * 3072, "expected labels from 0 to 9 in data_batch_5.bin, found 10"),
        ("data_batch_1", encoded(*made(9)) + b"\0" * 3073, r"expected images of shape \(150, 3, 32, 32\), found \(151"),
        ("data_batch_1", encoded(made(0)[0], made(0)[1] * 0), "expected .* images a class, found"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    write(tmp_path / "cifar10", **{file: content})
    with pytest.raises(data.DataError, match=message):
        data.prepare("cifar10", tmp_path / "cifar10.safetensors", [tmp_path])


def test_an_archive_without_one_of_the_files_is_incomplete(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    with pytest.raises(data.DataError, match=r"incomplete: expected data_batch_1\.bin"):
        data.prepare("cifar10", tmp_path / "cifar10.safetensors", [tmp_path])
