"""Files that appear whole or not at all."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bilevel.errors import FileError

_STALE = 3600.0  # seconds without a write after which a temporary file belongs to no living process


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place once the block is done.

    If the block or a write fails, the temporary file is removed and whatever was at `path` stays as it was.
    What a killed process left is removed by a later call. Missing parent folders are made.

    Raises:
        FileError: the file cannot be written (full disk, read-only folder, ...).
    """
    # not tempfile.mkstemp: its files are for their owner only, and a cache may be shared by a group
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written: {error.strerror or error}; nothing half-written was left"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_together(folder: Path, contents: Mapping[str, str]) -> None:
    """Write text files (name -> text, UTF-8) that take their places only once all of them are written, the first last.

    Raises:
        FileError: a file cannot be written; those that were there before are left as they were.
    """
    with contextlib.ExitStack() as stack:
        for name, text in contents.items():
            file = stack.enter_context(replacing(folder / name))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())  # a full disk shows here at the latest, before any file is renamed


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file says; empty where there is no file, or something else in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def not_ahead_of_the_clock(*paths: Path) -> None:
    """Give files from the future, as there are after a clock was set back, the time of today.

    Snakemake throws away what a job has made where it is older than what it was made from.
    """
    now = time.time()
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > now:
                os.utime(path)


def _remove_stale(path: Path) -> None:
    prefix, limit = f".{path.name}.", time.time() - _STALE
    for other in path.parent.iterdir():
        if other.name.startswith(prefix) and other.name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < limit:
                    other.unlink()


def _sync_folder(folder: Path) -> None:
    # makes the rename last through a power cut; some file systems cannot, and that is no error
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
