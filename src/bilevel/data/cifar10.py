"""Images of ten classes in color: CIFAR-10, in the authors' binary version.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bilevel.data.readers import read_content, read_members
from bilevel.data.spec import Bytes, Decoded
from bilevel.errors import DataError

ARCHIVE = "cifar-10-binary.tar"
SPLITS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
FILES = tuple(file for files in SPLITS.values() for file in files)
IMAGE_SHAPE = (3, 32, 32)  # red, green and blue; rows; columns
_ROW = 1 + 3 * 32 * 32  # bytes: the label, then the pixels


def read_cifar10(paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read train and test from the official archive, or from `FILES`, in `paths` (file name -> path).

    Raises:
        DataError: a file is malformed, incomplete or cannot be read.
    """
    archive = paths.get(ARCHIVE)
    contents = {file: read_content(paths[file]) for file in FILES} if archive is None else read_members(archive, FILES)
    found = {}
    for split, files in SPLITS.items():
        rows = np.concatenate([_rows(contents[file], archive or paths[file], file) for file in files])
        images = np.ascontiguousarray(rows[:, 1:]).reshape(-1, *IMAGE_SHAPE)
        path = archive or paths[files[0]]
        parts = {"images": images, "labels": np.ascontiguousarray(rows[:, 0])}
        found[split] = Decoded(parts, {"images": path, "labels": path})
    return found


def _rows(content: bytes, path: Path, file: str) -> Bytes:
    if not content or len(content) % _ROW:
        raise DataError(f"{path}: expected images of {_ROW} bytes each in {file}, found {len(content)} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _ROW)
    if (highest := int(rows[:, 0].max())) > 9:
        raise DataError(f"{path}: expected labels from 0 to 9 in {file}, found {highest}")
    return rows
