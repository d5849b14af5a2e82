"""Differences to a baseline, by seed."""

from __future__ import annotations

import pandas as pd

from bilevel.plots.look import Look
from bilevel.plots.paired import differences, less

ROWS = [
    ("s", method, seed, step, "loss", base + gain * step)
    for seed, base in ((0, 1.0), (1, 5.0))
    for method, gain in (("none", 0.0), ("a", -0.1))
    for step in (0, 2)
]
TABLE = pd.DataFrame(ROWS, columns=["study", "method", "seed", "step", "metric", "value"])


def test_values_are_paired_by_seed_and_step() -> None:
    found = less(TABLE, "loss", "none")
    assert set(found["method"]) == {"a"}
    assert found.sort_values(["seed", "step"])["value"].round(12).tolist() == [0, -0.2, 0, -0.2]


def test_what_has_no_partner_is_left_out() -> None:
    part = TABLE[~((TABLE["method"] == "none") & (TABLE["seed"] == 1))]
    assert set(less(part, "loss", "none")["seed"]) == {0}
    assert less(TABLE, "loss", "other").empty


def test_drawn() -> None:
    sheet = differences(TABLE, ["s"], Look(), y="loss", baseline="none", methods=("a",), x_label="Step", y_label="Gain")
    svg = sheet.svg("x")
    assert "a −0.2" in svg.replace("-0.2", "−0.2")
