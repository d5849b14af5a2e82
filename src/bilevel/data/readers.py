"""From files to arrays and lines; a malformed file is a `DataError` that says what was expected and what was found."""

import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bilevel.data.spec import Bytes, Decoded
from bilevel.errors import DataError

IMAGES_MAGIC = 2051  # unsigned bytes (8) in three dimensions
LABELS_MAGIC = 2049  # unsigned bytes (8) in one dimension
_GZIP_MAGIC = b"\x1f\x8b"


def read_content(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is gzipped.

    Its first bytes tell, not its name: browsers and mirrors add and drop `.gz` at will.

    Raises:
        DataError: the file cannot be read or decompressed.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: expected a whole gzip file, found a damaged one: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file in UTF-8, without their newlines.

    Raises:
        DataError: it is not UTF-8, or the file cannot be read or decompressed.
    """
    return lines_of(read_content(path), path)


def lines_of(content: bytes, origin: Path | str) -> list[str]:
    """Return the lines of text in UTF-8. Only newlines end a line, as for the tools that made the published files.

    Raises:
        DataError: it is not UTF-8; `origin` says where it came from.
    """
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: expected text in UTF-8, found: {error}") from error
    return lines[:-1] if lines[-1] == "" else lines


def read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of the files of these names in a tar archive, gzipped or not, wherever in it they lie.

    Raises:
        DataError: it is not a whole archive, one of the files is not in it, or it cannot be read.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(read_content(path))) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            if missing := [name for name in names if name not in members]:
                raise DataError(f"{path}: incomplete: expected {', '.join(names)}, found none of {', '.join(missing)}")
            return {name: _content(archive, members[name]) for name in names}
    except tarfile.TarError as error:
        raise DataError(f"{path}: expected a whole tar archive, found: {error}") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a member that is a file has content"
    return file.read()


def read_idx(path: Path, magic: int) -> Bytes:
    """Return the array in an IDX file of unsigned bytes, of as many dimensions as the last byte of `magic`.

    Raises:
        DataError: magic number, header or length is wrong, or the file cannot be read.
    """
    content = read_content(path)
    header = 4 + 4 * (magic & 0xFF)
    if not content.startswith(struct.pack(">I", magic)):
        found = int.from_bytes(content[:4], "big")
        raise DataError(f"{path}: expected the IDX magic number {magic}, found {found} (bytes {content[:4]!r})")
    if len(content) < header:
        raise DataError(f"{path}: expected an IDX header of {header} bytes, found only {len(content)} bytes")
    shape = struct.unpack_from(f">{magic & 0xFF}I", content, 4)
    if len(content) != (expected := header + math.prod(shape)):
        raise DataError(
            f"{path}: expected {expected} bytes for shape {shape}, found {len(content)} (after decompression)"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx_splits(splits: Mapping[str, tuple[str, str]], paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read splits given as name -> (images file, labels file) from `paths`, file name -> path.

    Raises:
        DataError: a file is malformed or cannot be read.
    """
    return {
        split: Decoded(
            parts={"images": read_idx(paths[images], IMAGES_MAGIC), "labels": read_idx(paths[labels], LABELS_MAGIC)},
            files={"images": paths[images], "labels": paths[labels]},
        )
        for split, (images, labels) in splits.items()
    }


def read_csv_split(split: str, image_shape: tuple[int, int], paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read the one file in `paths`: an image a row, its pixels (0 to 255), then its label, between commas.

    Raises:
        DataError: the file is malformed or cannot be read.
    """
    (path,) = paths.values()
    content = read_content(path)
    columns = math.prod(image_shape) + 1
    if not content.strip():
        raise DataError(f"{path}: expected rows of {columns} integers, found an empty file")
    try:
        rows = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.uint8, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: expected rows of {columns} integers from 0 to 255, found: {error}") from error
    if rows.shape[1] != columns:
        raise DataError(f"{path}: expected rows of {columns} integers, found rows of {rows.shape[1]}")
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, *image_shape)
    labels = np.ascontiguousarray(rows[:, -1])
    return {split: Decoded({"images": images, "labels": labels}, {"images": path, "labels": path})}
