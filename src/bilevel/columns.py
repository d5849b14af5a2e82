"""Columns of the files that a run writes and that tables put together. Imports neither torch nor pandas."""

from __future__ import annotations

from typing import Literal

TableName = Literal["scalars", "trace", "histograms", "points", "structures", "measurements"]

RUN = {"study": "str", "method": "str", "seed": "int64"}
BIN = {"quantity": "str", "group": "str", "left": "float64", "right": "float64"}
EDGE = {"domain": "str", "source": "int64", "target": "int64", "operation": "str"}
PLACE = {"quantity": "str", "x": "float64", "y": "float64"}
_VALUE = {"metric": "str", "value": "float64"}

COLUMNS: dict[TableName, dict[str, str]] = {
    "scalars": RUN | {"status": "str"} | _VALUE,
    "trace": RUN | {"step": "int64"} | _VALUE,
    "histograms": RUN | BIN | {"count": "int64"},
    "points": RUN | PLACE | {"value": "float64"},
    "structures": RUN | EDGE | {"weight": "float64", "chosen": "int64"},
    "measurements": RUN | {"step": "int64"} | _VALUE,
}
"""Name of a file, without `.csv` -> its columns, in order, with their types."""

WHOLE_RUN = -1
"""The step of a measurement that belongs to the run as a whole."""
