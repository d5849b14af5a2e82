"""Accuracy against what it cost: cumulative Jacobian products on a logarithmic axis, one panel a study."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bilevel.plots.frames import intervals, methods, series
from bilevel.plots.lines import Line, Scale, by_study, limits
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Sheet

METRIC, COST = "test_accuracy", "jvps_total"


def accuracy_by_cost(trace: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """Test accuracy in percent against the products spent so far; without any, a level line at the last value."""
    lines: dict[str, list[Line]] = {}
    missing: dict[str, list[str]] = {}
    accuracy = trace[trace["metric"] == METRIC].dropna(subset=["value"])
    for study in studies:
        drawn, missing[study] = look.order(study, methods(accuracy, study))
        lines[study] = [_line(trace, study, method) for method in drawn]
    spent = [x for group in lines.values() for line in group for x in line.x if x > 0]
    span = (min(spent, default=1.0), max(spent, default=10.0))
    lines = {study: [_level(line, span) for line in group] for study, group in lines.items()}
    scale = Scale(
        "Jacobian products spent (logarithmic)",
        "Test accuracy, %",
        span,
        limits(list(lines.values()), 100),
        100,
        log=True,
    )
    panels = by_study(lines, missing, scale, look, digits=1)
    title = "Test accuracy against Jacobian products spent"
    return Sheet(title, "One panel a study.", (Group("", panels),), columns=2)


def _line(trace: pd.DataFrame, study: str, method: str) -> Line:
    """Steps at which something had been spent; all steps at zero where nothing ever was."""
    found = intervals(series(trace, study, method, METRIC))
    spent = {step: item.mean for step, item in intervals(series(trace, study, method, COST)).items()}
    steps = [step for step in found if spent.get(step, 0) > 0]
    if not steps:
        return Line(method, (0.0,), tuple(found.values())[-1:])
    return Line(method, tuple(spent[step] for step in steps), tuple(found[step] for step in steps))


def _level(line: Line, span: tuple[float, float]) -> Line:
    return Line(line.method, span, line.y * 2) if line.x == (0.0,) else line
