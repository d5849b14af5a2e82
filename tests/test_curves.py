"""Curves and pieces from small tables."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from bilevel.plots.curves import curves
from bilevel.plots.look import DASHES, Look
from bilevel.plots.pieces import algorithms_pieces
from bilevel.plots.sheet import Sheet
from bilevel.plots.svg import parse
from bilevel.report.decks import Method, Study
from bilevel.statistics import mean_interval

COLUMNS = ["study", "method", "seed", "step", "metric", "value"]


def table(values: dict[tuple[str, str], dict[int, list[float]]], study: str = "one") -> pd.DataFrame:
    """(method, metric) -> step -> values over seeds."""
    rows = [
        (study, method, seed, step, metric, value)
        for (method, metric), steps in values.items()
        for step, sample in steps.items()
        for seed, value in enumerate(sample)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def drawn(sheet: Sheet, panel: int = 0) -> list[list[tuple[float, float]]]:
    """Points of every line of a panel that follows data, in the units of the axes."""
    axes = sheet.groups[0].panels[panel].figure.axes[0]
    lines = [line for line in axes.lines if line.get_transform() == axes.transData and len(line.get_xydata())]
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in lines]


def ticks(sheet: Sheet, axis: str, panel: int = 0) -> list[str]:
    axes = sheet.groups[0].panels[panel].figure.axes[0]
    return [text.get_text() for text in getattr(axes, f"get_{axis}ticklabels")()]


def plot(frame: pd.DataFrame, studies: tuple[str, ...] = ("one",), **settings: object) -> Sheet:
    labels = {"x_label": "Step", "y_label": "Error"}
    return curves(frame, studies, Look(), **({"y": "error"} | labels | settings))  # type: ignore[arg-type]


def test_a_line_is_the_mean_over_seeds_against_the_step() -> None:
    sheet = plot(table({("a", "error"): {0: [1.0, 3.0], 10: [2.0, 6.0]}}))
    assert drawn(sheet)[0] == [(0, 2), (10, 4)]


def test_on_a_logarithmic_axis_it_is_the_geometric_mean() -> None:
    values = {1: [1e-2, 1e-4], 100: [1e-5, 1e-7]}
    sheet = plot(table({("a", "error"): values}), x_log=True, y_log=True)
    assert drawn(sheet)[0] == [(0, pytest.approx(-3)), (2, pytest.approx(-6))]
    assert ticks(sheet, "y") == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"]
    assert ticks(sheet, "x") == ["1", "10", "100"]


def test_zero_stands_at_the_foot_and_breaks_the_line() -> None:
    sheet = plot(table({("a", "error"): {1: [0.0, 0.0], 2: [1e-3, 1e-3], 3: [1e-5, 0.0]}}), y_log=True)
    lines = drawn(sheet)
    low = sheet.groups[0].panels[0].figure.axes[0].get_ylim()[0]
    assert [len(line) for line in lines[:1]] == [1]
    assert low < lines[0][0][1] < -5
    assert [(2, pytest.approx(-3)), (3, pytest.approx(-5))] in lines  # a seed above zero counts alone
    assert ticks(sheet, "y")[0] == "0"
    assert "Zero stands at the foot" in sheet.groups[0].panels[0].description


def test_without_zeros_there_is_no_foot() -> None:
    sheet = plot(table({("a", "error"): {1: [1e-3], 2: [1e-9]}}), y_log=True)
    assert "0" not in ticks(sheet, "y")


def test_another_metric_may_be_the_horizontal_axis() -> None:
    frame = table({("a", "error"): {1: [5.0], 2: [7.0]}, ("a", "spent"): {1: [10.0], 2: [1000.0]}})
    assert drawn(plot(frame, x="spent"))[0] == [(10, 5), (1000, 7)]
    assert drawn(plot(frame, x="spent", x_log=True))[0] == [(pytest.approx(1), 5), (pytest.approx(3), 7)]


def test_what_is_not_above_zero_has_no_place_on_a_logarithmic_horizontal_axis() -> None:
    assert drawn(plot(table({("a", "error"): {0: [1.0], 1: [2.0], 10: [3.0]}}), x_log=True))[0] == [(0, 2), (1, 3)]


def test_a_reference_is_dotted_and_named_where_there_is_one() -> None:
    frame = table({("a", "error"): {1: [1.0], 2: [2.0]}, ("a", "bound"): {2: [5.0]}})
    sheet = plot(frame, reference="bound", reference_label="bound")
    assert [(2, 5)] in drawn(sheet)
    assert "dotted: bound" in sheet.svg("p")
    assert "dotted" not in plot(frame).svg("p")
    without = table({("a", "error"): {1: [1.0], 2: [2.0]}})
    assert "dotted" not in plot(without, reference="bound", reference_label="bound").svg("p")


def test_only_chosen_methods_are_drawn_and_set_the_axes() -> None:
    frame = table({("a", "error"): {1: [1.0], 2: [2.0]}, ("b", "error"): {1: [1e6], 2: [2e6]}})
    sheet = plot(frame, methods=("a",))
    assert drawn(sheet)[0] == [(1, 1), (2, 2)]
    assert sheet.groups[0].panels[0].figure.axes[0].get_ylim()[1] < 10
    assert "b" not in [text.text for text in parse(sheet.svg("p")).iter("text")]


def test_panels_share_their_axes_and_a_study_without_rows_is_a_gap() -> None:
    frame = pd.concat([table({("a", "error"): {1: [1.0]}}), table({("a", "error"): {9: [4.0]}}, "two")])
    sheet = plot(frame, ("one", "two", "three"))
    first, second, third = sheet.groups[0].panels
    assert first.figure.axes[0].get_xlim() == second.figure.axes[0].get_xlim() == (1, 9)
    assert first.figure.axes[0].get_ylim() == second.figure.axes[0].get_ylim()
    assert third.description == "three: not run."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_left_out(value: float) -> None:
    sheet = plot(table({("a", "error"): {1: [1.0, 3.0], 2: [4.0, value], 3: [value, value]}}))
    assert drawn(sheet)[0] == [(1, 2), (2, 4)]


def test_bands_are_t_intervals() -> None:
    sheet = plot(table({("a", "error"): {0: [1.0, 2.0, 3.0], 1: [2.0, 3.0, 7.0]}}))
    (band,) = sheet.groups[0].panels[0].figure.axes[0].collections
    points = band.get_paths()[0].vertices  # type: ignore[union-attr]
    expected = mean_interval([2.0, 3.0, 7.0])
    heights = {round(float(y), 9) for x, y in points if x == 1}
    assert {round(expected.low, 9), round(expected.high, 9)} <= heights


def test_the_same_table_gives_the_same_bytes() -> None:
    frame = table({("a", "error"): {1: [1e-3, 1e-2], 2: [0.0, 0.0]}})
    assert plot(frame, y_log=True).svg("p") == plot(frame.sample(frac=1, random_state=1), y_log=True).svg("p")


def test_pieces_are_drawn_with_gaps_at_jumps() -> None:
    columns = {
        "x": [0.0, 1.0, 2.0, 3.0],
        "branch": [1.0, 1.0, 2.0, 2.0],
        "value": [0.0, 1.0, 5.0, 6.0],
        "derivative": [1.0] * 4,
    }
    rows = {("a", metric): {k: [v] for k, v in enumerate(column)} for metric, column in columns.items()}
    (panel,) = algorithms_pieces(table(rows), ("one",), Look()).groups[0].panels
    line = panel.figure.axes[0].lines[0].get_ydata()
    assert [str(float(y)) for y in line] == ["0.0", "1.0", "nan", "5.0", "6.0"]  # type: ignore[arg-type,union-attr]
    assert re.match(r"a: 2 pieces for x from 0 to 3", panel.description)
    (gap,) = algorithms_pieces(pd.DataFrame(columns=COLUMNS), ("one",), Look()).groups[0].panels
    assert gap.description == "one: not run."


def test_pieces_of_a_line_are_marked() -> None:
    values = {step: [float(step)] * 2 for step in range(5)}
    shares = {1: [0.0, 0.0], 2: [1.0, 1.0], 3: [0.9, 0.9], 4: [1.0, 1.0]}
    frame = table({("a", "error"): values, ("a", "predicted"): shares, ("b", "error"): values})
    sheet = plot(frame, marked="predicted", marked_label="predicted")
    shaded = [line for line in drawn(sheet) if len(line) == 2]
    assert shaded == [[(1, 1), (2, 2)], [(3, 3), (4, 4)]]
    assert "shaded: predicted" in {element.text for element in parse(sheet.svg("x")).iter("text")}
    assert [line for line in drawn(plot(frame)) if len(line) == 2] == []


def test_a_start_may_be_left_out() -> None:
    frame = pd.concat(
        [table({("a", "error"): {0: [0.0], 4: [5.0], 5: [6.0], 40: [7.0]}}), table({("a", "error"): {4: [1.0]}}, "two")]
    )
    sheet = plot(frame, ("one", "two"), skipped=0.1)
    assert drawn(sheet)[0] == [(4, 5), (5, 6), (40, 7)]
    assert drawn(sheet, 1)[0] == [(4, 1)]
    assert sheet.groups[0].panels[0].figure.axes[0].get_xlim() == (4, 40)


def test_studies_may_have_axes_of_their_own_that_hold_means_and_most_of_the_bands() -> None:
    frame = pd.concat(
        [
            table({("a", "error"): {0: [0.0, 2.0], 10: [1.0, 5.0]}}),
            table({("a", "error"): {0: [50.0, 60.0], 1000: [57.0, 57.0]}}, "two"),
        ]
    )
    sheet = plot(frame, ("one", "two"), own_axes=True)
    one, two = (panel.figure.axes[0] for panel in sheet.groups[0].panels)
    assert (one.get_xlim(), two.get_xlim()) == ((0, 10), (0, 1000))
    assert one.get_ylim() == pytest.approx((0 - 0.1, 4.1))  # bands reach much further
    assert two.get_ylim() == pytest.approx((54 - 0.1, 58.1))


def test_members_of_a_family_that_share_a_study_differ_in_their_dashes() -> None:
    methods = {key: Method(name=key, family="none") for key in "abcdefgh"} | {"x": Method(name="x", family="exact")}
    studies = {"one": Study(name="one", methods=tuple("abcdex")), "two": Study(name="two", methods=("f", "a", "g"))}
    look = Look(methods, studies)
    for study in studies.values():
        family = [look.dash(key) for key in study.methods if key != "x"]
        assert len(set(family)) == len(family)
    assert look.dash("x") == look.dash("a") == DASHES[0]
    assert all(look.dash(key) == Look(methods).dash(key) for key in "abcde")


def test_the_sample_beside_a_name_shows_whole_dashes() -> None:
    """They are scaled by the width of the line, 1.7 points; the sample is 0.22 inches long."""
    assert all(isinstance(dash, str) or sum(dash[1]) * 1.7 <= 0.22 * 72 for dash in DASHES)


def test_methods_of_the_decks_that_share_a_study_differ() -> None:
    look = Look.read(Path(__file__).parent.parent / "report/decks.yaml")
    for name, study in look.studies.items():
        drawn = [(look.color(key), look.dash(key)) for key in study.methods]
        assert not name.startswith("distillation") or len(set(drawn)) == len(drawn)
