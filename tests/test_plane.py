"""Functions on the plane, from small tables of points."""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.contour import QuadContourSet
from matplotlib.patches import PathPatch

from bilevel.columns import COLUMNS
from bilevel.plots import frames
from bilevel.plots.look import Look
from bilevel.plots.plane import ABOVE, BELOW, DEEPEST, POSITIVE, PROBABILITY, SIGNED, Scale, decision, kernel
from bilevel.plots.sheet import Sheet
from bilevel.plots.svg import coarsen, parse
from bilevel.report.decks import Method, Study
from bilevel.tables import csv_text

Function = Callable[[np.ndarray, np.ndarray], np.ndarray]

PAPER, INK = {"light": "#ffffff", "dark": "#14181d"}, {"light": "#1c2127", "dark": "#e3e7eb"}
"""Colors of the page, as in the report's style sheet."""


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rises(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x + 2) / 4


def bump(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp(-((x - 1) ** 2) - y**2).round(6)


def wild(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(4 * x + y) * np.cos(3 * y - x)


def grid(function: Function, quantity: str, method: str = "a", points: int = 9, seed: int = 0) -> pd.DataFrame:
    """A function on [-2, 2] × [-1, 1]."""
    x, y = (part.ravel() for part in np.meshgrid(np.linspace(-2, 2, points), np.linspace(-1, 1, points)))
    return rows(quantity, zip(x, y, np.broadcast_to(function(x, y), x.shape), strict=True), method, seed)


def rows(quantity: str, values: object, method: str = "a", seed: int = 0) -> pd.DataFrame:
    """Rows (x, y, value) of a quantity."""
    found = [("one", method, seed, quantity, *(float(part) for part in value)) for value in values]  # type: ignore[attr-defined]
    return pd.DataFrame(found, columns=[*COLUMNS["points"]])


def samples(number: int = 6, method: str = "a") -> pd.DataFrame:
    random = np.random.default_rng(0)
    return rows(
        "train", np.column_stack([random.uniform(-2, 2, number), np.zeros(number), np.arange(number) % 2]), method
    )


def whole(method: str = "a", points: int = 9, number: int = 6) -> pd.DataFrame:
    """All that a method writes."""
    parts = [
        samples(number, method),
        grid(rises, "decision_start", method, points),
        grid(wild, "decision_end", method, points),
        rows("center", [(1, 0, 1)], method),
        grid(lambda x, y: x, "kernel_start", method, points),
        grid(bump, "kernel_end", method, points),
    ]
    return pd.concat(parts, ignore_index=True)


def axes_of(sheet: Sheet, group: int = 1, panel: int = 0) -> Axes:
    return sheet.groups[group].panels[panel].figure.axes[0]


def layers(axes: Axes) -> list[tuple[str, float, np.ndarray]]:
    """Hue, opacity and corners of every filled layer that shows, from the lowest to the topmost."""
    found = [item for item in axes.collections if isinstance(item, QuadContourSet) and item.filled]
    return [
        (to_hex(color), float(color[3]), np.concatenate([path.vertices for path in item.get_paths()]))  # type: ignore[misc]
        for item in found
        for color in item.get_facecolor()
    ]


def lines(axes: Axes) -> dict[float, np.ndarray]:
    """Corners of every contour line, by level."""
    found = [item for item in axes.collections if isinstance(item, QuadContourSet) and not item.filled]
    return {
        float(level): np.asarray(path.vertices)
        for item in found
        for level, path in zip(item.levels, item.get_paths(), strict=True)
    }


def marks(axes: Axes) -> dict[str, int]:
    """How many hollow and filled marks there are."""
    patches = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    count = {"filled" if patch.get_facecolor()[3] else "hollow": patch.get_path() for patch in patches}
    return {kind: int((path.codes == path.MOVETO).sum()) for kind, path in count.items()}


def titles(sheet: Sheet) -> list[tuple[str, list[str]]]:
    return [(group.heading, [panel.title for panel in group.panels]) for group in sheet.groups]


def test_a_method_is_a_row_with_a_panel_before_and_a_panel_after() -> None:
    sheet = decision(pd.concat([whole("b"), whole("a")]), ("one",), Look())
    assert titles(sheet) == [
        ("", ["Key"]),
        ("a", ["Probability of class 1: a, before", "Probability of class 1: a, after"]),
        ("b", ["Probability of class 1: b, before", "Probability of class 1: b, after"]),
    ]
    assert [axes_of(sheet, 1, panel).get_title("left") for panel in (0, 1)] == ["Before", "After"]


def test_names_and_order_come_from_the_look() -> None:
    look = Look(
        {"a": Method(name="Linear"), "b": Method(name="Chosen")}, {"one": Study(name="Kernels", methods=("b", "a"))}
    )
    points = pd.concat([whole("a"), whole("b")])
    assert [heading for heading, _ in titles(decision(points, ("one",), look))] == ["", "Chosen", "Linear"]
    headings = [heading for heading, _ in titles(decision(points, ("one", "two"), look))]
    assert headings == ["", "Kernels: Chosen", "Kernels: Linear", "two"]


def test_only_chosen_methods_are_drawn() -> None:
    sheet = kernel(pd.concat([whole("a"), whole("b")]), ("one",), Look(), methods=("b",))
    assert [heading for heading, _ in titles(sheet)] == ["", "b"]


def test_layers_end_where_the_function_has_their_edge() -> None:
    found = layers(axes_of(decision(whole(), ("one",), Look())))
    above, below = ([corners for hue, _, corners in found if hue == side] for side in (ABOVE, BELOW))
    # p = (x + 2) / 4
    assert [corners[:, 0].min() for corners in above] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert [corners[:, 0].max() for corners in below] == pytest.approx([0.0, -0.5, -1.0, -1.5])
    assert {corners[:, 0].max() for corners in above} == {2.0}


def test_layers_on_each_other_make_equal_steps_of_opacity() -> None:
    found = layers(axes_of(decision(whole(), ("one",), Look())))
    for side in (ABOVE, BELOW):
        clear = np.cumprod([1 - opacity for hue, opacity, _ in found if hue == side])
        assert 1 - clear == pytest.approx(DEEPEST * np.array([0.25, 0.5, 0.75, 1.0]))


def test_the_contour_line_is_where_the_probability_is_one_half() -> None:
    found = lines(axes_of(decision(whole(), ("one",), Look())))
    assert list(found) == [0.5]
    assert found[0.5][:, 0] == pytest.approx(0.0)
    assert sorted(found[0.5][:, 1])[:: len(found[0.5]) - 1] == [-1.0, 1.0]


def test_axes_have_one_unit_and_end_with_the_grid() -> None:
    axes = axes_of(decision(whole(), ("one",), Look()))
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2, 2), (-1, 1))
    width, height = axes.figure.get_size_inches() * axes.get_position().size
    assert width / 4 == pytest.approx(height / 2)


