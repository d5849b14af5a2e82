"""What goes wrong around a run: full disks, too little memory, killed jobs, two pipelines at once, old results.

What each looks like to whoever meets it, and what to do, is in docs/faults.md.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tree import copy_to, variables

from bilevel import cli, config
from bilevel.files import replacing

SETTINGS = {"problem": "quadratic", "steps": [1, 2, 3], "outer_steps": [0, 1, 2], "inner_steps": 2, "size": 3}
VALUES: dict[str, Any] = {
    "studies": {
        "tiny": {
            "deck": "000",
            "task": "bias",
            "seeds": 1,
            "settings": SETTINGS,
            "methods": {"drmad": {"method": "drmad"}, "exact": {"method": "unrolled"}},
        }
    }
}


def run_arguments(folder: Path, **settings: Any) -> list[str]:
    """`bilevel run` of one tiny run into a folder."""
    spec = json.loads(config.read(VALUES).spec("tiny", "exact"))
    spec["settings"].update(settings)
    return [
        "run",
        "--study",
        "tiny",
        "--method",
        "exact",
        "--seeds",
        "0",
        "--spec",
        json.dumps(spec),
        "--output",
        str(folder),
    ]


def forked(arguments: list[str], prepare: Callable[[], None] = lambda: None, stderr: str = "") -> tuple[int, str]:
    """Exit status of a command in a fork of this process, which has torch already, and what it says."""
    torch.set_num_threads(1)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            end = os.open(stderr, os.O_WRONLY) if stderr else sink
            sys.stdout = sys.stderr = os.fdopen(end, "w", buffering=1)
            prepare()
            cli.main(arguments)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            os._exit(status)
    os.close(sink)
    with os.fdopen(source) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, where this may be made."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16k") as disk:
        status, said = forked(run_arguments(disk / "run"))
        assert status == 1
        assert "cannot be written: No space left on device; nothing half-written was left" in said
        assert "Traceback" not in said
        assert contents(disk) == {}
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert forked(run_arguments(disk / "run"))[0] == 0
        assert "record.json" in contents(disk / "run")


def test_a_finished_run_outlives_one_that_cannot_be_written(tmp_path: Path) -> None:
    assert forked(run_arguments(tmp_path / "run"))[0] == 0
    before = contents(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # enough for some of the files and not for all

    status, said = forked(run_arguments(tmp_path / "run", size=4), limit)
    assert status == 1
    assert "cannot be written: File too large" in said
    assert contents(tmp_path) == before


def test_a_log_on_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    status, _ = forked(run_arguments(tmp_path / "run"), stderr="/dev/full")
    assert status == 0
    assert "record.json" in contents(tmp_path / "run")


def test_results_on_a_read_only_disk_are_noticed(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        status, said = forked(run_arguments(disk / "run"))
        assert status == 1
        assert "Traceback" not in said
        assert "cannot be written: Read-only file system" in said
        with pytest.raises(config.SettingsError, match="results cannot be written there: Read-only file system"):
            config.check_writable(str(disk / "results"))


def test_a_run_without_enough_memory_says_so_and_what_helps(tmp_path: Path) -> None:
    def limit() -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, held + 2**28))

    status, said = forked(run_arguments(tmp_path / "run", size=30_000), limit)
    assert status == 1, said
    assert "error: memory was used up" in said
    assert "fewer seeds_per_job" in said
    assert "Traceback" not in said
    assert contents(tmp_path) == {}


def test_a_run_imports_no_compiler(tmp_path: Path) -> None:
    """Some of torch's functions import one, at more than a second for each process."""
    code = "import sys; from bilevel import cli; cli.main(sys.argv[1:]); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *run_arguments(tmp_path / "run")], check=True, capture_output=True)


def test_what_was_left_by_a_killed_writer_is_removed_by_a_later_one(tmp_path: Path) -> None:
    old, young = tmp_path / ".a.csv.1-00000000.tmp", tmp_path / ".a.csv.2-00000000.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    with replacing(tmp_path / "a.csv") as file:
        file.write(b"whole")
    assert sorted(contents(tmp_path)) == [young.name, "a.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_hash": "0000"}, "made by other code .0000, today's is "),
        ({"spec": {}}, "made with other settings than today's"),
        ({"data": {"mnist": {}}}, "made on other data than None"),
        (None, "made by other code .None"),
    ],
)
def test_results_of_yesterday_are_not_shown_as_todays(
    change: dict[str, Any] | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"studies": {"tiny": {**VALUES["studies"]["tiny"], "methods": {"exact": {"method": "unrolled"}}}}}
    folder = tmp_path / "runs/tiny/exact/0"
    assert forked(run_arguments(folder))[0] == 0
    tables = [
        "tables",
        "--config",
        json.dumps(values),
        "--runs",
        str(tmp_path / "runs"),
        "--output",
        str(tmp_path / "tables"),
    ]
    cli.main(tables)
    before = contents(tmp_path / "tables")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text("{" if change is None else json.dumps({**record, **change}))
    with pytest.raises(SystemExit):
        cli.main(tables)
    said = capsys.readouterr().err
    assert message.replace(".", "(", 1) in said
    assert f"delete the folder {folder}" in said
    assert contents(tmp_path / "tables") == before


