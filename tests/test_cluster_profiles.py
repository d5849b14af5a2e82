"""Profiles for clusters, as far as they can be held to their word without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tree import ROOT, SMOKE, Tree, variables

PLUGINS = {"slurm": "slurm", "lsf": "lsf", "kubernetes": "cluster_generic"}
FOR_KUBERNETES = {"BILEVEL_IMAGE": "python:3.11", "BILEVEL_CLAIM": "work", "BILEVEL_MOUNT": "/work"}

# what kubectl says of Jobs, and what a node does for them: it runs their command here, with the environment of the pod
KUBECTL = f"""\
#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path

folder, verb = Path(os.environ["JOBS"]), sys.argv[1]
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if verb == "create":
    name = f"bilevel-{{len(list(folder.glob('*.json')))}}"
    manifest = json.load(sys.stdin)
    (folder / f"{{name}}.json").write_text(json.dumps(manifest))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    script = '"$@"; [ $? = 0 ] && echo Complete > "$END" || echo Failed > "$END"'
    subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *container["command"]],
        cwd=container["workingDir"],
        env={{**{{one["name"]: one["value"] for one in container["env"]}}, "END": str(folder / f"{{name}}.end")}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"job.batch/{{name}}")
elif verb == "get":
    name = next(word for word in sys.argv[3:] if not word.startswith("-"))
    end = folder / f"{{name}}.end"
    if (folder / f"{{name}}.json").exists():
        print("found", end.read_text().strip() if end.exists() else "", end="")
"""


def profile(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text(encoding="utf-8"))
    return values


def need_plugin(name: str) -> None:
    plugin = PLUGINS[name]
    if importlib.util.find_spec(f"snakemake_executor_plugin_{plugin}") is None:
        pytest.skip(f"the {plugin} plugin of snakemake is not installed; `make cluster` adds it")


def with_kubectl(folder: Path) -> dict[str, str]:
    """An environment with a stand-in for kubectl."""
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL, encoding="utf-8")
    (folder / "kubectl").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **FOR_KUBERNETES, "JOBS": str(folder), "PATH": path}


def call(command: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "profiles/kubernetes" / command
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)


def submit(environment: dict[str, str], folder: Path, text: str, gpu: int = 0) -> str:
    script = folder / "script"
    script.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    options = f"--cpu 2 --memory-mb 3000 --minutes 40 --gpu {gpu} {script}"
    answer = call("submit", environment, *options.split())
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.parametrize("name", PLUGINS)
def test_snakemake_knows_every_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_plugin(name)
    from snakemake.cli import parse_args

    monkeypatch.chdir(ROOT)
    _, chosen = parse_args(["--workflow-profile", f"profiles/{name}", "--dry-run"])
    values = profile(name)
    assert chosen.executor == values["executor"]
    assert chosen.retries == values["retries"] >= 1
    assert chosen.group_components == {"runs": 4}


@pytest.mark.parametrize("name", PLUGINS)
def test_what_does_not_depend_on_the_cluster_is_as_in_the_default_profile(name: str) -> None:
    # a workflow profile takes the place of the default one, so it has to say all of it
    assert profile(name).items() >= profile("default").items()


@pytest.mark.parametrize("name", PLUGINS)
def test_rules_that_a_profile_names_are_there(name: str) -> None:
    rules = {
        found
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for found in re.findall(r"^rule (\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    commented = re.findall(r"^#   (\w+):$", (ROOT / f"profiles/{name}/profile.yaml").read_text(), re.MULTILINE)
    assert rules >= {entry.split("=")[0] for entry in profile(name)["groups"]} | set(commented)


def test_a_job_of_kubernetes_asks_for_what_its_rule_says(tmp_path: Path) -> None:
    environment = with_kubectl(tmp_path / "kubectl")
    manifest = json.loads((tmp_path / "kubectl" / f"{submit(environment, tmp_path, 'true')}.json").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert manifest["spec"]["activeDeadlineSeconds"] == 2400
    assert manifest["spec"]["backoffLimit"] == 0
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "3000M"}
    assert container["workingDir"] == str(Path.cwd())
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"] for mount in container["volumeMounts"]]
    on_gpu = json.loads((tmp_path / "kubectl" / f"{submit(environment, tmp_path, 'true', gpu=1)}.json").read_text())
    (container,) = on_gpu["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_job_of_kubernetes_runs_and_then_has_succeeded_or_failed(tmp_path: Path) -> None:
    environment = with_kubectl(tmp_path / "kubectl")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    good, bad = submit(environment, tmp_path, f"read line < {gate}"), submit(environment, tmp_path, "exit 3")
    assert call("status", environment, good).stdout == "running\n"
    gate.write_text("go\n", encoding="utf-8")
    for name, expected in ((good, "success"), (bad, "failed")):
        while not (end := tmp_path / "kubectl" / f"{name}.end").exists() or not end.read_text():
            pass
        assert call("status", environment, name).stdout == f"{expected}\n"
    assert call("status", environment, "bilevel-gone").stdout == "failed\n"
    call("cancel", environment, good, bad)
    assert (tmp_path / "kubectl/calls").read_text().splitlines()[-1].endswith(f"--wait=false {good} {bad}")


def test_a_job_of_kubernetes_without_an_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    environment = {**with_kubectl(tmp_path / "kubectl"), "BILEVEL_IMAGE": ""}
    options = "--cpu 1 --memory-mb 1 --minutes 1 --gpu 0"
    answer = call("submit", environment, *options.split(), "script")
    assert answer.returncode == 1
    assert "BILEVEL_IMAGE is not set" in answer.stderr


@pytest.mark.pipeline
def test_a_run_through_the_profile_for_kubernetes(tmp_path: Path) -> None:
    need_plugin("kubernetes")
    environment = with_kubectl(tmp_path / "kubectl")
    tree = Tree(tmp_path / "tree")
    command = "--workflow-profile profiles/kubernetes --seconds-between-status-checks 1"
    runs = [f"results/runs/bias_quadratic/{method}/0-1/record.json" for method in ("exact", "t1_t2")]
    answer = subprocess.run(
        [sys.executable, "-m", "snakemake", *command.split(), *SMOKE, "--", *runs],
        cwd=tree.folder,
        env=variables(tree.folder, environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout
    assert all((tree.folder / run).exists() for run in runs)
    assert len(list((tmp_path / "kubectl").glob("*.json"))) == 1
