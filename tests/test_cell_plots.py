"""Searched cells drawn as graphs, from made-up tables and from every cell that a space allows."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle

from bilevel.columns import COLUMNS
from bilevel.plots.cells import ALONE, COMMON, ONLY, PARTLY, RADIUS, SIZE, Kind, cells
from bilevel.plots.look import Look
from bilevel.plots.operations import name_of
from bilevel.plots.sheet import Sheet, text_width
from bilevel.plots.svg import parse
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"a": Method(name="First", family="aggregated"), "b": Method(name="Second", family="drmad")},
    {"s": Study(name="The study", methods=("a", "b"))},
)
DOMAINS = {"0": "0°", "180": "180°", "90": "90°"}
LARGE = 320 / 72  # inches that fit a phone, as in test_plots

Choices = dict[str, list[tuple[int, int, str]]]

VISION: Choices = {
    "0": [(0, 2, "skip"), (1, 2, "sep_conv_3"), (0, 3, "max_pool_3"), (2, 3, "sep_conv_5")],
    "180": [(0, 2, "skip"), (1, 2, "sep_conv_3"), (0, 3, "avg_pool_3"), (1, 3, "skip")],
    "90": [(0, 2, "skip"), (1, 2, "dil_conv_3"), (0, 3, "max_pool_3"), (1, 3, "max_pool_3")],
}


def table(chosen: Choices, method: str = "a", seed: int = 0, inputs: int = 2, nodes: int = 2) -> pd.DataFrame:
    """All edges of a space, with the operations that some domain chose and one that none did."""
    targets = range(inputs, inputs + nodes)
    operations = sorted({operation for edges in chosen.values() for *_, operation in edges} | {"never"})
    rows = [
        ("s", method, seed, domain, source, target, operation, 0.25, int((source, target, operation) in edges))
        for domain, edges in chosen.items()
        for target in targets
        for source in range(target)
        for operation in operations
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS["structures"]])


def sheet(frame: pd.DataFrame, **options: object) -> Sheet:
    return cells(frame, ["s"], LOOK, **({"domains": DOMAINS} | options))  # type: ignore[arg-type]


def axes_of(drawn: Sheet, group: int = 1) -> dict[str, Axes]:
    """Title of a panel -> its axes; group 0 is the key."""
    found = [panel.figure.axes[0] for panel in drawn.groups[group].panels]
    return {axes.texts[0].get_text(): axes for axes in found}


def nodes(axes: Axes) -> dict[int, tuple[float, float]]:
    """Number written at a node -> where it is."""
    return {
        int(text.get_text()): (round(text.get_position()[0], 9), round(text.get_position()[1], 9))
        for text in axes.texts
        if text.get_text().isdigit()
    }


def edges(axes: Axes) -> list[tuple[int, int, str, PathPatch]]:
    """Source, target, name and line of every edge, found from where they are drawn."""
    at = nodes(axes)
    lines = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    names = [text for text in axes.texts[1:] if not text.get_text().isdigit()]
    found = []
    for line in lines:
        (x, y), end = line.get_path().vertices[1], line.get_path().vertices[-1]  # type: ignore[misc]
        (source,) = (node for node, place in at.items() if math.isclose(place[0], x))
        target = min(at, key=lambda node: math.dist(at[node], end))
        assert math.dist(at[target], end) < 2 * RADIUS
        (name,) = (
            text.get_text() for text in names if 0 < text.get_position()[0] - x < 0.06 > text.get_position()[1] - y > 0
        )
        found.append((source, target, name, line))
    assert len(names) == len(found)
    return found


def is_kind(line: PathPatch, kind: Kind) -> bool:
    dashed = not isinstance(kind.dash, str)
    same = line.get_linewidth() == kind.width and (line.get_linestyle() not in ("solid", "-")) == dashed
    return same and line.get_edgecolor()[:3] == pytest.approx(Polygon([(0, 0)], color=kind.color).get_edgecolor()[:3])


def test_every_chosen_edge_ends_where_it_should_under_its_operation() -> None:
    for domain, axes in zip(VISION, axes_of(sheet(table(VISION))).values(), strict=True):
        expected = {(source, target, name_of(operation)) for source, target, operation in VISION[domain]}
        assert {edge[:3] for edge in edges(axes)} == expected


def test_edges_that_all_several_and_single_domains_have_differ_in_color_and_in_line() -> None:
    drawn = {
        title: {edge[:3]: edge[3] for edge in edges(axes)} for title, axes in axes_of(sheet(table(VISION))).items()
    }
    assert all(is_kind(lines[0, 2, "skip"], COMMON) for lines in drawn.values())
    assert is_kind(drawn["0°"][1, 2, "sep 3"], PARTLY)
    assert is_kind(drawn["180°"][1, 2, "sep 3"], PARTLY)
    assert is_kind(drawn["90°"][1, 2, "dil 3"], ALONE)
    assert is_kind(drawn["180°"][0, 3, "avg"], ALONE)  # the edge is common, its operation is not
    kinds = [COMMON, PARTLY, ALONE, ONLY]
    assert len({kind.color for kind in kinds}) == len({(kind.dash, kind.width) for kind in kinds}) == len(kinds)
    key = [text.get_text() for text in sheet(table(VISION)).groups[0].panels[0].figure.axes[0].texts]
    assert key == [COMMON.words, PARTLY.words, ALONE.words, "input, computed node"]


def test_words_say_what_is_common() -> None:
    first = sheet(table(VISION)).groups[1].panels[0]
    assert first.title == "First: 0°"
    assert first.description.startswith("Seed 0. 1 of 4 edges are in all domains. Edges: 0 → 2 skip (all domains)")
    assert "2 → 3 sep 5 (one domain alone)" in first.description


def test_a_cell_of_one_domain_has_nothing_in_common() -> None:
    drawn = sheet(table({"0": VISION["0"]}))
    (axes,) = axes_of(drawn).values()
    assert all(is_kind(edge[3], ONLY) for edge in edges(axes))
    assert "all domains" not in drawn.svg("p")


def test_nodes_have_the_same_places_in_every_panel_and_inputs_are_squares() -> None:
    panels = list(axes_of(sheet(table(VISION))).values())
    assert nodes(panels[0]) == nodes(panels[1]) == nodes(panels[2])
    assert list(nodes(panels[0])) == [0, 1, 2, 3]
    squares = [patch for patch in panels[0].patches if isinstance(patch, Rectangle)]
    circles = [patch for patch in panels[0].patches if isinstance(patch, Circle)]
    assert [patch.get_center() for patch in squares] == [pytest.approx(nodes(panels[0])[node]) for node in (0, 1)]
    assert [patch.get_center() for patch in circles] == [pytest.approx(nodes(panels[0])[node]) for node in (2, 3)]


def test_domains_come_in_the_order_of_the_settings_and_unknown_ones_last() -> None:
    frame = table({"90": VISION["90"], "45": VISION["0"], "180": VISION["180"], "0": VISION["0"]})
    assert list(axes_of(sheet(frame))) == ["0°", "180°", "90°", "45"]


def test_the_smallest_seed_is_drawn() -> None:
    other = {domain: [(1, 2, "skip"), (1, 3, "skip")] for domain in VISION}
    frame = pd.concat([table(other, seed=5), table(VISION, seed=3)])
    drawn = sheet(frame)
    assert drawn.svg("p") == sheet(table(VISION, seed=3)).svg("p")
    assert drawn.groups[1].panels[0].description.startswith("Seed 3.")


def test_a_row_a_method_and_gaps_for_what_was_not_run() -> None:
    both = pd.concat([table(VISION, "b"), table(VISION, "a")])
    assert [group.heading for group in sheet(both).groups] == ["", "First", "Second"]
    assert [group.heading for group in sheet(both, methods=["b"]).groups] == ["", "Second"]
    gap = sheet(table(VISION)).groups[-1].panels
    assert [panel.description for panel in gap] == ["Second: not run."]
    nothing = sheet(pd.DataFrame(columns=[*COLUMNS["structures"]]))
    assert [panel.description for group in nothing.groups for panel in group.panels] == [
        "First: not run.",
        "Second: not run.",
    ]
    unknown = cells(table(VISION), ["t"], LOOK, domains=DOMAINS)
    assert [panel.description for group in unknown.groups for panel in group.panels] == ["t: not run."]


def test_the_same_table_gives_the_same_bytes() -> None:
    frame = table(VISION)
    assert sheet(frame).svg("p") == sheet(frame.sample(frac=1, random_state=1)).svg("p")
    assert parse(sheet(frame).svg("p")) is not None


@st.composite
def genotypes(draw: st.DrawFn) -> tuple[Choices, int, int]:
    """Cells of two domains: those of the vision task, or recurrent ones of eight nodes."""
    inputs, count, kept, names = draw(
        st.sampled_from(
            [
                (2, 4, 2, ["max_pool_3", "skip", "sep_conv_3", "sep_conv_5", "dil_conv_5"]),
                (1, 8, 1, ["tanh", "relu", "sigmoid", "identity"]),
            ]
        )
    )
    chosen: Choices = {}
    for domain in ("0", "180"):
        chosen[domain] = []
        for target in range(inputs, inputs + count):
            sources = draw(st.lists(st.integers(0, target - 1), min_size=kept, max_size=kept, unique=True))
            chosen[domain] += [(source, target, draw(st.sampled_from(names))) for source in sources]
    return chosen, inputs, count


@settings(max_examples=10, deadline=None)
@given(genotypes())
def test_no_name_meets_another_name_a_line_or_a_node(drawn: tuple[Choices, int, int]) -> None:
    chosen, inputs, count = drawn
    for axes in axes_of(sheet(table(chosen, inputs=inputs, nodes=count))).values():
        assert axes.figure.get_figwidth() <= LARGE  # type: ignore[union-attr]
        assert len(edges(axes)) == len(chosen["0"])
        boxes = []
        for text in axes.texts[1:]:
            x, y = text.get_position()
            if not text.get_text().isdigit():
                width = text_width(text.get_text(), SIZE)
                assert x + width <= axes.get_xlim()[1]
                boxes.append((x, y, x + width, y + 0.7 * SIZE / 72))
        for place, (left, bottom, right, top) in enumerate(boxes):
            for other in boxes[place + 1 :]:
                assert right < other[0] or other[2] < left or top < other[1] or other[3] < bottom
            for x, y in nodes(axes).values():
                near = (min(max(x, left), right), min(max(y, bottom), top))
                assert math.dist((x, y), near) > RADIUS
            for trunk in axes.lines:
                (x, _), (high, low) = trunk.get_xdata(), trunk.get_ydata()  # type: ignore[misc]
                assert not (left < x < right and bottom < high and low < top)
            for *_, line in edges(axes):
                (start, height), (end, _) = line.get_path().vertices[1], line.get_path().vertices[-1]  # type: ignore[misc]
                assert not (left < end and start < right and bottom < height < top)


def test_the_width_of_words_grows_with_them_and_with_their_size() -> None:
    assert 0 < text_width("max", 7) < text_width("identity", 7) < text_width("identity", 8)
    assert text_width("identity", 14) == pytest.approx(2 * text_width("identity", 7), rel=0.02)