def test_samples_of_the_classes_differ_in_shape_and_filling() -> None:
    points = pd.concat([whole(), rows("train", [(0, 0.5, 1), (9, 9, 1), (math.nan, 0, 1)])])  # the last two are nowhere
    sheet = decision(points, ("one",), Look())
    assert marks(axes_of(sheet)) == {"hollow": 3, "filled": 4}
    hollow, filled = axes_of(sheet).patches
    corners = [np.diff(np.flatnonzero(patch.get_path().codes == 1))[0] for patch in (hollow, filled)]
    assert corners == [7, 4]
    assert {"class 0", "class 1"} <= {text.text for text in parse(sheet.svg("p")).iter("text")}


def test_a_sample_that_rounding_put_just_outside_the_grid_counts() -> None:
    points = pd.concat(
        [grid(rises, "decision_start"), rows("train", [(-2.000001, 0, 0), (2.000001, -1, 1), (2.1, 0, 1)])]
    )
    sheet = decision(points, ("one",), Look(), quantities={"decision_start": "Before"})
    assert marks(axes_of(sheet)) == {"hollow": 1, "filled": 1}
    assert "0 of 1 samples of class 0 and 1 of 1 samples of class 1" in sheet.groups[1].panels[0].description


def test_the_kernel_has_its_center_marked_where_the_table_says() -> None:
    sheet = kernel(whole(), ("one",), Look())
    assert marks(axes_of(sheet)) == {"filled": 1}
    (diamond,) = axes_of(sheet).patches
    assert diamond.get_path().vertices[:4].mean(0) == pytest.approx([1, 0])  # type: ignore[call-overload,index,union-attr]
    points = whole()
    without = kernel(points[points["quantity"] != "center"], ("one",), Look())
    assert marks(axes_of(without)) == {}
    assert [sheet.groups[0].panels[0].description.endswith("Diamond: x₀.") for sheet in (sheet, without)] == [
        True,
        False,
    ]


def test_a_kernel_has_two_hues_only_where_it_is_negative() -> None:
    points = whole()
    both = kernel(points, ("one",), Look())
    assert {hue for hue, _, _ in layers(axes_of(both))} == {BELOW, ABOVE}
    assert list(lines(axes_of(both))) == [-1, -0.5, 0.5, 1]
    positive = kernel(points[points["quantity"] != "kernel_start"], ("one",), Look())
    assert {hue for hue, _, _ in layers(axes_of(positive, 1, 1))} == {ABOVE}
    assert "Blue" in both.groups[0].panels[0].description
    assert "Blue" not in positive.groups[0].panels[0].description


