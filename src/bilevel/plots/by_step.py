"""A metric against the outer step: lines with 95 % bands over seeds, one panel a study, axes shared."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bilevel.plots.frames import intervals, methods, series
from bilevel.plots.lines import Line, Scale, by_study, limits
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Sheet


def accuracy_by_step(trace: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """Test accuracy in percent after each outer update."""
    return _by_step(trace, studies, look, "test_accuracy", "Test accuracy, %", factor=100, digits=1)


def auc_by_step(trace: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """How well the learned weights separate clean from corrupted samples, after each outer update."""
    label = "AUC, clean against corrupted"
    return _by_step(trace, studies, look, "noise_auc", label, factor=1, digits=3)


def _by_step(
    trace: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    metric: str,
    label: str,
    factor: float,
    digits: int,
) -> Sheet:
    rows = trace[trace["metric"] == metric]
    lines: dict[str, list[Line]] = {}
    missing: dict[str, list[str]] = {}
    for study in studies:
        drawn, missing[study] = look.order(study, methods(rows.dropna(subset=["value"]), study))
        lines[study] = [_line(rows, study, method, metric) for method in drawn]
    last = max((line.x[-1] for group in lines.values() for line in group), default=1.0)
    scale = Scale("Outer step", label, (0, last or 1.0), limits(list(lines.values()), factor), factor)
    panels = by_study(lines, missing, scale, look, digits)
    return Sheet(f"{label}, against the outer step", "One panel a study.", (Group("", panels),), columns=2)


def _line(rows: pd.DataFrame, study: str, method: str, metric: str) -> Line:
    found = intervals(series(rows, study, method, metric))
    return Line(method, tuple(float(step) for step in found), tuple(found.values()))
