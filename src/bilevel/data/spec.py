"""What a data set is: the checksums of its decoded content, and the files it is decoded from."""

import hashlib
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Bytes = NDArray[np.uint8]
Kind = Literal["images", "text"]

LANGUAGES = ("en", "de")
_NEWLINE = ord("\n")


@dataclass(frozen=True)
class Mismatch:
    """The first difference between a split and what it should be: in which part, and in words."""

    part: str
    text: str


class SplitDigest(BaseModel, ABC):
    """What identifies the content of one split, whatever it came from: how many items, and checksums by its kind.

    The content is in parts, uint8 arrays whose names are `parts`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[Kind]
    parts: ClassVar[tuple[str, ...]]

    count: int

    @abstractmethod
    def compare(self, parts: Mapping[str, Bytes]) -> Mismatch | None:
        """Return how the content differs from what it should be; None if not at all."""

    @abstractmethod
    def completed(self, parts: Mapping[str, Bytes]) -> "SplitDigest":
        """Return the digest that is written for content that `compare` accepts."""

    def difference(self, written: "SplitDigest") -> str | None:
        """Return how a written digest differs from what it should be, in words; None if not at all."""
        found = written.model_dump()
        for field, value in self.model_dump().items():
            if found.get(field) != value:
                return f"{field}: expected {value}, found {found.get(field)}"
        return None


class ImageDigest(SplitDigest):
    """`count` images of `image_shape` (rows and columns, in color after channels; pixels 0 to 255), and how many of
    them are in each class.

    The sha256 are of the pixels (N, *image_shape) and of the labels (N,), both as uint8 in C order.
    """

    kind: ClassVar[Kind] = "images"
    parts: ClassVar[tuple[str, ...]] = ("images", "labels")

    image_shape: tuple[int, ...]
    class_counts: tuple[int, ...]
    images_sha256: str
    labels_sha256: str

    def compare(self, parts: Mapping[str, Bytes]) -> Mismatch | None:
        """See `SplitDigest`."""
        images, labels = parts["images"], parts["labels"]
        shape = (self.count, *self.image_shape)
        if images.shape != shape:
            return Mismatch("images", f"expected images of shape {shape}, found {images.shape}")
        if labels.shape != (self.count,):
            return Mismatch("labels", f"expected labels of shape {(self.count,)}, found {labels.shape}")
        if (found := sha256(images)) != self.images_sha256:
            return Mismatch("images", f"expected images of sha256 {self.images_sha256}, found {found}")
        if (found := sha256(labels)) != self.labels_sha256:
            return Mismatch("labels", f"expected labels of sha256 {self.labels_sha256}, found {found}")
        return None

    def completed(self, parts: Mapping[str, Bytes]) -> "ImageDigest":
        """See `SplitDigest`."""
        return self


class RecordedImages(SplitDigest):
    """`count` images of `image_shape`, and how many of them are in each class; their checksums are not known here.

    What is found is written as an `ImageDigest`, and held against that from then on.
    """

    kind: ClassVar[Kind] = "images"
    parts: ClassVar[tuple[str, ...]] = ("images", "labels")

    image_shape: tuple[int, ...]
    class_counts: tuple[int, ...]

    def compare(self, parts: Mapping[str, Bytes]) -> Mismatch | None:
        """See `SplitDigest`."""
        images, labels = parts["images"], parts["labels"]
        shape = (self.count, *self.image_shape)
        if images.shape != shape:
            return Mismatch("images", f"expected images of shape {shape}, found {images.shape}")
        found = tuple(np.bincount(labels, minlength=len(self.class_counts)).tolist())
        if labels.shape != (self.count,) or found != self.class_counts:
            return Mismatch("labels", f"expected {self.class_counts} images a class, found {found}")
        return None

    def completed(self, parts: Mapping[str, Bytes]) -> ImageDigest:
        """See `SplitDigest`."""
        return describe_images(parts["images"], parts["labels"], len(self.class_counts))

    def difference(self, written: SplitDigest) -> str | None:
        """See `SplitDigest`."""
        if not isinstance(written, ImageDigest):
            return "expected checksums of images and labels, found none"
        return super().difference(written)


class TextDigest(SplitDigest):
    """`count` pairs of an English and a German line.

    The sha256 are of each language's lines in UTF-8 with a newline between them (`encode_lines`).
    """

    kind: ClassVar[Kind] = "text"
    parts: ClassVar[tuple[str, ...]] = LANGUAGES

    en_sha256: str
    de_sha256: str

    def compare(self, parts: Mapping[str, Bytes]) -> Mismatch | None:
        """See `SplitDigest`."""
        for part in self.parts:
            if (found := _lines(parts[part])) != self.count:
                return Mismatch(part, f"expected {self.count} lines of {part}, found {found}")
        for part, expected in zip(self.parts, (self.en_sha256, self.de_sha256), strict=True):
            if (checksum := sha256(parts[part])) != expected:
                return Mismatch(part, f"expected lines of {part} of sha256 {expected}, found {checksum}")
        return None

    def completed(self, parts: Mapping[str, Bytes]) -> "TextDigest":
        """See `SplitDigest`."""
        return self


class RecordedText(SplitDigest):
    """About `count` pairs of lines (up to one in a thousand more or less), whose checksums nobody has published.

    What is found is written as a `TextDigest`, and held against that from then on.
    """

    kind: ClassVar[Kind] = "text"
    parts: ClassVar[tuple[str, ...]] = LANGUAGES

    def compare(self, parts: Mapping[str, Bytes]) -> Mismatch | None:
        """See `SplitDigest`."""
        for part in self.parts:
            if not self._is_near(found := _lines(parts[part])):
                return Mismatch(part, f"expected about {self.count} lines of {part}, found {found}")
        return None

    def completed(self, parts: Mapping[str, Bytes]) -> TextDigest:
        """See `SplitDigest`."""
        return TextDigest(count=_lines(parts["en"]), en_sha256=sha256(parts["en"]), de_sha256=sha256(parts["de"]))

    def difference(self, written: SplitDigest) -> str | None:
        """See `SplitDigest`."""
        if not isinstance(written, TextDigest):
            return "expected checksums of lines in en and de, found none"
        if not self._is_near(written.count):
            return f"count: expected about {self.count}, found {written.count}"
        return None

    def _is_near(self, count: int) -> bool:
        return abs(count - self.count) <= self.count // 1000


class Digest(BaseModel):
    """What identifies the content of a data set: its name and the digest of each split.

    It says nothing of where the content came from, so that jobs which depend on the digest file do not run
    again when the same content is rebuilt from another source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    splits: Mapping[str, ImageDigest | TextDigest | RecordedText | RecordedImages]

    @property
    def kind(self) -> Kind:
        """What its splits are made of."""
        return next(iter(self.splits.values())).kind

    def to_json(self) -> str:
        """Return the text of the digest file: the same bytes for the same content."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class Decoded:
    """One split as read: its parts, and the file that each of them came from."""

    parts: dict[str, Bytes]
    files: dict[str, Path]


def decoded_text(en: Sequence[str], de: Sequence[str], en_file: Path, de_file: Path) -> Decoded:
    """Return a split of lines in English and as many in German."""
    return Decoded({"en": encode_lines(en), "de": encode_lines(de)}, {"en": en_file, "de": de_file})


@dataclass(frozen=True)
class Package:
    """A folder inside an installed Python package."""

    name: str
    folder: str


@dataclass(frozen=True)
class Wheel:
    """A published wheel that is kept for the data in it and never installed: its requirement, file name and sha256.

    It lies in the folder `wheels` of the environment (`sys.prefix`), where setting up puts it.
    """

    requirement: str
    file: str
    sha256: str

    @property
    def folder(self) -> Path:
        """Where it lies in the environment."""
        return Path(sys.prefix) / "wheels"

    def command(self, folder: Path) -> list[str]:
        """Return pip's command that fetches it into `folder`."""
        # whatever Python it is for, since it is only read
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
        return [sys.executable, "-m", "pip", "download", *options, self.requirement]

    @property
    def advice(self) -> str:
        """The command that fetches it into the environment, for people."""
        return shlex.join(self.command(self.folder))


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
        unpacked: names of the files in the archive, where `files` is an archive that may also lie there unpacked.
        folders: where in a directory of the user the files may lie; `.` is the directory itself.
        package: an installed package that carries the files.
        wheel: the wheel that is `files`, in the environment or to be downloaded.
        official: returns the official addresses; called only if something is to be downloaded.
        hint: one more way to get the files, shown where they are found nowhere.
    """

    digest: Digest
    files: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], dict[str, Decoded]]
    folders: tuple[str, ...] = (".",)
    unpacked: tuple[str, ...] = ()
    package: Package | None = None
    wheel: Wheel | None = None
    official: Callable[[], Official] | None = None
    hint: str = ""

    @property
    def name(self) -> str:
        """The name of the data set in the configuration."""
        return self.digest.name

    @property
    def kind(self) -> Kind:
        """What its splits are made of."""
        return self.digest.kind

    @property
    def embedded(self) -> bool:
        """Whether setting up brings it."""
        return self.package is not None or self.wheel is not None


def sha256(array: Bytes) -> str:
    """Return the sha256 of the elements of a uint8 array of any shape, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).data).hexdigest()


def describe_images(images: Bytes, labels: Bytes, classes: int = 10) -> ImageDigest:
    """Return the digest of `images` (N, rows, columns) or (N, channels, rows, columns) and `labels` (N,), all uint8."""
    return ImageDigest(
        count=len(images),
        image_shape=images.shape[1:],
        class_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
        images_sha256=sha256(images),
        labels_sha256=sha256(labels),
    )


def describe_text(en: Sequence[str], de: Sequence[str]) -> TextDigest:
    """Return the digest of lines in English and as many in German."""
    return TextDigest(count=len(en), en_sha256=sha256(encode_lines(en)), de_sha256=sha256(encode_lines(de)))


def _lines(text: Bytes) -> int:
    return int(np.count_nonzero(text == _NEWLINE)) + 1 if text.size else 0


def encode_lines(lines: Sequence[str]) -> Bytes:
    """Return lines (one or more, without line breaks) as UTF-8 with a newline between them."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def decode_lines(text: Bytes) -> tuple[str, ...]:
    """Return the lines of which `encode_lines` made `text`."""
    return tuple(text.tobytes().decode().split("\n"))