# a pipeline of two tiny runs

# what Python imports first: makes go wrong what is to go wrong
FAULTS = """
import os, signal, sys, time
command = sys.orig_argv[3] if sys.orig_argv[1:3] == ["-m", "bilevel"] else ""
fault = os.environ.get("FAULT")
if (command, fault) == ("run", "killed"):
    os.kill(os.getpid(), signal.SIGKILL)
if (command, fault) == ("run", "slow"):
    open("started", "w").close()
    time.sleep(300)
if command == "partial":
    print("a report with gaps would be made here")
    os._exit(0)
"""


class Pipeline:
    """A copy of the tree with two tiny runs, up to their table."""

    target = "results/tables/cells.csv"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_to(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(VALUES))
        (folder / "faults").mkdir()
        (folder / "faults" / "sitecustomize.py").write_text(FAULTS)

    def start(self, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
        given = variables(self.folder)
        given |= {"PYTHONPATH": f"{self.folder / 'faults'}:{given['PYTHONPATH']}", "FAULT": fault}
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "1", *(arguments or (self.target,))],
            cwd=self.folder,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, fault: str = "") -> tuple[int, str]:
        process = self.start(*arguments, fault=fault)
        said = process.communicate(timeout=300)[0]
        return process.returncode, said

    def finish(self) -> None:
        status, said = self.run()
        assert status == 0, said

    def runs(self) -> set[str]:
        return {path.parent.parent.name for path in self.folder.glob("results/runs/*/*/*/record.json")}

    def forget(self, method: str) -> None:
        """Have a run and the table made again."""
        shutil.rmtree(self.folder / "results/runs/tiny" / method)
        (self.folder / self.target).unlink(missing_ok=True)

    @property
    def table(self) -> bytes:
        return (self.folder / self.target).read_bytes()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    result = Pipeline(tmp_path_factory.mktemp("pipeline"))
    result.finish()
    return result


@pytest.mark.pipeline
def test_a_killed_job_is_named_and_made_again_next_time(pipeline: Pipeline) -> None:
    before = pipeline.table
    pipeline.forget("exact")
    status, said = pipeline.run(fault="killed")
    assert status != 0
    assert "study=tiny, method=exact" in said
    assert "a report with gaps would be made here" in said
    assert pipeline.runs() == {"drmad"}
    pipeline.finish()
    assert pipeline.runs() == {"drmad", "exact"}
    assert pipeline.table == before


@pytest.mark.pipeline
def test_a_second_pipeline_in_the_folder_stops_and_the_first_goes_on(pipeline: Pipeline) -> None:
    before = pipeline.table
    pipeline.forget("exact")
    first = pipeline.start(fault="slow")
    try:
        end = time.monotonic() + 120
        while not (pipeline.folder / "started").exists():
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)
        status, said = pipeline.run()
        assert status != 0
        assert "cannot be locked" in said
        assert "Traceback" not in said
        assert first.poll() is None
        assert pipeline.runs() == {"drmad"}
    finally:
        os.killpg(first.pid, signal.SIGINT)  # Ctrl-C
        first.communicate(timeout=300)
    assert first.returncode != 0
    pipeline.finish()  # the lock went with it
    assert pipeline.table == before


@pytest.mark.pipeline
def test_a_clock_that_was_set_back_re_runs_nothing_and_ends(pipeline: Pipeline) -> None:
    before, tomorrow = pipeline.table, time.time() + 86_400
    for path in (pipeline.folder / "results/runs").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    status, said = pipeline.run("--dry-run", pipeline.target)
    assert (status, "Nothing to be done" in said) == (0, True), said
    (pipeline.folder / pipeline.target).unlink()
    pipeline.finish()  # a table that is older than the runs it is made from
    assert pipeline.table == before
    status, said = pipeline.run("--dry-run", pipeline.target)
    assert (status, "Nothing to be done" in said) == (0, True), said


@pytest.mark.pipeline
def test_results_without_snakemakes_memory_of_them_are_checked_by_their_records(pipeline: Pipeline) -> None:
    record = pipeline.folder / "results/runs/tiny/exact/0/record.json"
    shutil.rmtree(pipeline.folder / ".snakemake")
    (pipeline.folder / pipeline.target).unlink()
    record.write_text(record.read_text().replace('"code_hash": "', '"code_hash": "old'))
    status, said = pipeline.run()
    assert status != 0
    assert "results/runs/tiny/exact/0/record.json: this run was made by other code (old" in said
    assert "Traceback" not in said
    pipeline.forget("exact")
    pipeline.finish()
