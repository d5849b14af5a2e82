"""Lines of what methods gain on a baseline: differences by seed, since seeds differ more than methods do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bilevel.plots.curves import curves
from bilevel.plots.look import Look
from bilevel.plots.sheet import Sheet


def differences(
    table: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    y: str,
    baseline: str,
    methods: Sequence[str],
    **how: Any,
) -> Sheet:
    """`curves` of y less y of the baseline in the same study, with the same seed and at the same step.

    methods: those to draw. how: further settings of `curves`.
    """
    return curves(less(table, y, baseline), studies, look, y=y, methods=methods, **how)


def less(table: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Rows of the metric, without the baseline's, with its values taken off; where it has none there is no row."""
    rows, by = table[table["metric"] == metric], ["study", "seed", "step"]
    against = rows[rows["method"] == baseline][[*by, "value"]].rename(columns={"value": "taken"})
    paired = rows[rows["method"] != baseline].merge(against, on=by)
    return paired.assign(value=paired["value"] - paired["taken"]).drop(columns="taken")
