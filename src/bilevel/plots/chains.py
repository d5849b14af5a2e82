"""Chains run backwards: a row of panels for each optimizer, a line for each arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from bilevel.plots.curves import curves
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Sheet


def chains_distance(
    trace: pd.DataFrame, studies: Sequence[str], look: Look, *, optimizers: Mapping[str, Sequence[str]]
) -> Sheet:
    """Relative distance of the chain recomputed backwards, against the number of steps back.

    optimizers: heading of each row -> methods in it.
    """
    label = "Relative distance from the true chain"
    groups = []
    for heading, methods in optimizers.items():
        sheet = curves(
            trace, studies, look, y="distance", x_label="Steps back", y_label=label, y_log=True, methods=methods
        )
        groups.append(Group(heading, sheet.groups[0].panels))
    return Sheet(f"{label}, against the steps back", "One row an optimizer.", tuple(groups), columns=2)
