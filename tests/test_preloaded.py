"""Commands that run as forks of a process that has imported everything: as if they ran by themselves."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tree import SECONDS_LONG as SPEC
from tree import variables

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a preloaded process need Linux")

ROOT = Path(__file__).parent.parent


class Preloaded:
    """Such a process, of a copy of the package, and its callers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "socket"
        shutil.copytree(ROOT / "src", folder / "src")
        self.environment = {**variables(folder), "OMP_NUM_THREADS": "1"}
        self.master = subprocess.Popen(["sleep", "600"])
        self.process = self.start("preload", str(self.socket), "--until", str(self.master.pid))
        wait(lambda: answers(self.socket))

    def call(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return self.start(*arguments, **{"BILEVEL_PRELOADED": str(self.socket), **environment})

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "bilevel", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, output: str, *more: str, seeds: str = "0", **environment: str) -> subprocess.Popen[str]:
        command = ["run", "--study", "study", "--method", "row", "--seeds", seeds, "--spec", json.dumps(SPEC)]
        return self.call(*command, "--output", output, *more, **environment)

    def forks(self) -> list[int]:
        place = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in place.read_text().split()]


def wait(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.connect(str(place))
        return True
    return False


def said(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    result = Preloaded(tmp_path_factory.mktemp("preloaded"))
    yield result
    result.master.kill()
    result.master.wait()
    assert result.process.wait(timeout=60) == 0


@pytest.fixture
def fork(preloaded: Preloaded, request: pytest.FixtureRequest) -> tuple[subprocess.Popen[str], int]:
    """A long run under way: the caller, and the process that does it."""
    wait(lambda: not preloaded.forks())
    name = request.node.name
    caller = preloaded.run(name, "--checkpoint", f"{name}.safetensors", "--checkpoint-seconds", "0")
    wait((preloaded.folder / f"{name}.safetensors").exists)
    (pid,) = preloaded.forks()
    return caller, pid


def test_a_fork_writes_and_says_what_a_process_of_its_own_does(preloaded: Preloaded) -> None:
    there, here = preloaded.run("there"), preloaded.run("here", BILEVEL_PRELOADED="")
    wait(preloaded.forks)
    for process in (there, here):
        status, _, errors = said(process)
        assert (status, "study row: 1 of 1 seeds ok" in errors) == (0, True), errors
    names = sorted(path.name for path in (preloaded.folder / "here").iterdir())
    assert names == sorted(path.name for path in (preloaded.folder / "there").iterdir())
    folders = [preloaded.folder / name for name in ("there", "here")]
    for name in set(names) - {"record.json", "measurements.csv"}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    assert records[0]["peak_memory_mb"] == pytest.approx(records[1]["peak_memory_mb"], rel=0.15)
    for measured in ("peak_memory_mb", "seconds", "started"):
        for record in records:
            del record[measured]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    "arguments", [("list", "teachers"), ("list", "nothing"), ("data", "nothing", "--output", "x"), ("--version",)]
)
def test_exit_status_and_streams_are_those_of_the_command(preloaded: Preloaded, arguments: tuple[str, ...]) -> None:
    assert said(preloaded.call(*arguments)) == said(preloaded.call(*arguments, BILEVEL_PRELOADED=""))


def test_a_signal_to_the_caller_ends_the_fork_with_a_checkpoint(
    preloaded: Preloaded, fork: tuple[subprocess.Popen[str], int]
) -> None:
    caller, _ = fork
    caller.send_signal(signal.SIGTERM)
    status, _, errors = said(caller)
    assert status == 128 + signal.SIGTERM
    assert "ended by a signal; run again to go on from here" in errors
    assert not preloaded.forks()


def test_a_killed_caller_takes_its_fork_with_it(preloaded: Preloaded, fork: tuple[subprocess.Popen[str], int]) -> None:
    caller, pid = fork
    caller.kill()
    wait(lambda: not Path(f"/proc/{pid}").exists())
    assert said(caller)[0] == -signal.SIGKILL


def test_a_killed_fork_ends_its_caller_likewise(fork: tuple[subprocess.Popen[str], int]) -> None:
    caller, pid = fork
    os.kill(pid, signal.SIGKILL)
    assert said(caller)[0] == -signal.SIGKILL


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "PYTHONHASHSEED", "LD_LIBRARY_PATH"])
def test_another_environment_needs_a_process_of_its_own(preloaded: Preloaded, variable: str) -> None:
    assert declined(preloaded, **{variable: "2"})
    assert not declined(preloaded, ANOTHER="2")


def test_edited_code_needs_a_process_of_its_own(preloaded: Preloaded) -> None:
    path = preloaded.folder / "src/bilevel/catalogue.py"
    before = path.stat()
    os.utime(path, (before.st_atime, before.st_mtime + 1))
    assert declined(preloaded)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not declined(preloaded)


def declined(preloaded: Preloaded, **environment: str) -> bool:
    code = "from bilevel import preloaded; print(preloaded.run(['--version']))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=preloaded.folder,
        env={**preloaded.environment, "BILEVEL_PRELOADED": str(preloaded.socket), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"None": True, "0": False}[answer.stdout.splitlines()[-1]]


def test_the_end_of_the_process_is_an_error_that_says_so(tmp_path: Path) -> None:
    preloaded = Preloaded(tmp_path)
    caller = preloaded.run("run", "--checkpoint", "run.safetensors", "--checkpoint-seconds", "0")
    wait((tmp_path / "run.safetensors").exists)
    (pid,) = preloaded.forks()
    preloaded.process.kill()
    status, _, errors = said(caller)
    assert (status, "the process that ran this command was ended; run it again" in errors) == (1, True), errors
    wait(lambda: not Path(f"/proc/{pid}").exists())
    again = preloaded.call("list", "teachers")
    assert said(again)[0] == 0, "where nobody answers, it runs as ever"
    preloaded.master.kill()
