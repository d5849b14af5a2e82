"""Predicted losses against true ones: curves over λ and clouds, from small tables of points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch

from bilevel.columns import COLUMNS
from bilevel.plots.look import Look
from bilevel.plots.responses import INSIDE, predicted_against_true, response_curves
from bilevel.plots.sheet import Sheet
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"a": Method(name="First", family="aggregated"), "b": Method(name="Second", family="drmad")},
    {"s": Study(name="The study", methods=("a", "b")), "t": Study(name="Another", methods=("c",))},
)
LAMBDAS = np.linspace(-3, 3, 13)
CLOUD = [(0.5, 0.75), (1.0, 0.5), (0.75, 1.0), (0.5, 1.25)]


def rows(quantity: str, places: object, method: str = "a", seed: int = 0, study: str = "s") -> pd.DataFrame:
    """Rows of a quantity from places (x, y)."""
    found = [(study, method, seed, quantity, *(float(part) for part in place), 1.0) for place in places]  # type: ignore[attr-defined]
    return pd.DataFrame(found, columns=[*COLUMNS["points"]])


def responses(method: str = "a", seed: int = 0, study: str = "s", predicted: float = 0.25) -> pd.DataFrame:
    """A true loss with its least value, 1, at λ = 1, from which the predicted one is off by a constant."""
    true = 1 + (LAMBDAS - 1) ** 2 / 16 + seed
    parts = {
        "true": zip(LAMBDAS, true, strict=True),
        "predicted": zip(LAMBDAS, true + predicted, strict=True),
        "found": [(0.5, 1.125)],
        "optimal": [(1.0, 1.0 + seed)],
    }
    return pd.concat([rows(key, places, method, seed, study) for key, places in parts.items()], ignore_index=True)


def panel_axes(sheet: Sheet, group: int, panel: int) -> Axes:
    return sheet.groups[group].panels[panel].figure.axes[0]


def drawn(axes: Axes) -> Iterator[tuple[str, np.ndarray]]:
    """Lines, upright ones and markers with their places."""
    for line in axes.lines:
        yield kind_of(line), np.asarray(line.get_xydata())


def kind_of(line: Line2D) -> str:
    if line.get_marker() != "None":
        return str(line.get_marker())
    return "line" if len(line.get_xdata()) > 2 else "upright"  # type: ignore[arg-type]


def shapes(axes: Axes, corners: int) -> list[tuple[float, float]]:
    """Middles of the polygons of so many corners that one patch holds."""
    found = []
    for patch in axes.patches:
        if isinstance(patch, PathPatch):
            vertices = np.asarray(patch.get_path().vertices)
            codes = patch.get_path().codes
            starts = np.flatnonzero(np.asarray(codes) == 1)
            if starts[1:2].tolist() in ([], [corners + 1]) and len(vertices) == (corners + 1) * len(starts):
                found += [vertices[start : start + corners].mean(axis=0).tolist() for start in starts]
    return found


def cloud(places: Sequence[tuple[float, float]], method: str = "a", seed: int = 0) -> pd.DataFrame:
    return rows("candidate", places, method, seed)


def test_curves_and_places_of_a_method_stand_where_the_table_says() -> None:
    sheet = response_curves(responses(), ["s"], LOOK)
    found = list(drawn(panel_axes(sheet, 1, 0)))
    true = np.column_stack([LAMBDAS, 1 + (LAMBDAS - 1) ** 2 / 16])
    first, second = [places for kind, places in found if kind == "line"]
    np.testing.assert_allclose(first, true)
    np.testing.assert_allclose(second, np.add(true, [0, 0.25]))
    assert [places[:, 0].tolist() for kind, places in found if kind == "upright"] == [[1.0, 1.0], [0.5, 0.5]]
    assert [places.tolist() for kind, places in found if kind == "D"] == [[[1.0, 1.0]]]
    assert [places.tolist() for kind, places in found if kind == "o"] == [[[0.5, 1.125]]]
    description = sheet.groups[1].panels[0].description
    assert description.startswith("λ found: 0.5, with a loss of 1.125. Best λ: 1, with a loss of 1.")
    assert "From λ = −3 to 3 the hypernetwork's loss is 0.25 off on average." in description


def test_lines_differ_in_more_than_color_and_the_key_says_how() -> None:
    sheet = response_curves(responses(), ["s"], LOOK)
    lines = [line for line in panel_axes(sheet, 1, 0).lines if kind_of(line) == "line"]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    key = sheet.groups[0].panels[0]
    assert [text.get_text() for text in key.figure.axes[0].texts] == [
        "Best response",
        "Hypernetwork",
        "Best λ",
        "λ found",
    ]
    assert "Dashed line: Hypernetwork." in key.description


def test_the_first_seed_that_has_a_curve_is_drawn() -> None:
    later, earlier = responses(seed=4), responses(seed=2)
    alone = rows("found", [(2.0, 9.0)], seed=0)  # without a curve
    gap = responses(seed=1).assign(y=np.nan)
    both = pd.concat([later, earlier, alone, gap]).sample(frac=1, random_state=0)
    assert response_curves(both, ["s"], LOOK).svg("p") == response_curves(earlier, ["s"], LOOK).svg("p")


def test_a_study_is_a_row_and_panels_share_their_axes() -> None:
    both = pd.concat([responses("b"), responses("a", predicted=0.5), responses("c", study="t", seed=1)])
    sheet = response_curves(both, ["s", "t"], LOOK)
    assert [group.heading for group in sheet.groups] == ["", "The study", "Another"]
    assert [[panel.title.split(": ")[1] for panel in group.panels] for group in sheet.groups[1:]] == [
        ["First", "Second"],
        ["c"],
    ]
    every = [panel_axes(sheet, 1, 0), panel_axes(sheet, 1, 1), panel_axes(sheet, 2, 0)]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in every}) == 1
    low, high = every[0].get_ylim()
    assert low < 1.0 < 3.0 < high  # the second seed's true loss


def test_a_hypernetwork_far_off_does_not_flatten_the_true_curve() -> None:
    frame = responses(predicted=0.1)
    far = (frame["quantity"] == "predicted") & (frame["x"] > 1.9)  # three of thirteen places
    frame.loc[far, "y"] = 1000.0
    sheet = response_curves(frame, ["s"], LOOK)
    low, high = panel_axes(sheet, 1, 0).get_ylim()
    assert low < 1.0
    assert 2.0 < high < 2.4  # the true loss is between 1 and 2
    assert "Beyond the axes it is at 3 of 13 places." in sheet.groups[1].panels[0].description
    assert "Beyond" not in response_curves(responses(predicted=0.1), ["s"], LOOK).groups[1].panels[0].description


def test_a_cloud_has_its_points_and_the_line_of_equal_losses() -> None:
    sheet = predicted_against_true(cloud(CLOUD), ["s"], LOOK)
    axes = panel_axes(sheet, 0, 0)
    np.testing.assert_allclose(sorted(shapes(axes, 6)), sorted(CLOUD))
    (line,) = axes.lines
    assert np.asarray(line.get_xdata()).tolist() == np.asarray(line.get_ydata()).tolist()
    assert line.get_xdata()[0] <= 0.5  # type: ignore[index]
    assert line.get_xdata()[1] >= 1.0  # type: ignore[index]
    assert sheet.groups[0].panels[0].description == (
        "4 λ with true losses from 0.5 to 1. Predicted ones are from 0.5 to 1.25, on average 0.188 above the true ones."
    )


def test_predictions_that_are_too_low_are_said_to_be_below() -> None:
    (panel,) = predicted_against_true(cloud([(0.5, 0.25), (1.0, 0.75)]), ["other"], LOOK).groups[0].panels
    assert panel.description == "other: not run."
    description = predicted_against_true(cloud([(0.5, 0.25), (1.0, 0.75)]), ["s"], LOOK).groups[0].panels[0].description
    assert "on average 0.25 below the true ones." in description


def test_dots_are_round_whatever_the_axes() -> None:
    axes = panel_axes(predicted_against_true(cloud([(0, 0), (1000, 1)]), ["s"], LOOK), 0, 0)
    (patch,) = axes.patches
    first = np.asarray(patch.get_path().vertices)[:6]
    spans = [high - low for low, high in (axes.get_xlim(), axes.get_ylim())]
    radii = np.linalg.norm((first - first.mean(axis=0)) / spans * INSIDE, axis=1)
    np.testing.assert_allclose(radii, radii[0])


def test_predictions_far_off_stand_on_the_edge_and_are_counted() -> None:
    far = [(0.6, 1e6), (0.7, 1e3), (0.8, -50.0)]
    sheet = predicted_against_true(cloud([*CLOUD, *far]), ["s"], LOOK)
    axes = panel_axes(sheet, 0, 0)
    low, high = axes.get_ylim()
    assert -0.5 < low < 0.1
    assert 1.4 < high < 2  # true losses are between 0.5 and 1
    np.testing.assert_allclose(sorted(shapes(axes, 6)), sorted(CLOUD))
    at = sorted((round(x, 6), y > (low + high) / 2) for x, y in shapes(axes, 3))
    assert at == [(0.6, True), (0.7, True), (0.8, False)]
    assert "2 above, 1 below" in {text.get_text() for text in axes.texts}
    description = sheet.groups[0].panels[0].description
    assert "Above the axes, arrows on their edge: 2. Below the axes, arrows on their edge: 1." in description


def test_clouds_share_their_axes_and_hold_the_first_seed() -> None:
    frame = pd.concat([cloud([(0.1, 0.2), (5, 6)], "b", 3), cloud(CLOUD, "a", 1), cloud([(9, 9), (8, 8)], "a", 2)])
    sheet = predicted_against_true(frame.sample(frac=1, random_state=0), ["s"], LOOK)
    first, second = panel_axes(sheet, 0, 0), panel_axes(sheet, 0, 1)
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert first.get_xlim()[1] < 8
    np.testing.assert_allclose(sorted(shapes(first, 6)), sorted(CLOUD))
    np.testing.assert_allclose(sorted(shapes(second, 6)), [(0.1, 0.2), (5, 6)])


@pytest.mark.parametrize("draw", [response_curves, predicted_against_true])
def test_what_was_not_run_is_a_gap(draw: object) -> None:
    empty = pd.DataFrame(columns=[*COLUMNS["points"]])
    sheet = draw(empty, ["s", "unlisted"], LOOK)  # type: ignore[operator]
    assert [panel.description for group in sheet.groups for panel in group.panels] == [
        "First: not run.",
        "Second: not run.",
        "unlisted: not run.",
    ]
    one = pd.concat([responses("b"), cloud(CLOUD, "b")])
    (group,) = draw(one, ["s"], LOOK).groups[-1:]  # type: ignore[operator]
    assert [panel.description == "First: not run." for panel in group.panels] == [False, True]


def test_the_same_table_gives_the_same_bytes() -> None:
    frame = pd.concat([responses(), responses("b"), cloud(CLOUD)])
    mixed = frame.sample(frac=1, random_state=1)
    for draw in (response_curves, predicted_against_true):
        assert draw(frame, ["s"], LOOK).svg("p") == draw(mixed, ["s"], LOOK).svg("p")
