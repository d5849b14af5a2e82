"""Figures inside the page: less text, and the same drawing."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_plane import corners

from bilevel.plots.svg import parse, relative, serialize
from bilevel.report.compact import TOLERANCE, Sheet, shortened

ROUNDING = 0.05 * 2**0.5 + 1e-9
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" aria-labelledby="t">
<title id="t">A title</title><defs/>
<g><g><text style="font-size: 8.5px; fill: currentColor" transform="rotate(-0 3 4)">word</text></g></g>
<g><text transform="rotate(-90 3 4)">up</text></g>
<defs><path id="m" d="M 0 1.51 C 0.8 1.51 1.51 0.8 1.51 0 z" style="stroke: red"/></defs>
<use href="#m" x="1" y="2" style="fill: red;"/>
<defs><clipPath id="c"><rect x="0" y="0" width="5" height="5"/></clipPath></defs>
<path clip-path="url(#c)" d="M 0 0 L 1.04 1 L 2 2"/><path clip-path="url(#c)" d="M 0 0 L 1 3"/>
</svg>"""

coordinate = st.floats(-500, 500).map(lambda value: round(value, 2))
places = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=40)


def path(points: list[tuple[float, float]], closed: bool) -> str:
    return f"M {' L '.join(f'{x} {y}' for x, y in points)} {'z' if closed else ''}"


def away(place: NDArray[np.float64], line: NDArray[np.float64]) -> float:
    """Distance of a place from a broken line."""
    if len(line) == 1:
        return float(np.linalg.norm(place - line[0]))
    start, way = line[:-1], np.diff(line, axis=0)
    length = np.maximum((way**2).sum(axis=1), 1e-30)
    along = np.clip(((place - start) * way).sum(axis=1) / length, 0, 1)
    return float(np.linalg.norm(place - start - along[:, None] * way, axis=1).min())


@given(points=places, closed=st.booleans())
def test_a_line_passes_by_all_its_places(points: list[tuple[float, float]], closed: bool) -> None:
    text = shortened(path(points, closed))
    assert len(text) <= len(path(points, closed))
    assert text.endswith("z") == closed
    (found,) = corners(text)
    line, ends = np.array(found), np.array(points)
    assert np.abs(line[[0, -1]] - ends[[0, -1]]).max() <= 0.05 + 1e-9
    assert max(away(place, line) for place in ends) <= TOLERANCE + ROUNDING


def test_smooth_lines_need_few_of_their_places() -> None:
    x = np.linspace(0, 200, 400)
    text = shortened(path(list(zip(x.round(2), (50 * np.sin(x / 40)).round(2), strict=True)), closed=False))
    assert len(corners(text)[0]) < 80


@given(points=st.lists(st.tuples(coordinate, coordinate), min_size=4, max_size=4))
def test_curves_are_written_relative_to_their_start(points: list[tuple[float, float]]) -> None:
    start, *control = points
    text = relative(f"M {start[0]} {start[1]} C {' '.join(f'{x} {y}' for x, y in control)}")
    numbers = [float(number) for number in re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)", text)]
    found = np.array(numbers).reshape(-1, 2)
    assert re.sub(r"[^a-z]", "", text) == "mc"
    assert np.abs(found[0] - start).max() <= 0.05 + 1e-9
    assert np.abs(found[0] + found[1:] - np.array(control)).max() <= 0.05 + 1e-9


@pytest.mark.parametrize("text", ["m0 0 1 1z", "M 0 0 A 1 1 0 0 0 2 2", "", "M 0 0 H 3"])
def test_other_paths_are_left_alone(text: str) -> None:
    assert shortened(text) == text


def drawings() -> tuple[Sheet, list[Element]]:
    sheet, roots = Sheet(), [parse(DRAWING), parse(DRAWING)]
    for root in roots:
        sheet.compact(root)
    return sheet, roots


def test_styles_markers_and_edges_are_written_once_for_all_drawings() -> None:
    sheet, roots = drawings()
    text = "".join(map(serialize, roots))
    assert "style=" not in text
    rules = dict(re.findall(r"^\.(d\d+)\{(.*)\}$", sheet.css(), flags=re.MULTILINE))
    assert set(rules.values()) == {"font-size:8.5px;fill:currentColor", "stroke:red", "fill:red"}
    assert set(re.findall(r'class="([^"]+)"', text)) == set(rules)
    assert text.count("<clipPath") == 1
    assert text.count("M 0 1.51 C") == 1  # a marker is too small for a tenth of a point
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 4
    used = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', text)
    assert set(used) == set(ids)
    assert len(used) == 6


def test_what_says_nothing_is_left_out_and_words_stay() -> None:
    _, (root, _) = drawings()
    text = serialize(root)
    assert [element.text for element in root.iter("text")] == ["word", "up"]
    assert "rotate(-90 3 4)" in text
    assert "rotate(-0" not in text
    (group,) = root.iter("g")
    assert list(group.attrib) == ["clip-path"]
    assert [child.get("d") for child in group] == ["m0 0 2 2", "m0 0 1 3"]
