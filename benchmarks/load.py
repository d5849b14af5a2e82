"""What Snakemake and the start of processes cost: `python benchmarks/load.py plan 10000`, `run 500`, or `parts`.

Each works in a copy of the tree with runs that are as small as can be, up to their table, in the environment that it
is started from, that of the pipeline, and prints seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tree import copy_to, variables  # noqa: E402

SETTINGS = {"problem": "quadratic", "steps": [1, 2, 3], "outer_steps": [0, 1, 2], "inner_steps": 2, "size": 3}
TARGET = "results/tables/cells.csv"
REPEATS = 3


class Used(NamedTuple):
    """What a command and its children took; memory is that of the largest process."""

    wall: float
    cpu: float
    peak_mb: float


def main() -> None:
    """Read the options and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    plan = commands.add_parser("plan", help="a dry run of so many runs")
    run = commands.add_parser("run", help="so many tiny runs")
    for command in (plan, run):
        command.add_argument("runs", type=int)
        command.add_argument("--cores", type=int, default=2)
    commands.add_parser("parts", help="where the seconds of one tiny run go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        if options.command == "parts":
            _parts(Path(folder))
        else:
            _pipeline(Path(folder), options.runs, options.cores, dry=options.command == "plan")


def _pipeline(folder: Path, runs: int, cores: int, *, dry: bool) -> None:
    copy_to(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(_values(runs)))
    arguments = [TARGET, "--cores", str(cores), *(["--dry-run", "--quiet", "rules"] if dry else ["--quiet", "all"])]
    used = _measure([sys.executable, "-m", "snakemake", *arguments], folder)
    print(f"{runs} runs: {used.wall:.1f} s, {used.cpu:.1f} CPU s, largest process {used.peak_mb:.0f} MB")
    if dry:
        return
    records = [json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/*/record.json")]
    inside = sum(record["seconds"] for record in records)
    print(f"per run: {used.wall / runs:.2f} s, {used.cpu / runs:.2f} CPU s; inside of runs {inside / runs:.2f} s")


def _values(runs: int) -> dict[str, Any]:
    study = {"deck": "000", "task": "bias", "seeds": runs, "settings": SETTINGS}
    return {"studies": {"tiny": {**study, "methods": {"exact": {"method": "unrolled"}}}}}


def _parts(folder: Path) -> None:
    from bilevel import config

    spec = config.read(_values(1)).spec("tiny", "exact")
    whole = ["-m", "bilevel", "run", "--study", "tiny", "--method", "exact", "--seeds", "0", "--spec", spec]
    for name, arguments in {
        "python": ["-c", "pass"],
        "import numpy": ["-c", "import numpy"],
        "import torch": ["-c", "import torch"],
        "import what a run imports": ["-c", "import bilevel.cli, bilevel.tasks.bias, bilevel.teachers"],
        "hash of the code": ["-c", "from bilevel.registry import run_code_hash; run_code_hash('bias', 'unrolled')"],
        "the whole run": [*whole, "--output", str(folder / "run")],
    }.items():
        found = [_measure([sys.executable, *arguments], folder) for _ in range(REPEATS)]
        cpu, wall = (statistics.median(getattr(used, field) for used in found) for field in ("cpu", "wall"))
        print(f"{name:28} {wall:6.2f} s {cpu:6.2f} CPU s")


def _measure(command: list[str], folder: Path) -> Used:
    given = variables(folder if (folder / "src").exists() else ROOT)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=given, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Used(wall, cpu, after.ru_maxrss / 1e3)


if __name__ == "__main__":
    main()
