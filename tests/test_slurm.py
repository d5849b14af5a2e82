"""The pipeline on a SLURM cluster of one node, with faults: run by `make test-slurm`, left out of `make test`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from slurm.cluster import Cluster, missing
from tree import SMOKE, Tree, variables

from bilevel import config

pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin is not installed; `make cluster` adds it")
pytestmark = pytest.mark.slurm

# one study of each kind, as small as the smoke preset makes it
STUDIES = {
    "cleaning_corrected": ["gamma_0.99", "exact"],  # hyperparameters are optimized, on images
    "bias_quadratic": ["exact"],  # measurements without data
    "distillation_corrected": ["optimized"],  # students and their teachers
    "search_function": ["tpe"],  # whole runs at fixed hyperparameters
    "rotated_mnist_2": ["struct"],  # a search, and what it found trained anew
    "language_model": ["union"],  # text
}
# long enough for something to happen to them
LONG = {"outer_steps": 12, "inner_steps": 50, "validation_size": 1000, "test_size": 1000}
CANCELED = "cleaning_corrected/gamma_0.99/0"
STUCK = "cleaning_corrected/exact/0"
DEADLINE = 600.0


class Workflow(Tree):
    """A copy of the tree, in which snakemake runs some studies, here or on a cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        values = config.layered([folder / "config.yaml", folder / SMOKE[1]])
        values["studies"] = {name: values["studies"][name] for name in STUDIES}
        for name, methods in STUDIES.items():
            study = values["studies"][name]
            study["methods"] = {method: study["methods"][method] for method in methods}
        values["studies"]["cleaning_corrected"] |= {"seeds": 1, "settings": LONG}
        (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        rule = folder / "workflow/rules/runs.smk"
        option = "--checkpoint {params.checkpoint}"
        assert option in rule.read_text(encoding="utf-8")
        rule.write_text(rule.read_text(encoding="utf-8").replace(option, f"{option} --checkpoint-seconds 1"))

    def start(self, *arguments: str, given: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
        """Snakemake, with its output in `output`."""
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments],
                cwd=self.folder,
                env=variables(self.folder, given),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def on(self, cluster: Cluster, *arguments: str) -> subprocess.Popen[bytes]:
        """Snakemake with the profile for SLURM, which asks for news more often than on a real cluster."""
        return self.start(
            *("--workflow-profile", "profiles/slurm"),
            *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
            *arguments,
            given=cluster.environment,
        )

    def output(self) -> str:
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")

    def checkpoint(self, run: str) -> Path:
        return self.folder / f"results/checkpoints/{run}.safetensors"

    def record(self, run: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / f"results/runs/{run}/record.json").read_text())
        return values

    def process(self, run: str) -> psutil.Process | None:
        """The process that computes a run."""
        study, method, _ = run.split("/")
        wanted = ["-m", "bilevel", "run", "--study", study, "--method", method]
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if (process.info["cmdline"] or [])[1:8] == wanted and process.info["cwd"] == str(self.folder):
                return process
        return None


def ended(process: subprocess.Popen[bytes], workflow: Workflow, meanwhile: Callable[[], object] = lambda: None) -> int:
    """Exit status; snakemake is interrupted where it takes too long or the test ends."""
    end = time.monotonic() + DEADLINE
    try:
        while process.poll() is None:
            if time.monotonic() > end:
                pytest.fail(f"not done after {DEADLINE} s\n{workflow.output()}")
            meanwhile()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            interrupt(process)
    return process.returncode


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """End snakemake in such a way that it cancels its jobs."""
    process.send_signal(signal.SIGINT)
    process.wait(60)


class Faults:
    """One run is canceled, another made to hang until its time is up, each once it has a checkpoint."""

    def __init__(self, cluster: Cluster, workflow: Workflow) -> None:
        self._cluster, self._workflow = cluster, workflow
        self._planned = {CANCELED: self._cancel, STUCK: lambda process: process.suspend()}
        self.jobs: dict[str, str] = {}

    def happen(self) -> None:
        for run, do in list(self._planned.items()):
            process = self._workflow.process(run) if self._workflow.checkpoint(run).exists() else None
            if process is not None:
                self.jobs[run] = process.environ()["SLURM_JOB_ID"]
                do(process)
                del self._planned[run]

    def _cancel(self, process: psutil.Process) -> None:
        self._cluster.call("scancel", process.environ()["SLURM_JOB_ID"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if programs := missing():
        pytest.skip(f"SLURM is not installed ({', '.join(programs)}); Debian: apt-get install slurm-wlm munge")
    with Cluster() as result:
        yield result


@pytest.fixture(scope="module")
def local_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Workflow]]:
    """A run without a cluster, in the time that the run on the cluster takes; what is given waits for its end."""
    workflow = Workflow(tmp_path_factory.mktemp("local"))
    process = workflow.start("--cores", "1")

    def finished() -> Workflow:
        assert ended(process, workflow) == 0, workflow.output()
        return workflow

    yield finished
    if process.poll() is None:
        interrupt(process)


