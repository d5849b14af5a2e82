"""What a data set is: the checksums of its decoded content, and the files it is decoded from."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Bytes = NDArray[np.uint8]


class SplitDigest(BaseModel):
    """What identifies the content of one split, whatever it came from.

    `count` images of `image_shape` (rows, columns; pixels 0 to 255), how many of them are in each class, and
    the sha256 of the pixels and of the labels, both as uint8 in C order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    image_shape: tuple[int, ...]
    class_counts: tuple[int, ...]
    images_sha256: str
    labels_sha256: str


class Digest(BaseModel):
    """What identifies the content of a data set: its name and the digest of each split.

    It says nothing of where the content came from, so that jobs which depend on the digest file do not run
    again when the same content is rebuilt from another source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    splits: dict[str, SplitDigest]

    def to_json(self) -> str:
        """Return the text of the digest file: the same bytes for the same content."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class Decoded:
    """One split as read: `images` (N, rows, columns) and `labels` (N,), and the files they came from."""

    images: Bytes
    labels: Bytes
    images_file: Path
    labels_file: Path


@dataclass(frozen=True)
class Package:
    """A folder inside an installed Python package."""

    name: str
    folder: str


@dataclass(frozen=True)
class Official:
    """Where the authors publish the files: base addresses, best first, and (file name, md5 of that file)."""

    mirrors: tuple[str, ...]
    resources: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Spec:
    """All that is known of a data set.

    Attributes:
        digest: its name and the checksums of its content.
        files: names of the files that hold it, without `.gz`; any of them may be gzipped.
        read: decodes these files (name -> path) into splits; raises `DataError` where one is malformed.
        folders: where in a directory of the user the files may lie; `.` is the directory itself.
        package: an installed package that carries the files.
        official: returns the official addresses; called only if something is to be downloaded.
        hint: one more way to get the files, shown where they are found nowhere.
    """

    digest: Digest
    files: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], dict[str, Decoded]]
    folders: tuple[str, ...] = (".",)
    package: Package | None = None
    official: Callable[[], Official] | None = None
    hint: str = ""

    @property
    def name(self) -> str:
        """The name of the data set in the configuration."""
        return self.digest.name


@dataclass(frozen=True)
class Mismatch:
    """The first difference between a split and what it should be: in which part, and in words."""

    part: Literal["images", "labels"]
    text: str


def sha256(array: Bytes) -> str:
    """Return the sha256 of the elements of a uint8 array of any shape, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).data).hexdigest()


def describe(images: Bytes, labels: Bytes, classes: int = 10) -> SplitDigest:
    """Return the digest of `images` (N, rows, columns) and `labels` (N,), both uint8."""
    return SplitDigest(
        count=len(images),
        image_shape=images.shape[1:],
        class_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
        images_sha256=sha256(images),
        labels_sha256=sha256(labels),
    )


def compare(expected: SplitDigest, images: Bytes, labels: Bytes) -> Mismatch | None:
    """Return how `images` (N, rows, columns) and `labels` (N,) differ from `expected`; None if not at all."""
    shape = (expected.count, *expected.image_shape)
    if images.shape != shape:
        return Mismatch("images", f"expected images of shape {shape}, found {images.shape}")
    if labels.shape != (expected.count,):
        return Mismatch("labels", f"expected labels of shape {(expected.count,)}, found {labels.shape}")
    if (found := sha256(images)) != expected.images_sha256:
        return Mismatch("images", f"expected images of sha256 {expected.images_sha256}, found {found}")
    if (found := sha256(labels)) != expected.labels_sha256:
        return Mismatch("labels", f"expected labels of sha256 {expected.labels_sha256}, found {found}")
    return None
