"""Processes killed with SIGKILL at random moments: a run by itself, and the whole pipeline."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tree import SECONDS_LONG as SPEC
from tree import Tree, begin

from bilevel.columns import COLUMNS

FILES = [f"{name}.csv" for name in COLUMNS if name != "measurements"]


def start(folder: Path, spec: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bilevel", "run", "--study", "study", "--method", "row", "--seeds", "0", "1"]
    files = ["--output", str(folder / "run"), "--checkpoint", str(folder / "run.safetensors"), *more]
    return subprocess.Popen(
        [*command, "--spec", json.dumps(spec), *files], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "run" / name).read_bytes() for name in FILES}


def wait_for_a_save(path: Path, process: subprocess.Popen[str]) -> None:
    """By this process; each save is another file."""
    before = path.stat().st_ino if path.exists() else None
    while not path.exists() or path.stat().st_ino == before:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def stopped(process: subprocess.Popen[str], number: int) -> str:
    """What it said until then."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return errors


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_tables(tmp_path: Path) -> None:
    # one test of one run: it takes a process seconds to start
    undisturbed, folder, draws = tmp_path / "undisturbed", tmp_path / "stopped", random.Random(0)
    finished(start(undisturbed, SPEC))
    path, each_step = folder / "run.safetensors", ("--checkpoint-seconds", "0")

    def begun(spec: dict[str, Any]) -> subprocess.Popen[str]:
        process = start(folder, spec, *each_step)
        wait_for_a_save(path, process)
        time.sleep(draws.uniform(0, 0.2))
        return process

    other = {**SPEC, "settings": {**SPEC["settings"], "scale": 0.2}}
    stopped(begun(other), signal.SIGKILL)
    refused = stopped(begun(SPEC), signal.SIGKILL)
    assert "is a checkpoint of other settings; it is not used, and the run starts anew" in refused
    asked = begun(SPEC)
    assert "ended by a signal; run again to go on from here" in stopped(asked, signal.SIGTERM)
    assert asked.returncode == 128 + signal.SIGTERM
    hardly_begun = start(folder, SPEC, *each_step)
    time.sleep(draws.uniform(0, 0.5))
    stopped(hardly_begun, signal.SIGKILL)
    stopped(begun(SPEC), signal.SIGKILL)
    errors = finished(start(folder, SPEC))
    assert tables(folder) == tables(undisturbed)
    record = json.loads((folder / "run" / "record.json").read_text())
    assert record["resumed"] == 3, "the one that had hardly begun kept nothing"
    assert record["seconds"] > float(re.findall(r"goes on after ([\d.]+) s", errors)[0])
    assert not path.exists(), "it is of no use any more"


# --- the pipeline

STUDY = {
    "deck": "002",
    "task": "learned_optimizer",
    "seeds": 2,
    "settings": {**SPEC["settings"], "outer_steps": 400},
    "methods": {"learned": {"method": "trajectory"}},
}


def small_tree(folder: Path) -> Tree:
    tree = Tree(folder)
    values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({"compute": values["compute"], "studies": {"study": STUDY}}))
    rule = folder / "workflow/rules/runs.smk"
    rule.write_text(
        rule.read_text(encoding="utf-8").replace("--checkpoint {", "--checkpoint-seconds 0 --checkpoint {"),
        encoding="utf-8",
    )
    return tree


def snakemake(tree: Tree, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", "results/tables/scalars.csv", "--cores", "2", *arguments]
    return begin(tree.folder, command)


def ended(process: subprocess.Popen[str], *, well: bool = True) -> str:
    answer, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == well, answer
    return answer


def children(folder: Path) -> Iterator[int]:
    """Processes that work in the folder."""
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and (place / "cwd").resolve() == folder and int(place.name) != os.getpid():
                yield int(place.name)
        except OSError:  # it has just ended, or is another user's
            continue


@pytest.mark.pipeline
@pytest.mark.skipif(sys.platform != "linux", reason="jobs are forks there alone")
def test_a_pipeline_that_was_killed_goes_on(tmp_path: Path) -> None:
    whole, killed = small_tree(tmp_path / "whole"), small_tree(tmp_path / "killed")
    ended(snakemake(whole))
    process = snakemake(killed)
    checkpoints = killed.folder / "results/checkpoints"
    while len(list(checkpoints.rglob("*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while list(children(killed.folder)):  # jobs are forks of a process that ends with snakemake
        assert time.monotonic() < end, "they were to end with it"
        time.sleep(0.05)
    process.communicate()
    assert "--unlock" in ended(snakemake(killed), well=False)
    ended(snakemake(killed, "--unlock"))
    ended(snakemake(killed, "--rerun-incomplete"))
    records = [json.loads(path.read_text()) for path in (killed.folder / "results/runs").rglob("record.json")]
    assert sum(record["resumed"] for record in records) >= 1
    assert not list(checkpoints.rglob("*.safetensors"))
    for name in FILES:
        path = f"results/tables/{name}"
        assert (killed.folder / path).read_bytes() == (whole.folder / path).read_bytes(), name
