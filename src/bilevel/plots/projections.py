"""What the trials of a search tell of each coordinate: points of a square, and what they are on its two sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style
from bilevel.plots.svg import INK

SIDE, STRIP = 1.75, 0.7
"""Inches of the square, and of what the strips above it and beside it have for the values of the functions."""
LEFT, RIGHT, BOTTOM, TOP, BETWEEN = 0.46, 0.1, 0.4, 0.3, 0.14
WIDTH, HEIGHT = LEFT + SIDE + BETWEEN + STRIP + RIGHT, BOTTOM + SIDE + BETWEEN + STRIP + TOP
GAP_HEIGHT = 0.8

ROOM = 0.08
"""Of the range of values, left free at either end."""
SAME = 6
"""Decimals to which coordinates, and values, agree that count as one."""

THREAD: dict[str, Any] = {"color": INK, "linewidth": 0.6, "alpha": 0.28}
"""From a point of the square to its mark on a function."""


class Function(NamedTuple):
    """A function of one coordinate on the unit interval: its curve and the trials on it, (n, 2): coordinate, value."""

    curve: np.ndarray
    marks: np.ndarray


class Picture(NamedTuple):
    """A search in two dimensions, its points (n, 3), (x, y, value), and what x and y give to the values."""

    points: np.ndarray
    important: Function
    unimportant: Function


def projections(
    points: pd.DataFrame, studies: Sequence[str], look: Look, *, methods: Sequence[str] | None = None
) -> Sheet:
    """Trials of a search on the unit square, and, on one scale, the functions of x and of y whose sum they ask for.

    Above the square is the function that matters, against x, at its side the other one, against y; each trial is marked
    on both. On a grid many marks coincide: so many trials were spent on what was known.

    points: of the quantities `point` (x, y, value), `projection_important` and `curve_important` (x, 0, value),
        `projection_unimportant` and `curve_unimportant` (0, y, value), x and y between 0 and 1. Of each method the
        first seed that has points is drawn.
    methods: those drawn; None: all.

    Source: Bergstra and Bengio 2012, figure 1.
    """
    found = {study: _pictures(points, study, methods) for study in studies}
    scale = _scale([picture for pictures in found.values() for picture in pictures.values()])
    groups = []
    for study, pictures in found.items():
        drawn, missing = look.order(study, [*pictures])
        absent = [look.method(key) for key in missing if methods is None or key in methods]
        titles = absent if drawn or absent else [look.study(study)]
        panels = [_panel(look.method(method), pictures[method], scale, look.color(method)) for method in drawn]
        gaps = [empty(WIDTH, GAP_HEIGHT, title) for title in titles]
        groups.append(Group(look.study(study) if len(studies) > 1 else "", (*panels, *gaps)))
    words = "One panel a method. Above each square is the function of x, at its side that of y, on the same scale."
    return Sheet("Trials, and what they tell of each coordinate", words, tuple(groups), columns=3)


def _pictures(points: pd.DataFrame, study: str, chosen: Sequence[str] | None) -> dict[str, Picture]:
    known = points[np.isfinite(points[["x", "y", "value"]].to_numpy(float)).all(axis=1) & (points["study"] == study)]
    there = known[known["quantity"] == "point"]
    found = {}
    for method in methods_of(there, study):
        if chosen is None or method in chosen:
            seed = there.loc[there["method"] == method, "seed"].min()
            found[method] = _picture(known[(known["method"] == method) & (known["seed"] == seed)])
    return found


def _picture(rows: pd.DataFrame) -> Picture:
    def places(quantity: str, *columns: str) -> np.ndarray:
        own: np.ndarray = rows.loc[rows["quantity"] == quantity, [*columns]].sort_values([*columns]).to_numpy(float)
        return own

    def function(name: str, coordinate: str) -> Function:
        return Function(*(places(f"{kind}_{name}", coordinate, "value") for kind in ("curve", "projection")))

    return Picture(places("point", "x", "y", "value"), function("important", "x"), function("unimportant", "y"))


def _scale(pictures: Sequence[Picture]) -> tuple[float, float]:
    """Range of values that all functions share, with a little room around."""
    functions = [function for picture in pictures for function in (picture.important, picture.unimportant)]
    values = np.concatenate([np.zeros(1), *(part[:, 1] for function in functions for part in function)])
    room = ROOM * (float(np.ptp(values)) or 1.0)
    return float(values.min()) - room, float(values.max()) + room


def _panel(name: str, picture: Picture, scale: tuple[float, float], color: str) -> Panel:
    figure = canvas(WIDTH, HEIGHT)
    important, unimportant = picture.important, picture.unimportant
    with style():
        square, above, beside = _frame(figure, name, scale)
        _threads(square, above, beside, picture)
        above.plot(*important.curve.T, color=INK, linewidth=1.3)
        beside.plot(*unimportant.curve.T[::-1], color=INK, linewidth=1.3)
        for axes, places in ((square, picture.points), (above, important.marks), (beside, unimportant.marks[:, ::-1])):
            dots: dict[str, Any] = {
                "marker": "o",
                "markersize": 4.6,
                "markeredgewidth": 0,
                "linestyle": "none",
                "clip_on": False,
            }
            axes.plot(places[:, 0], places[:, 1], color=color, zorder=3, **dots)
        text = "places: " + ", ".join(f"{count} of {axis}" for axis, count in _counts(picture).items())
        figure.text(1 - RIGHT / WIDTH, 1 - 0.22 / HEIGHT, text, ha="right", fontsize=8, alpha=0.75)
    return Panel(figure, f"Trials of a search: {name}", _words(picture))


def _frame(figure: Figure, name: str, scale: tuple[float, float]) -> tuple[Axes, Axes, Axes]:
    """The square, the strip above it, and the one at its side."""
    right, upper = LEFT + SIDE + BETWEEN, BOTTOM + SIDE + BETWEEN
    square = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT))
    above = figure.add_axes((LEFT / WIDTH, upper / HEIGHT, SIDE / WIDTH, STRIP / HEIGHT))
    beside = figure.add_axes((right / WIDTH, BOTTOM / HEIGHT, STRIP / WIDTH, SIDE / HEIGHT))
    ends = (0.0, 1.0)
    square.set(xlim=ends, ylim=ends, xticks=ends, yticks=ends)
    square.set_xlabel("x, which matters", labelpad=-5)
    square.set_ylabel("y, which hardly does", labelpad=-5)
    above.set(xlim=ends, ylim=scale, xticks=[])
    beside.set(xlim=scale, ylim=ends, yticks=[])
    above.locator_params(axis="y", nbins=3)
    beside.locator_params(axis="x", nbins=3)
    above.grid(axis="y")
    beside.grid(axis="x")
    figure.text(LEFT / WIDTH, 1 - 0.22 / HEIGHT, name, fontsize=10, fontweight="bold")
    corner = ((right + STRIP / 2) / WIDTH, (upper + STRIP / 2) / HEIGHT)
    figure.text(*corner, "value: sum\nof the two", ha="center", va="center", fontsize=8, alpha=0.75)
    for axes in (square, above, beside):
        axes.tick_params(labelsize=7.5, length=0, pad=3)
        for spine in axes.spines.values():
            spine.set(visible=axes is square, linewidth=0.6)
    return square, above, beside


def _threads(square: Axes, above: Axes, beside: Axes, picture: Picture) -> None:
    """Lines from the points of the square to their marks, through the gap before the strips; one for those in line."""
    points = picture.points.round(SAME)
    for x in np.unique(points[:, 0]):
        square.plot([x, x], [points[points[:, 0] == x, 1].min(), 1], **THREAD)
    for y in np.unique(points[:, 1]):
        square.plot([points[points[:, 1] == y, 0].min(), 1], [y, y], **THREAD)
    low, high = above.get_ylim()
    foot = low - BETWEEN / STRIP * (high - low)
    for place, value in np.unique(picture.important.marks.round(SAME), axis=0):
        above.plot([place, place], [foot, value], clip_on=False, **THREAD)
    for place, value in np.unique(picture.unimportant.marks.round(SAME), axis=0):
        beside.plot([foot, value], [place, place], clip_on=False, **THREAD)


def _counts(picture: Picture) -> dict[str, int]:
    """How many different places on each axis there are trials at."""
    return {axis: len(np.unique(picture.points[:, column].round(SAME))) for column, axis in enumerate("xy")}


def _words(picture: Picture) -> str:
    """How many places were tried on each axis, and the values there."""
    counts, values = _counts(picture), picture.points[:, 2]
    texts = [
        f"{len(values)} trials at {counts['x']} places of x, which matters, and {counts['y']} of y.",
        f"Values are from {_number(values.min())} to {_number(values.max())}.",
    ]
    for axis, function in (("x", picture.important), ("y", picture.unimportant)):
        if len(function.curve):
            low, high = (_number(value) for value in (function.curve[:, 1].min(), function.curve[:, 1].max()))
            texts.append(f"What {axis} gives to them is between {low} and {high}.")
    return " ".join(texts)


def _number(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:g}".replace("-", "−")  # + 0.0: no minus before zero
