"""Reading tables into frames. A table that is not there is an empty frame: a gap in the figure, not an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from bilevel.columns import COLUMNS, TableName
from bilevel.statistics import Interval, mean_interval
from bilevel.tables import read_table


def read(tables: Path, name: TableName) -> pd.DataFrame:
    """Read `trace.csv` or another table of rows."""
    path = tables / f"{name}.csv"
    return read_table(path, name) if path.exists() else pd.DataFrame(columns=[*COLUMNS[name]])


def series(trace: pd.DataFrame, study: str, method: str, metric: str) -> dict[int, list[float]]:
    """Values over seeds at each outer step; what a diverged seed left empty is dropped."""
    chosen = trace[(trace["study"] == study) & (trace["method"] == method) & (trace["metric"] == metric)]
    chosen = chosen.dropna(subset=["value"]).sort_values(["step", "seed"])
    steps = chosen.groupby("step")["value"]
    return {int(str(step)): [float(value) for value in values] for step, values in steps}


def intervals(values: dict[int, list[float]]) -> dict[int, Interval]:
    """Mean and 95 % t-interval at each step."""
    return {step: mean_interval(sample) for step, sample in values.items()}


def outline(bins: pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Percent of all counts in each bin, over all its rows, and the edges of bins; None where there are no counts."""
    counts = bins.groupby(["left", "right"], as_index=False)["count"].sum()
    total = float(counts["count"].sum())
    if total == 0:
        return None
    edges = np.append(counts["left"].to_numpy(float), counts["right"].to_numpy(float)[-1])
    return 100 * counts["count"].to_numpy(float) / total, edges


def methods(frame: pd.DataFrame, study: str) -> list[str]:
    """Methods of a study that have rows, in alphabetical order."""
    return sorted(frame.loc[frame["study"] == study, "method"].unique())