@pytest.fixture(scope="module")
def run_with_faults(
    cluster: Cluster, local_run: Callable[[], Workflow], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workflow, Faults]:
    workflow = Workflow(tmp_path_factory.mktemp("cluster"))
    faults = Faults(cluster, workflow)
    # a job for each run, and for it a minute at first, the least that SLURM knows; what takes longest goes first
    minutes = ("--set-resources", "run:runtime=attempt", "--prioritize", f"results/runs/{STUCK}/record.json")
    process = workflow.on(cluster, "--group-components", "runs=1", *minutes)
    assert ended(process, workflow, faults.happen) == 0, workflow.output()
    return workflow, faults


def test_runs_that_were_canceled_or_out_of_time_go_on_from_their_checkpoints(
    cluster: Cluster, run_with_faults: tuple[Workflow, Faults]
) -> None:
    workflow, faults = run_with_faults
    ends = cluster.finished()
    assert ends[faults.jobs[CANCELED]]["JobState"] == "CANCELLED"
    assert ends[faults.jobs[STUCK]]["JobState"] == "TIMEOUT"
    assert workflow.output().count("Trying to restart job") >= 2
    for run in (CANCELED, STUCK):
        assert workflow.record(run)["resumed"] >= 1
        assert not workflow.checkpoint(run).exists()
        assert "goes on after" in (workflow.folder / f"results/logs/runs/{run}.log").read_text(encoding="utf-8")
    assert {"CANCELLED", "TIMEOUT", "COMPLETED"} == {row["JobState"] for row in ends.values()}


def test_tables_are_byte_identical_with_those_of_a_local_run(
    run_with_faults: tuple[Workflow, Faults], local_run: Callable[[], Workflow]
) -> None:
    workflow, _ = run_with_faults
    assert workflow.tables() == local_run().tables()
    assert (workflow.folder / "results/report.html").stat().st_size > 10_000


def test_short_runs_share_a_job_and_so_do_rules_that_follow_them(
    cluster: Cluster, run_with_faults: tuple[Workflow, Faults]
) -> None:
    workflow, _ = run_with_faults
    tables = workflow.tables()
    for study in STUDIES:
        if study != "cleaning_corrected":
            shutil.rmtree(workflow.folder / "results/runs" / study)
    shutil.rmtree(workflow.folder / "results/tables")
    before = set(cluster.finished())
    assert ended(workflow.on(cluster, "--", "results/tables/claims.csv"), workflow) == 0, workflow.output()
    ends = {job: row["JobState"] for job, row in cluster.finished().items() if job not in before}
    # four of the five runs, the fifth, and both rules that come after
    assert list(ends.values()) == ["COMPLETED"] * 3
    assert workflow.tables() == tables


def test_only_runs_that_compute_on_a_gpu_are_given_one(
    cluster: Cluster, run_with_faults: tuple[Workflow, Faults], tmp_path: Path
) -> None:
    before = set(cluster.finished())
    assert {devices for job in before for devices in cluster.gpus().get(job, set())} <= {"none", "NoDevFiles"}
    workflow = Workflow(tmp_path)
    run = "bias_quadratic/exact/0-1"
    device = tmp_path / "device.yaml"
    device.write_text("compute: {device: cuda}\n", encoding="utf-8")
    target = f"results/runs/{run}/record.json"
    process = workflow.on(cluster, "--retries", "0", "--configfile", str(device), "--", target)
    status = ended(process, workflow)
    (job,) = set(cluster.finished()) - before
    assert cluster.gpus()[job] & {"0", "1"}
    if torch.cuda.is_available():
        assert status == 0, workflow.output()
    else:
        assert "torch finds no CUDA device" in workflow.output()
