"""A tape of states in a file; not a method itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from bilevel.errors import FileError


class DiskTape:
    """`count` tensors like `example` in a temporary file; one of them at a time is in memory.

    To be used in a `with` statement. The file has no name, so nothing of it is left behind, however the process ends.
    It is read and written rather than mapped into memory: a disk that fills up is then an error and not a signal, and
    the tape does not count as memory of the process.

    folder: where the file lies; None for the system's temporary folder. In a folder that is itself in memory (tmpfs)
        nothing is gained.

    Raises FileError where the folder cannot be written or has too little room, at first or later.
    """

    def __init__(self, count: int, example: Tensor, folder: str | None = None) -> None:
        self._folder = tempfile.gettempdir() if folder is None else folder
        self._device = example.device
        self._staging = torch.empty(example.shape, dtype=example.dtype)
        self._bytes: memoryview = self._staging.view(-1).view(torch.uint8).numpy().data
        self._size = count * len(self._bytes)
        with self._explained():
            free = shutil.disk_usage(self._folder).free
            if free < self._size:
                raise OSError(f"{_size(free)} are free")
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __setitem__(self, index: int, value: Tensor) -> None:
        self._staging.copy_(value)
        rest = self._bytes
        with self._explained():
            self._file.seek(index * len(self._bytes))
            while rest:
                rest = rest[self._file.write(rest) :]

    def __getitem__(self, index: int) -> Tensor:
        """Item `index`, good until another one is read or written."""
        rest = self._bytes
        with self._explained():
            self._file.seek(index * len(self._bytes))
            while rest:
                count = self._file.readinto(rest)
                if count == 0:
                    raise OSError(f"item {index} was not written")
                rest = rest[count:]
        return self._staging.to(self._device)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(
                f"{self._folder}: cannot hold a tape of {_size(self._size)}: {error.strerror or error}; "
                "name another folder with the setting `folder`, or use the method `checkpointed`, which needs no disk"
            ) from error


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