def test_there_is_no_edge_at_zero_where_the_rounded_tail_of_a_kernel_begins() -> None:
    assert 0 not in SIGNED.edges + POSITIVE.edges + SIGNED.lines + POSITIVE.lines


def test_the_key_is_drawn_as_the_panels_are() -> None:
    key = axes_of(decision(whole(), ("one",), Look()), 0)
    assert [corners[:, 0].min() for hue, _, corners in layers(key) if hue == ABOVE] == [0.5, 0.625, 0.75, 0.875]
    assert [text.get_text() for text in key.get_xticklabels()] == ["0", "0.25", "0.5", "0.75", "1"]
    signed = axes_of(kernel(whole(), ("one",), Look()), 0)
    assert [text.get_text() for text in signed.get_xticklabels()] == ["−1", "−0.5", "0", "0.5", "1"]


def lab(color: np.ndarray) -> np.ndarray:
    """Oklab (B. Ottosson, 2020), in which distances are about those that are seen."""
    linear = linear_light(color)
    cones = np.cbrt(
        np.array(
            [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
        )
        @ linear
    )
    opponents = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    return np.array(opponents) @ cones


def linear_light(color: np.ndarray) -> np.ndarray:
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def on_page(scale: Scale, theme: str, side: float) -> list[np.ndarray]:
    """Colors of the bands on one side, from the page's own outwards."""
    colors = [np.array(to_rgb(PAPER[theme]))]
    for way, _, hue, opacity in scale.layers():
        if way == side:
            colors.append(opacity * np.array(to_rgba(hue)[:3]) + (1 - opacity) * colors[-1])
    return colors


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("scale", [PROBABILITY, SIGNED], ids=["probability", "kernel"])
def test_bands_are_evenly_apart_and_ink_is_legible_on_all_of_them(scale: Scale, side: float, theme: str) -> None:
    colors = on_page(scale, theme, side)
    steps = [float(np.linalg.norm(lab(b) - lab(a))) for a, b in pairwise(colors)]
    assert len(steps) == 4
    assert min(steps) > 0.8 * max(steps)
    weights = [0.2126, 0.7152, 0.0722]
    ink = float(linear_light(np.array(to_rgb(INK[theme]))) @ weights)
    for color in colors:
        light, dark = sorted([float(linear_light(color) @ weights), ink], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize(("figure", "prefix"), [(decision, "decision"), (kernel, "kernel")])
def test_what_is_missing_is_a_visible_gap(figure: Callable[..., Sheet], prefix: str) -> None:
    look = Look({}, {"one": Study(name="Kernels", methods=("a", "b"))})
    points = whole()
    sheet = figure(points[points["quantity"] != f"{prefix}_end"], ("one",), look)
    before, after = sheet.groups[1].panels
    assert before.coarse
    assert after.description == "After: no values."
    assert [panel.description for panel in sheet.groups[2].panels] == ["b: not run."]
    assert {"not run", "no values"} <= {text.text for text in parse(sheet.svg("p")).iter("text")}


@pytest.mark.parametrize("figure", [decision, kernel])
def test_without_points_there_is_a_figure_that_says_so(figure: Callable[..., Sheet], tmp_path: Path) -> None:
    sheet = figure(frames.read(tmp_path, "points"), ("one",), Look())
    assert [panel.description for group in sheet.groups for panel in group.panels] == ["one: not run."]
    assert "not run" in sheet.svg("p")


@pytest.mark.parametrize("figure", [decision, kernel])
@pytest.mark.parametrize("value", [-7.0, -0.25, 0.0, 0.25, 0.5, 1.0, 1e6])
def test_a_constant_field_is_a_plain_panel(figure: Callable[..., Sheet], value: float) -> None:
    parts = [grid(lambda x, y: np.array(value), f"{name}_start") for name in ("decision", "kernel")]
    sheet = figure(pd.concat(parts), ("one",), Look())
    axes = axes_of(sheet)
    assert len({hue for hue, _, _ in layers(axes)}) <= 1
    assert not lines(axes)
    assert "clip-path" in sheet.svg("p") or not layers(axes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_a_hole(value: float) -> None:
    points = whole()
    points.loc[(points["quantity"] == "decision_start") & (points["x"] > 0.9), "value"] = value
    sheet = decision(points, ("one",), Look())
    # the last column of nine that has numbers is at 0.5
    assert max(corners[:, 0].max() for _, _, corners in layers(axes_of(sheet))) == 0.5
    assert "From 0 to 0.625." in sheet.groups[1].panels[0].description
    assert sheet.svg("p")


@pytest.mark.parametrize(
    "left", [[], [(0, 0, 0.3)], [(0, 0, 0.3), (1, 0, 0.4)], [(0, 0, math.nan), (1, 0, 1), (0, 1, math.nan), (1, 1, 0)]]
)
def test_too_few_values_for_a_grid_are_a_gap(left: list[tuple[float, float, float]]) -> None:
    sheet = decision(pd.concat([rows("decision_start", left), grid(rises, "decision_end")]), ("one",), Look())
    assert sheet.groups[1].panels[0].description == "Before: no values."
    assert layers(axes_of(sheet, 1, 1))


def test_a_grid_with_gaps_is_drawn_as_far_as_it_goes() -> None:
    points = whole(points=21)
    sheet = decision(points.sample(frac=0.7, random_state=0), ("one",), Look())
    assert layers(axes_of(sheet))
    assert sheet.svg("p")


def test_of_several_seeds_the_first_is_drawn() -> None:
    points = pd.concat([grid(wild, "decision_start", seed=1), grid(rises, "decision_start"), samples()])
    axes = axes_of(decision(points, ("one",), Look()))
    assert lines(axes)[0.5][:, 0] == pytest.approx(0.0)


def test_words_say_what_is_where() -> None:
    points = pd.concat([whole(), rows("train", [(1, 0, 1), (-1, 0, 1)], method="b"), grid(rises, "decision_end", "b")])
    words = decision(points, ("one",), Look(), methods=("b",)).groups[1].panels[1].description
    assert words == "From 0 to 1. It is above one half on 44 % of the plane, where 1 of 2 samples of class 1 stand."
    words = kernel(points, ("one",), Look()).groups[1].panels[1].description
    assert words == "From 0 to 1. It is largest at (1, 0); x₀ is (1, 0)."


@pytest.mark.parametrize("figure", [decision, kernel])
def test_figures_are_small_and_the_same_table_gives_the_same_bytes(
    figure: Callable[..., Sheet], tmp_path: Path
) -> None:
    points = pd.concat([whole(method, points=41, number=200) for method in ("a", "b", "c")])
    text = figure(points, ("one",), Look()).svg("p")
    assert len(text.encode()) < 150_000
    (tmp_path / "points.csv").write_text(csv_text(points.sample(frac=1, random_state=1)))
    assert figure(frames.read(tmp_path, "points"), ("one",), Look()).svg("p") == text


@pytest.mark.parametrize("figure", [decision, kernel])
def test_panels_fit_two_to_a_phone(figure: Callable[..., Sheet]) -> None:
    elements = [
        item for item in parse(figure(whole(), ("one",), Look()).svg("p")).iter("svg") if item.get("class") == "panel"
    ]
    key, *panels = (float((item.get("viewBox") or "").split()[2]) for item in elements)
    assert key <= 320
    # pixels of a phone of 360, less its margins; the page makes panels 5 % narrower and leaves 20 between them
    assert 2 * 0.95 * max(panels) * 4 / 3 + 20 <= 328


def corners(data: str) -> list[list[tuple[float, float]]]:
    """Places that a path of relative lines goes through, for each of its parts."""
    parts: list[list[tuple[float, float]]] = []
    at = start = (0.0, 0.0)
    for letter, rest in re.findall(r"([mz])([^mz]*)", data):
        if letter == "z":
            at = start
            continue
        numbers = [float(number) for number in re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)", rest)]
        parts.append([])
        for across, down in zip(numbers[::2], numbers[1::2], strict=True):
            at = (at[0] + across, at[1] + down)
            parts[-1].append(at)
        start = parts[-1][0]
    return parts


def test_coarse_paths_go_through_the_same_places_to_a_tenth() -> None:
    random = np.random.default_rng(0)
    places = np.concatenate([random.uniform(-200, 200, (40, 2)), 100 + random.uniform(-0.3, 0.3, (400, 2))]).round(2)
    parts = [places[:150], places[150:151], places[151:]]
    text = "".join(
        "M {} {} ".format(*part[0]) + "".join("L {} {} ".format(*to) for to in part[1:]) + "z " for part in parts
    )
    root = parse(
        f'<svg xmlns="http://www.w3.org/2000/svg"><path d="{text}"/><path d="M 0 0 C 1 2 3 4 5 6"/><path/></svg>'
    )
    coarsen(root)
    assert len(root[0].get("d", "")) < 0.75 * len(text)
    assert root[1].get("d") == "M 0 0 C 1 2 3 4 5 6"
    assert root[2].get("d") is None
    found = corners(root[0].get("d", ""))
    assert [len(part) for part in found] == [len(part) for part in parts]
    for part, expected in zip(found, parts, strict=True):
        assert np.abs(np.array(part) - expected).max() <= 0.05 + 1e-9
