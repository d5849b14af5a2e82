"""What a model foretells of the validation loss against what is true of it: curves over λ, and clouds of many λ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import GROUPS, Dash, Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style
from bilevel.plots.svg import INK

WIDTH, HEIGHT = 3.05, 2.6
LEFT, RIGHT, BOTTOM, TOP = 0.4, 0.1, 0.42, 0.44
INSIDE = (WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP)
"""Size of the axes in inches."""
GAP_HEIGHT = 0.8
KEY_ROW = 0.2

ROOM = 0.06
"""Of the range of an axis, left free at either end."""
BEYOND = 0.1
"""How far predictions may widen the range of the true losses on either side, as a share of it."""

Limits = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """How a curve over λ is drawn."""

    label: str
    words: str
    color: str
    dash: Dash
    width: float

    @property
    def line(self) -> dict[str, Any]:
        """Settings of the line."""
        return {
            "color": self.color,
            "linestyle": self.dash,
            "linewidth": self.width,
            "dash_capstyle": "butt",
            "zorder": 2,
        }


@dataclass(frozen=True)
class Mark:
    """How a place on the λ axis is drawn: an upright line, and a marker at the loss there."""

    label: str
    words: str
    color: str
    dash: Dash
    marker: str
    filled: bool

    @property
    def line(self) -> dict[str, Any]:
        """Settings of the upright line."""
        return {"color": self.color, "linestyle": self.dash, "linewidth": 0.9, "alpha": 0.8}

    def draw(self, axes: Axes, x: float, y: float) -> None:
        """Draw the marker."""
        face, size = (self.color, 5) if self.filled else ("none", 6.5)
        shape: dict[str, Any] = {"marker": self.marker, "markersize": size, "markeredgewidth": 1.2}
        axes.plot([x], [y], markerfacecolor=face, markeredgecolor=self.color, zorder=3, clip_on=False, **shape)


STROKES = {
    "true": Stroke("Best response", "Solid line", INK, "solid", 1.5),
    "predicted": Stroke("Hypernetwork", "Dashed line", GROUPS["clean"], (0, (4, 1.4)), 1.8),
}
"""Quantity of a curve -> its stroke; the first is drawn first."""
MARKS = {
    "optimal": Mark("Best λ", "Hollow diamond on a dotted upright line", INK, (0, (1.2, 1.6)), "D", filled=False),
    "found": Mark("λ found", "Filled circle on a solid upright line", GROUPS["clean"], "solid", "o", filled=True),
}
"""Quantity of one point -> its mark."""

DOT = 1.35 / 72 * np.stack([f(2 * np.pi / 6 * np.arange(6)) for f in (np.cos, np.sin)], axis=1)
"""A λ of a cloud: corners around its place, in inches."""
ARROW = 2.1 / 72 * np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.3]])
"""A λ that is above the axes, on their upper edge; turned over, below them."""


def response_curves(points: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """Validation loss against λ, of the true best response and of the hypernetwork; a row a study, a panel a method.

    The loss axis holds the true losses and little more: a hypernetwork that is trained near one λ may be far from the
    answers elsewhere, and its line is cut off there.

    points: of the quantities `true` and `predicted`, curves, and `found` and `optimal`, one place each; x is λ, y the
        loss. Of each method the first seed is drawn.
    """
    found, groups = _first_seeds(points, studies, "true"), []
    shown = [rows for methods in found.values() for rows in methods.values()]
    across = _limits([rows["x"].to_numpy(float) for rows in shown])
    certain = [_chosen(rows, "true", "found", "optimal") for rows in shown]
    up = _widened(certain, [_chosen(rows, "predicted") for rows in shown], BEYOND)

    def panel(rows: pd.DataFrame, method: str) -> Panel:
        figure, axes = _axes(look.method(method), ("λ", across), ("Validation loss", up))
        with style():
            _curves(axes, rows)
        return Panel(figure, f"Validation loss against λ: {look.method(method)}", _curve_words(rows, up))

    for study in studies:
        groups.append(_group(study, found[study], look, panel, name=look.study(study)))
    key = [Group("", (_key(),))] if shown else []
    return Sheet("Validation loss, foretold and true", "One panel a method.", (*key, *groups), columns=3)


def predicted_against_true(points: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """Predicted against true losses of many λ, a point each, with the line on which they are equal; a panel a method.

    Axes are shared. Predictions farther away from the true losses than these are from one another are arrows on the
    edge of the axes.

    points: of the quantity `candidate`, x the true loss and y the predicted one. Of each method the first seed is
        drawn.
    """
    candidates = points[points["quantity"] == "candidate"]
    found = _first_seeds(candidates, studies, "candidate")
    shown = [rows for methods in found.values() for rows in methods.values()]
    true, predicted = [rows["x"].to_numpy(float) for rows in shown], [rows["y"].to_numpy(float) for rows in shown]
    across, up = _limits(true), _widened(true, predicted, 1.0)

    def panel(rows: pd.DataFrame, method: str) -> Panel:
        name = look.method(method)
        figure, axes = _axes(name, ("True loss", across), ("Predicted loss", up))
        with style():
            _cloud(axes, rows, look.color(method))
        return Panel(figure, f"Predicted against true loss: {name}", _cloud_words(rows, up), coarse=True)

    names = {study: look.study(study) if len(studies) > 1 else "" for study in studies}
    groups = [_group(study, found[study], look, panel, name=names[study]) for study in studies]
    return Sheet("Predicted loss, against: true loss", "One panel a method.", tuple(groups), columns=2)


def _first_seeds(points: pd.DataFrame, studies: Sequence[str], needed: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Study -> method -> rows of the first seed that has the quantity, in rising order of x."""
    known = points[np.isfinite(points[["x", "y"]].to_numpy(float)).all(axis=1)].sort_values(["x", "y"])
    there = known[known["quantity"] == needed]
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for study in studies:
        found[study] = {}
        for method in methods_of(there, study):
            own, having = (rows[(rows["study"] == study) & (rows["method"] == method)] for rows in (known, there))
            found[study][method] = own[own["seed"] == having["seed"].min()]
    return found


