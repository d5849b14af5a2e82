"""Trials of a search on a square with a function at each of two sides, from small tables of points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bilevel.columns import COLUMNS
from bilevel.plots.look import FAMILIES, Look
from bilevel.plots.projections import projections
from bilevel.plots.sheet import Panel
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"grid": Method(name="Grid", family="none"), "random": Method(name="Random", family="drmad")},
    {"s": Study(name="The study", methods=("grid", "random", "tpe")), "t": Study(name="Another", methods=("grid",))},
)
GRID = [(x, y) for x in (0.25, 0.75) for y in (0.125, 0.5)]
SCATTERED = [(0.125, 0.25), (0.5, 0.75), (0.875, 0.375)]
ALONG = np.linspace(0, 1, 5)


def important(x: float) -> float:
    return 4 * (x - 0.25) ** 2


def unimportant(y: float) -> float:
    return y / 8


def search(trials: Sequence[tuple[float, float]], method: str, seed: int = 0, study: str = "s") -> pd.DataFrame:
    found: list[tuple[str, float, float, float]] = []
    for x, y in trials:
        found += [
            ("point", x, y, important(x) + unimportant(y)),
            ("projection_important", x, 0.0, important(x)),
            ("projection_unimportant", 0.0, y, unimportant(y)),
        ]
    for at in ALONG:
        found += [("curve_important", at, 0.0, important(at)), ("curve_unimportant", 0.0, at, unimportant(at))]
    return pd.DataFrame([(study, method, seed, *row) for row in found], columns=[*COLUMNS["points"]])


BOTH = pd.concat([search(GRID, "grid"), search(SCATTERED, "random")], ignore_index=True)


def panels(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> list[Panel]:
    return list(projections(frame, ["s"], LOOK, methods=methods).groups[0].panels)


def parts(panel: Panel) -> tuple[Axes, Axes, Axes]:
    """The square, the strip above it and that at its side, told apart by where they are."""
    square, above, beside = panel.figure.axes
    boxes = [axes.get_position() for axes in (square, above, beside)]
    assert boxes[1].y0 > boxes[0].y1
    assert boxes[2].x0 > boxes[0].x1
    assert (boxes[1].x0, boxes[1].x1) == (boxes[0].x0, boxes[0].x1)
    assert (boxes[2].y0, boxes[2].y1) == (boxes[0].y0, boxes[0].y1)
    return square, above, beside


def places(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def marked(axes: Axes) -> Line2D:
    (line,) = [line for line in axes.lines if line.get_marker() == "o"]
    return line


def curve(axes: Axes) -> list[list[float]]:
    (line,) = [line for line in axes.lines if len(places(line)) == len(ALONG) and line.get_marker() == "None"]
    return places(line)


def threads(axes: Axes) -> list[list[list[float]]]:
    return sorted(places(line) for line in axes.lines if line.get_alpha() is not None)


def test_points_and_marks_stand_where_the_table_says() -> None:
    _, panel = panels(BOTH, ("grid", "random"))
    square, above, beside = parts(panel)
    assert sorted(places(marked(square))) == sorted(map(list, SCATTERED))
    assert sorted(places(marked(above))) == sorted([x, important(x)] for x, _ in SCATTERED)
    assert sorted(places(marked(beside))) == sorted([unimportant(y), y] for _, y in SCATTERED)
    assert {marked(axes).get_color() for axes in (square, above, beside)} == {FAMILIES["drmad"]}


def test_the_functions_run_along_their_sides_on_one_scale() -> None:
    found = [parts(panel) for panel in panels(BOTH, ("grid", "random"))]
    for _, above, beside in found:
        assert curve(above) == [[at, important(at)] for at in ALONG]
        assert curve(beside) == [[unimportant(at), at] for at in ALONG]
    assert len({above.get_ylim() for _, above, _ in found} | {beside.get_xlim() for _, _, beside in found}) == 1
    low, high = found[0][1].get_ylim()
    assert low < 0
    assert important(1.0) < high < 1.2 * important(1.0)
    for square, above, beside in found:
        assert {square.get_xlim(), square.get_ylim(), above.get_xlim(), beside.get_ylim()} == {(0.0, 1.0)}


def test_a_unit_of_the_value_is_as_long_upwards_as_to_the_side() -> None:
    _, above, beside = parts(panels(BOTH)[0])
    width, height = above.figure.get_size_inches()  # type: ignore[union-attr]
    assert above.get_position().height * height == pytest.approx(beside.get_position().width * width)


def test_trials_in_line_share_a_thread_to_their_mark() -> None:
    square, above, beside = parts(panels(BOTH)[0])
    assert threads(square) == [
        [[0.25, 0.125], [0.25, 1.0]],
        [[0.25, 0.125], [1.0, 0.125]],
        [[0.25, 0.5], [1.0, 0.5]],
        [[0.75, 0.125], [0.75, 1.0]],
    ]
    assert [(thread[0][0], thread[1]) for thread in threads(above)] == [
        (0.25, [0.25, important(0.25)]),
        (0.75, [0.75, important(0.75)]),
    ]
    assert [(thread[0][1], thread[1]) for thread in threads(beside)] == [
        (0.125, [unimportant(0.125), 0.125]),
        (0.5, [unimportant(0.5), 0.5]),
    ]
    assert len(threads(parts(panels(BOTH)[1])[0])) == 2 * len(SCATTERED)


def test_places_of_each_coordinate_are_counted() -> None:
    rounded = BOTH.assign(x=BOTH["x"] + 1e-12 * np.arange(len(BOTH)))
    grid, random = panels(rounded)[:2]
    assert "places: 2 of x, 2 of y" in {text.get_text() for text in grid.figure.texts}
    assert "places: 3 of x, 3 of y" in {text.get_text() for text in random.figure.texts}
    assert grid.description == (
        "4 trials at 2 places of x, which matters, and 2 of y. Values are from 0.016 to 1.062. "
        "What x gives to them is between 0 and 2.25. What y gives to them is between 0 and 0.125."
    )
    assert random.title == "Trials of a search: Random"


def test_the_first_seed_that_has_points_is_drawn() -> None:
    early = search(GRID, "random", 0)
    late, middle = search(GRID, "random", 5), search(SCATTERED, "random", 3)
    frame = pd.concat([late, middle, early[early["quantity"] != "point"]]).sample(frac=1, random_state=0)
    drawn = projections(frame, ["s"], LOOK).svg("p")
    assert drawn == projections(middle, ["s"], LOOK).svg("p")
    assert drawn != projections(late, ["s"], LOOK).svg("p")


def test_methods_that_were_not_run_are_gaps_and_others_are_left_out() -> None:
    assert [panel.title for panel in panels(BOTH)][2:] == ["tpe"]
    assert [panel.description for panel in panels(search(GRID, "grid"), ("grid", "random"))][1:] == ["Random: not run."]
    assert [panel.title for panel in panels(BOTH, ("random",))] == ["Trials of a search: Random"]
    empty = BOTH[:0]
    assert [panel.description for panel in panels(empty, ("grid",))] == ["Grid: not run."]
    (group,) = projections(empty, ["unlisted"], LOOK).groups
    assert [panel.description for panel in group.panels] == ["unlisted: not run."]


def test_several_studies_are_rows() -> None:
    sheet = projections(pd.concat([BOTH, search(GRID, "grid", study="t")]), ["s", "t"], LOOK)
    assert [(group.heading, len(group.panels)) for group in sheet.groups] == [("The study", 3), ("Another", 1)]
