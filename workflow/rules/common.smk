"""Configuration, checked before any rule, and what the rules share."""

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from bilevel import config as configuration
from bilevel.files import replacing
from bilevel.registry import code_hash, files_hash, run_code_hash, teacher_code_hash
from bilevel.settings import SettingsError


def read_configuration():
    source = " + ".join(str(path) for path in workflow.configfiles)
    try:
        if workflow.is_main_process:
            configuration.check_files(map(Path, workflow.configfiles))
        settings = configuration.read(config, source)
        # jobs on a cluster read this file again: what takes a second is checked once, where the pipeline starts
        if workflow.is_main_process:
            configuration.check(settings, source)
            configuration.check_writable("results")
    except SettingsError as error:
        sys.exit(f"error: {error}")
    return settings


CONFIG = read_configuration()
run_code_hash = cache(run_code_hash)  # the same for thousands of runs
RUNS = {run.folder: run for run in CONFIG.runs()}
CONFIG_JSON = CONFIG.model_dump_json()


def study_of(wildcards):
    return CONFIG.studies[wildcards.study]


def run_of(wildcards):
    return RUNS[f"{wildcards.study}/{wildcards.method}/{wildcards.seeds}"]


wildcard_constraints:
    study="[a-z0-9_.]+",
    method="[a-z0-9_.]+",
    seeds=r"[0-9,\-]+",
    teacher="[a-z0-9_.]+",
    seed="[0-9]+",


def preload():
    """Have the jobs of this machine begin as forks of a process that has imported everything; it ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="bilevel-")
    atexit.register(folder.cleanup)
    socket = f"{folder.name}/preloaded"
    os.environ.update(BILEVEL_PRELOADED=socket)  # for the jobs
    log = Path("results/logs/preload.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    libraries = ["OMP", "MKL", "OPENBLAS"]
    threads = {f"{name}_NUM_THREADS": str(CONFIG.compute.threads) for name in libraries}
    command = ["python", "-m", "bilevel", "preload"]
    with log.open("wb") as file:
        subprocess.Popen(
            [*command, socket, "--until", str(os.getpid())],
            env={**os.environ, **threads},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


onstart:
    # what is under way, for `bilevel watch`
    with replacing(Path("results/config.json")) as file:
        file.write(CONFIG_JSON.encode())
    if workflow.local_exec:
        # a limit of submissions is for clusters; here every job that ends begins one more endless series of looks at
        # all that wait, a second apart, which take a third of a core in the end
        workflow.scheduler.job_rate_limiter = None
    if workflow.local_exec and sys.platform == "linux":
        preload()


onerror:
    # whatever has finished is shown, with the gaps named
    shell(
        "python -m bilevel partial --config {CONFIG_JSON:q} --results results || true"
    )