def _group(
    study: str, found: dict[str, pd.DataFrame], look: Look, panel: Callable[[pd.DataFrame, str], Panel], name: str
) -> Group:
    """A study's panels, and gaps in the place of what was not run."""
    drawn, missing = look.order(study, [*found])
    titles = [look.method(key) for key in missing] if drawn or missing else [look.study(study)]
    panels = [panel(found[method], method) for method in drawn]
    return Group(name, (*panels, *(empty(WIDTH, GAP_HEIGHT, title) for title in titles)))


def _chosen(rows: pd.DataFrame, *quantities: str) -> np.ndarray:
    """The losses of these quantities."""
    found: np.ndarray = rows.loc[rows["quantity"].isin(quantities), "y"].to_numpy(float)
    return found


def _limits(values: Sequence[np.ndarray]) -> Limits:
    """Ends of an axis that holds all values; without any, from 0 to 1."""
    every = np.concatenate([np.empty(0), *values])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    room = ROOM * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def _widened(certain: Sequence[np.ndarray], others: Sequence[np.ndarray], beyond: float) -> Limits:
    """Ends of an axis that holds what is certain, and of the others what is no farther off than `beyond` its range."""
    low, high = _limits(certain)
    span = beyond * (high - low)
    cut = [values.clip(low - span, high + span) for values in others]
    return _limits([*certain, *cut])


def _axes(title: str, across: tuple[str, Limits], up: tuple[str, Limits]) -> tuple[Figure, Axes]:
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, INSIDE[0] / WIDTH, INSIDE[1] / HEIGHT))
        axes.set_title(title, loc="left", fontweight="bold", pad=16).set_in_layout(False)
        axes.text(0, 1.035, up[0], fontsize=8.5, alpha=0.75, transform=axes.transAxes)
        axes.set_xlabel(across[0], labelpad=2)
        axes.set(xlim=across[1], ylim=up[1])
        axes.locator_params(axis="x", nbins=7)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(axis="y")
        axes.tick_params(length=0, axis="y")
        axes.tick_params(length=3, width=0.7, axis="x")
        axes.spines["left"].set_visible(False)
    return figure, axes


def _curves(axes: Axes, rows: pd.DataFrame) -> None:
    for quantity, mark in MARKS.items():
        for x, y in rows.loc[rows["quantity"] == quantity, ["x", "y"]].to_numpy(float):
            axes.axvline(x, **mark.line)
            mark.draw(axes, x, y)
    for quantity, stroke in STROKES.items():
        curve = rows[rows["quantity"] == quantity]
        axes.plot(curve["x"].to_numpy(float), curve["y"].to_numpy(float), **stroke.line)


