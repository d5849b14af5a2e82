"""Histograms by layer, from synthetic tables."""

from __future__ import annotations

from itertools import pairwise
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd

from bilevel.plots.layers import layers_histogram
from bilevel.plots.look import Look
from bilevel.plots.svg import parse
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"a": Method(name="First", family="aggregated"), "b": Method(name="Second", family="drmad")},
    {"s": Study(name="The study", methods=("a", "b"))},
)
COLUMNS = ["study", "method", "seed", "quantity", "group", "left", "right", "count"]


def table(methods: tuple[str, ...] = ("a", "b"), layers: tuple[str, ...] = ("one", "two")) -> pd.DataFrame:
    edges = np.linspace(-12, 4, 33)
    rows = [
        ("s", method, seed, "level", layer, left, right, int(100 * np.exp(-((left + 8 - place) ** 2))))
        for place, method in enumerate(methods)
        for seed in (0, 1)
        for layer in layers
        for left, right in pairwise(edges)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def drawn(frame: pd.DataFrame, **settings: object) -> Element:
    sheet = layers_histogram(frame, ["s"], LOOK, quantity="level", label="Level", **settings)  # type: ignore[arg-type]
    return parse(sheet.svg("x"))


def panels(root: Element) -> list[str]:
    found = [element for element in root.iter("svg") if element.get("class") == "panel"]
    return [next(element.text or "" for element in panel.iter("title")) for panel in found]


def words(root: Element) -> str:
    return " ".join(element.text or "" for element in root.iter("desc"))


def test_one_panel_a_layer_and_a_key() -> None:
    root = drawn(table())
    assert panels(root) == ["Level: one", "Level: two", "Key"]
    assert "First: median between -8.5 and -8" in words(root) or "First: median between -8 and -7.5" in words(root)
    assert {"First", "Second"} <= {element.text for element in root.iter("text")}


def test_only_chosen_methods_and_gaps_for_what_is_missing() -> None:
    assert "Second" not in words(drawn(table(), methods=["a"]))
    assert panels(drawn(table(("a",)), methods=["a", "b"])) == ["Level: one", "Level: two", "Key", "Second"]


def test_nothing_there_is_a_visible_gap() -> None:
    assert panels(drawn(pd.DataFrame(columns=COLUMNS))) == ["The study"]
    assert panels(drawn(table().assign(quantity="other"))) == ["The study"]
    assert panels(drawn(table().assign(count=0))) == ["The study"]


def test_the_axis_covers_what_is_held_and_bytes_are_the_same() -> None:
    frame = table()
    first = layers_histogram(frame, ["s"], LOOK, quantity="level", label="Level").svg("x")
    assert first == layers_histogram(frame, ["s"], LOOK, quantity="level", label="Level").svg("x")
    # bins at −12 and 4 hold nothing
    labels = {element.text for element in parse(first).iter("text")}
    assert "−12" not in labels
    assert "4" not in labels


def test_one_value_a_seed_is_no_distribution() -> None:
    frame = table()
    single = frame[frame["method"] == "a"].assign(count=0)
    single.loc[single.groupby(["group"]).head(1).index, "count"] = 5
    root = drawn(pd.concat([single, frame[frame["method"] == "b"]]), methods=["a", "b"])
    assert "First: one value a seed, about " in words(root)
    assert "Second: median between" in words(root)
