"""The benchmark's reference against autograd in double precision, and a small run of the whole."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import measure, report  # noqa: E402
from benchmarks.cases import QUICK, Case, Data, make  # noqa: E402
from benchmarks.contestants import bilevel as own  # noqa: E402
from benchmarks.contestants import torch as plain  # noqa: E402
from benchmarks.reference import Reference  # noqa: E402


def _double(case: Case) -> Data:
    """Random images, everything in double precision."""
    draws = np.random.default_rng(1)
    data = make(case, ((0.3 * draws.random((60, 784))).astype(np.float32), draws.integers(10, size=60)))
    return replace(
        data,
        params=data.params.astype(np.float64),
        hyper=data.hyper.astype(np.float64),
        images=[images.astype(np.float64) for images in data.images],
        outer_images=data.outer_images.astype(np.float64),
    )


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_reference_is_what_autograd_computes(case: Case) -> None:
    data = _double(case)
    expected = Reference(case, data).quantities()
    entries = [entry for entry in plain.contest(case, data) + own.contest(case, data) if not entry.missing]
    assert {entry.quantity for entry in entries} == set(expected)
    for entry in entries:
        tolerance = 1e-5 if entry.label == "reversible" else 1e-9  # fixed point has a resolution of its own
        scale = np.abs(expected[entry.quantity]).max()
        np.testing.assert_allclose(
            entry.build()(), expected[entry.quantity], rtol=0, atol=tolerance * scale, err_msg=entry.label
        )


def test_quick_run(tmp_path: Path) -> None:
    command = "-m benchmarks --quick --cases momentum-4 --contestants bilevel torch higher --threads 1"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *command.split(), "--output", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "bench.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    exact = [row for row in rows if row["quantity"] == "exact" and row["contestant"] in ("bilevel", "torch")]
    assert {row["case"] for row in exact} == {"momentum-4"}
    for row in exact:
        assert row["correct"] == "True", row
        assert float(row["seconds"]) > 0
        assert float(row["memory_mb"]) >= 0
    if importlib.util.find_spec("higher") is None:
        assert {row["failure"] for row in rows if row["contestant"] == "higher"} == {
            "ModuleNotFoundError: No module named 'higher'"
        }
    ratios = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["ratios"]
    assert "momentum-4, exact, time: bilevel unrolled / fastest correct PyTorch peer (torch)" in ratios
    assert "not measured: " in done.stdout or importlib.util.find_spec("higher")


def test_wrong_results_win_nothing() -> None:
    def result(contestant: str, label: str, error: float, seconds: float) -> measure.Result:
        return measure.Result("case", contestant, label, "exact", error=error, memory=1.0, wall=[seconds])

    results = [
        result("bilevel", "unrolled", 1e-6, 2.0),
        result("higher", "innerloop_ctx", 0.5, 0.1),
        result("torch", "unroll", 1e-6, 4.0),
    ]
    name = "case, exact, time: bilevel unrolled / fastest correct PyTorch peer (torch)"
    assert dict(report.ratios(results))[name] == 0.5
    assert "WRONG" in report.tables(results)