def _cloud(axes: Axes, rows: pd.DataFrame, color: str) -> None:
    """The line of equal losses; dots where predictions are inside the axes, arrows where they are not."""
    places = rows[["x", "y"]].to_numpy(float)
    low, high = axes.get_ylim()
    ends = [max(axes.get_xlim()[0], low), min(axes.get_xlim()[1], high)]
    axes.plot(ends, ends, color=INK, linewidth=0.9, alpha=0.7)
    under, over = places[:, 1] < low, places[:, 1] > high
    _scattered(axes, places[~under & ~over], DOT, color)
    for outside, edge, arrow in ((over, high, ARROW), (under, low, -ARROW)):
        _scattered(axes, np.column_stack([places[outside, 0], np.full(outside.sum(), edge)]), arrow, color)
    counts = [f"{part.sum()} {where}" for part, where in ((over, "above"), (under, "below")) if part.any()]
    if counts:
        text = ", ".join(counts)
        axes.text(1, 1.035, text, ha="right", fontsize=8, alpha=0.75, transform=axes.transAxes)


def _scattered(axes: Axes, places: np.ndarray, shape: np.ndarray, color: str) -> None:
    """A shape, in inches, at every place: all are one path, with a mark an element the file would be much longer."""
    if not len(places):
        return
    spans = [high - low for low, high in (axes.get_xlim(), axes.get_ylim())]
    closed = np.concatenate([shape, shape[:1]]) * np.array(spans) / INSIDE
    vertices = (places[:, None] + closed).reshape(-1, 2)
    codes = [Path.MOVETO, *[Path.LINETO] * (len(shape) - 1), Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor=color, linewidth=0, alpha=0.75, clip_on=False))


def _key() -> Panel:
    """Which line and which mark is what."""
    height = KEY_ROW * len(STROKES) + 0.1
    figure = canvas(WIDTH, height)
    with style():
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, WIDTH), ylim=(0, height))
        rows = [height - 0.05 - (row + 0.5) * KEY_ROW for row in range(len(STROKES))]
        for place, stroke in zip(rows, STROKES.values(), strict=True):
            axes.plot([0.1, 0.42], [place, place], **stroke.line)
            axes.text(0.5, place, stroke.label, va="center_baseline", fontsize=8.5)
        for place, mark in zip(rows, MARKS.values(), strict=True):
            axes.plot([1.9, 1.9], [place - 0.45 * KEY_ROW, place + 0.45 * KEY_ROW], **mark.line)
            mark.draw(axes, 1.9, place)
            axes.text(2.02, place, mark.label, va="center_baseline", fontsize=8.5)
    texts = [f"{stroke.words}: {stroke.label}." for stroke in STROKES.values()]
    texts += [f"{mark.words}: {mark.label}." for mark in MARKS.values()]
    return Panel(figure, "Key", " ".join(texts))


def _curve_words(rows: pd.DataFrame, up: Limits) -> str:
    """Places found and best, and how far the curves are from one another."""
    texts = []
    for quantity, name in (("found", "λ found"), ("optimal", "Best λ")):
        places = rows.loc[rows["quantity"] == quantity, ["x", "y"]].to_numpy(float)
        texts += [f"{name}: {_number(x)}, with a loss of {_number(y)}." for x, y in places]
    curves = rows[rows["quantity"].isin([*STROKES])].drop_duplicates(["quantity", "x"])
    both = curves.pivot(index="x", columns="quantity", values="y").reindex(columns=[*STROKES]).dropna()
    if len(both):
        off, ends = (both["predicted"] - both["true"]).abs(), both.index[[0, -1]]
        span = " to ".join(_number(end) for end in ends)
        texts.append(f"From λ = {span} the hypernetwork's loss is {_number(off.mean())} off on average.")
        cut = ~both["predicted"].between(*up)
        texts += [f"Beyond the axes it is at {cut.sum()} of {len(cut)} places."] if cut.any() else []
    return " ".join(texts)


def _cloud_words(rows: pd.DataFrame, up: Limits) -> str:
    """How many λ there are, how far off predictions are, and how many are not inside the axes."""
    true, predicted = rows["x"].to_numpy(float), rows["y"].to_numpy(float)
    off = (predicted - true).mean()
    texts = [
        f"{len(rows)} λ with true losses from {_number(true.min())} to {_number(true.max())}.",
        f"Predicted ones are from {_number(predicted.min())} to {_number(predicted.max())},",
        f"on average {_number(abs(off))} {'above' if off > 0 else 'below'} the true ones.",
    ]
    parts = {"above": (predicted > up[1]).sum(), "below": (predicted < up[0]).sum()}
    texts += [
        f"{where.capitalize()} the axes, arrows on their edge: {count}." for where, count in parts.items() if count
    ]
    return " ".join(texts)


def _number(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:g}".replace("-", "−")  # + 0.0: no minus before zero
