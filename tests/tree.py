"""Copies of the tree, in which commands are run that change it, or that are to see it changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bilevel import config

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "config.yaml", "workflow", "profiles", "src", "report", "envs")
SMOKE = ("--configfile", "workflow/presets/smoke.yaml")
SECONDS_LONG: dict[str, Any] = {
    "deck": "002",
    "task": "learned_optimizer",
    "settings": {"count": 4, "size": 3, "other_size": 4, "steps": 8, "unroll": 4, "units": 3, "outer_steps": 200},
    "method": "trajectory",
    "method_settings": {},
    "device": "cpu",
    "threads": 1,
}
"""Of a run with enough steps to be killed in the middle."""


def copy_to(folder: Path, *more: str) -> None:
    """Everything that the pipeline needs, and `more`, into a folder that need not be there."""
    folder.mkdir(exist_ok=True)
    for part in (*PARTS, *more):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)


def variables(folder: Path, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a process that is to use the code of a copy and the commands of this Python."""
    paths = {"PYTHONPATH": str(folder / "src"), "PATH": f"{Path(sys.executable).parent}:{given['PATH']}"}
    return {**given, **paths}


def begin(folder: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """A process in a copy, and all it says; in a session of its own, so that signals reach nobody else."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_in(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command, ended; it is killed if it takes 25 minutes."""
    with begin(folder, command) as process:
        try:
            answer, _ = process.communicate(timeout=1500)
        except BaseException:  # and where the tests are interrupted
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, answer)


class Tree:
    """A copy of the tree, in which snakemake runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_to(folder)

    def snakemake(self, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
        return run_in(self.folder, [sys.executable, "-m", "snakemake", *arguments, "--cores", str(cores), *SMOKE])

    def planned(self) -> set[str]:
        """`study/method` of the runs that a dry run would start."""
        answer = self.snakemake("--dry-run")
        assert answer.returncode == 0, answer.stdout
        return set(re.findall(r"output: results/runs/([a-z0-9_.]+/[a-z0-9_.]+)/", answer.stdout))

    def asked_for(self) -> list[config.Run]:
        """Every job that the configuration with the smoke preset over it asks for."""
        files = [self.folder / "config.yaml", self.folder / SMOKE[1]]
        return list(config.read(config.layered(files)).runs())

    def rows(self) -> dict[str, str]:
        """`study/method`, as the configuration calls them, and the method's own name."""
        studies = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))["studies"]
        return {
            f"{study}/{row}": entry["method"]
            for study, chosen in studies.items()
            for row, entry in chosen["methods"].items()
        }

    def tables(self) -> dict[str, bytes]:
        names = (
            "scalars.csv",
            "trace.csv",
            "histograms.csv",
            "points.csv",
            "structures.csv",
            "cells.csv",
            "claims.csv",
            "provenance.json",
        )
        return {name: (self.folder / "results/tables" / name).read_bytes() for name in names}

    def finished(self) -> set[str]:
        """Folders of the jobs that have a record."""
        runs = self.folder / "results/runs"
        return {str(path.parent.relative_to(runs)) for path in runs.glob("*/*/*/record.json")}

    def gaps(self) -> list[dict[str, object]]:
        """Missing runs as the partial report names them."""
        missing: list[dict[str, object]] = json.loads(
            (self.folder / "results/partial/tables/provenance.json").read_text(encoding="utf-8")
        )["missing"]
        return missing

    @contextmanager
    def edited(self, path: str, old: str, new: str) -> Iterator[None]:
        file = self.folder / path
        before = file.read_text(encoding="utf-8")
        assert old in before
        file.write_text(before.replace(old, new, 1), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(before, encoding="utf-8")
