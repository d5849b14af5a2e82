"""`python -m benchmarks`: measure, print, write. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks import report
from benchmarks.cases import CASES, FULL, QUICK
from benchmarks.contestants import NAMES
from benchmarks.measure import measure


def main() -> None:
    """Read the options and go."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory beside other libraries."
    )
    parser.add_argument("--quick", action="store_true", help="three or four inner steps and one round: does it run?")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES, help="libraries to measure")
    parser.add_argument("--repeats", type=_positive, help="rounds of timing (default 5)")
    parser.add_argument("--threads", type=_positive, default=2, help="threads, and cores, of each library (default 2)")
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="folder of bench.csv and bench.json")
    options = parser.parse_args()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.threads > available:
        parser.error(f"--threads {options.threads}: there are {available} cores; ask for no more")
    chosen = [CASES[name] for name in options.cases] if options.cases else QUICK if options.quick else FULL
    repeats = options.repeats or (1 if options.quick else 5)
    about = report.machine(options.threads, repeats)
    results = measure(chosen, options.contestants, repeats, options.threads)
    report.write(options.output, results, about)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    print(f"{about['processor']}, {options.threads} threads, median of {repeats} rounds; {versions}\n")
    print(report.tables(results))
    print(f"\nwritten: {options.output / 'bench.csv'}, {options.output / 'bench.json'}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


if __name__ == "__main__":
    main()
