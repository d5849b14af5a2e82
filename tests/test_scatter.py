"""One metric of runs against another, from small tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bilevel.columns import COLUMNS
from bilevel.plots.look import Look
from bilevel.plots.scatter import INSIDE, LINE, SIZE, scatter
from bilevel.plots.sheet import Sheet, text_width
from bilevel.report.decks import Method, Study
from bilevel.statistics import mean_interval

LOOK = Look(
    {"a": Method(name="First", family="aggregated"), "b": Method(name="Second", family="drmad")},
    {"s": Study(name="The study", methods=("a", "b"))},
)
Runs = Mapping[str, Sequence[tuple[float, float]]]
SAMPLE: Runs = {"a": [(1000, 0.5), (3000, 0.7), (2000, 0.3)], "b": [(9000, 0.8), (9500, 0.9)]}


def table(runs: Runs, study: str = "s", status: str = "ok") -> pd.DataFrame:
    """Method -> parameters and accuracy of each seed."""
    rows = [
        (study, method, seed, status, metric, value)
        for method, sample in runs.items()
        for seed, values in enumerate(sample)
        for metric, value in zip(("size", "accuracy"), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS["scalars"]])


def plot(frame: pd.DataFrame, studies: Sequence[str] = ("s",), look: Look = LOOK, **options: object) -> Sheet:
    labels = {"x": "size", "y": "accuracy", "x_label": "Parameters", "y_label": "Accuracy, %", "y_factor": 100}
    return scatter(frame, studies, look, **(labels | options))  # type: ignore[arg-type]


def axes_of(sheet: Sheet, panel: int = 0) -> Axes:
    return sheet.groups[0].panels[panel].figure.axes[0]


def points(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() != "None"]


def places(axes: Axes) -> list[tuple[float, float]]:
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in points(axes)]  # type: ignore[index]


def joins(axes: Axes) -> list[list[tuple[float, float]]]:
    lines = [line for line in axes.lines if line.get_marker() == "None" and line.get_transform() == axes.transData]
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in lines]  # type: ignore[misc]


def test_a_point_is_the_mean_over_seeds_with_intervals_in_both_directions() -> None:
    axes = axes_of(plot(table(SAMPLE)))
    assert places(axes) == [(pytest.approx(2000), pytest.approx(50)), (pytest.approx(9250), pytest.approx(85))]
    across, up = axes.collections[:2]
    wide, high = mean_interval([1000, 3000, 2000]), mean_interval([50, 70, 30])
    np.testing.assert_allclose(across.get_paths()[0].vertices, [(wide.low, 50), (wide.high, 50)])  # type: ignore[attr-defined]
    np.testing.assert_allclose(up.get_paths()[0].vertices, [(2000, high.low), (2000, high.high)])  # type: ignore[attr-defined]


def test_every_point_has_its_name_beside_it_and_words() -> None:
    sheet = plot(table(SAMPLE))
    assert {"First", "Second"} <= {text.get_text() for text in axes_of(sheet).texts}
    description = sheet.groups[0].panels[0].description
    assert "First (2000, 50)" in description
    assert "Second (9250, 85)" in description


def test_one_seed_has_no_interval() -> None:
    assert len(axes_of(plot(table({"a": [(1000, 0.5)]}))).collections) == 0


def test_the_axes_hold_every_seed_and_are_shared() -> None:
    frame = pd.concat([table(SAMPLE), table({"a": [(100, 0.99), (200, 0.1)]}, "t")])
    first, second = (axes_of(plot(frame, ("s", "t")), panel) for panel in (0, 1))
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert first.get_xlim()[0] < 100 < 9500 < first.get_xlim()[1]
    assert first.get_ylim()[0] < 10 < 99 < first.get_ylim()[1]


def test_methods_that_differ_in_one_setting_are_joined_in_its_order_and_share_a_marker() -> None:
    runs = {"u": [(5.0, 0.1)], "b_10": [(1.0, 0.3)], "b": [(3.0, 0.2)], "b_0.1": [(2.0, 0.4)]}
    axes = axes_of(plot(table(runs), look=Look(), joined=(("b_0.1", "b", "missing", "b_10"), ("x", "y"))))
    assert joins(axes) == [[(2, pytest.approx(40)), (3, pytest.approx(20)), (1, pytest.approx(30))]]
    assert [line.get_marker() for line in points(axes)] == ["o", "o", "o", "s"]  # b, b_0.1, b_10, u


def test_a_method_has_the_same_marker_in_every_panel() -> None:
    frame = pd.concat([table(SAMPLE), table({"b": [(1, 0.5), (2, 0.6)]}, "t")])
    sheet = plot(frame, ("s", "t"))
    assert points(axes_of(sheet, 0))[1].get_marker() == points(axes_of(sheet, 1))[0].get_marker() == "s"


def test_diverged_seeds_and_missing_values_do_not_count() -> None:
    bad = table({"a": [(7e9, 0.0)]}, status="diverged").assign(seed=9)
    gap = table({"a": [(math.nan, math.nan)]}).assign(seed=8)
    assert plot(pd.concat([table(SAMPLE), bad, gap])).svg("p") == plot(table(SAMPLE)).svg("p")


def test_what_was_not_run_is_said() -> None:
    sheet = plot(table({"a": SAMPLE["a"]}))
    assert "not run: Second" in {text.get_text() for text in sheet.groups[0].panels[0].figure.texts}
    assert "Second not run" in sheet.groups[0].panels[0].description
    (panel,) = plot(pd.DataFrame(columns=[*COLUMNS["scalars"]])).groups[0].panels
    assert panel.description == "The study: not run."
    half = table(SAMPLE)
    half = half[(half["method"] == "a") | (half["metric"] == "size")]  # of b, one of both metrics
    assert len(points(axes_of(plot(half)))) == 1


def test_the_same_table_gives_the_same_bytes() -> None:
    frame = table(SAMPLE)
    assert plot(frame).svg("p") == plot(frame.sample(frac=1, random_state=2)).svg("p")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=8, unique=True))
def test_names_stay_inside_and_meet_neither_one_another_nor_points(spots: list[tuple[int, int]]) -> None:
    runs = {f"method {rank}": [(1000.0 + 100 * x, y / 40)] for rank, (x, y) in enumerate(spots)}
    axes = axes_of(plot(table(runs), look=Look()))
    boxes = []
    for text in axes.texts[1:]:
        left, middle = text.get_position()[0] * INSIDE[0], text.get_position()[1] * INSIDE[1]
        width = text_width(text.get_text(), SIZE)
        boxes.append((left, middle - LINE / 2, left + width, middle + LINE / 2))
    assert len(boxes) == len(spots)
    low, high = axes.get_xlim(), axes.get_ylim()
    for place, (left, bottom, right, top) in enumerate(boxes):
        assert left >= -1e-9
        assert right <= INSIDE[0] + 1e-9
        assert bottom >= -1e-9
        assert top <= INSIDE[1] + 1e-9
        for other in boxes[place + 1 :]:
            assert right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom
        for x, y in places(axes):
            at = ((x - low[0]) / (low[1] - low[0]) * INSIDE[0], (y - high[0]) / (high[1] - high[0]) * INSIDE[1])
            assert not (left < at[0] < right and bottom < at[1] < top)
