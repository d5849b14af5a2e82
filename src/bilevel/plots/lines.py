"""Lines with bands and their names at the right end: what the families of line figures share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from bilevel.plots.look import Look
from bilevel.plots.sheet import Panel, canvas, empty, style, text_width
from bilevel.statistics import Interval

WIDTH, HEIGHT = 4.43, 3.1
LEFT, RIGHT, BOTTOM, TOP = 0.5, 1.42, 0.44, 0.5
"""Margins in inches; names of methods stand in the right one, which is wider where these are long."""

SIZE = 8.5
"""Of names, in points."""

LABEL_GAP = 0.152
"""Least distance of two names, in inches."""

_NAME = 0.4
"""Where names begin, in inches from the axes."""


@dataclass(frozen=True)
class Line:
    """One method: where it is on the horizontal axis, and mean with interval there."""

    method: str
    x: tuple[float, ...]
    y: tuple[Interval, ...]


@dataclass(frozen=True)
class End:
    """Of a line; its height is a share of that of the axes."""

    line: Line
    height: float


@dataclass(frozen=True)
class Scale:
    """Axes that all panels of a figure share; `factor` is what values are multiplied by to be shown."""

    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    factor: float = 1.0
    log: bool = False


def limits(panels: Sequence[Sequence[Line]], factor: float) -> tuple[float, float]:
    """Range that the lines share, with a little room around; what is drawn are shares, from 0 to 1 times the factor.

    The steep start of a curve and the bands of very few seeds would leave no height for the rest: the lowest
    twelfth of the means may lie below, and bands widen the range by a sixth at most.
    """
    items = [item for lines in panels for line in lines for item in line.y]
    means = np.array([item.mean * factor for item in items])
    bounds = np.array([bound * factor for item in items for bound in (item.low, item.high) if math.isfinite(bound)])
    if not len(means):
        return 0.0, 1.0
    low, high = float(np.quantile(means, 1 / 12)), float(means.max())
    room = (high - low) or 1.0
    inside = bounds[(bounds > low - room / 6) & (bounds < high + room / 6)]
    low, high = min([low, *inside]), max([high, *inside])
    return max(low - 0.05 * room, -0.01 * factor), min(high + 0.05 * room, 1.01 * factor)


def panel(title: str, lines: Sequence[Line], missing: Sequence[str], scale: Scale, look: Look, words: str) -> Panel:
    """Draw the lines of one study; `words` describes the panel for those who do not see it."""
    if not lines:
        return empty(WIDTH, HEIGHT, title)
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes(box([look.method(line.method) for line in lines]))
        _frame(axes, title, scale)
        for line in lines:
            _draw(axes, line, scale, look)
        low, high = scale.y
        names(axes, [End(line, (line.y[-1].mean * scale.factor - low) / (high - low)) for line in lines], look)
        if missing:
            text = "not run: " + ", ".join(look.method(key) for key in missing[:3]) + (", …" if missing[3:] else "")
            figure.text(1 - 0.02 / WIDTH, 1 - 0.24 / HEIGHT, text, ha="right", fontstyle="italic", fontsize=8)
    return Panel(figure, f"{scale.y_label}: {title}", words)


def box(labels: Sequence[str]) -> tuple[float, float, float, float]:
    """Where the axes are, as shares of the panel, so that lines of these names can be named."""
    right = max([RIGHT, *(_NAME + text_width(label, SIZE) + 0.02 for label in labels)])
    return LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + right) / WIDTH, 1 - (BOTTOM + TOP) / HEIGHT


def names(axes: Axes, ends: Sequence[End], look: Look) -> None:
    """Names beside the right edge, in the order of the lines' ends; a leader where the line ends at the edge."""
    height = HEIGHT - BOTTOM - TOP
    places = spread([end.height for end in ends], LABEL_GAP / height, 0.02, 0.98)
    inch = 1 / (axes.get_position().width * WIDTH)
    edge = axes.get_xlim()[1]
    for end, place in zip(ends, places, strict=True):
        method = end.line.method
        drawn: dict[str, Any] = {"color": look.color(method), "clip_on": False, "transform": axes.transAxes}
        if end.line.x[-1] >= edge:
            axes.plot([1.0, 1 + 0.12 * inch], [end.height, place], linewidth=0.6, alpha=0.7, **drawn)
        sample = [1 + 0.12 * inch, 1 + 0.34 * inch]
        axes.plot(sample, [place, place], linestyle=look.dash(method), dash_capstyle="butt", **drawn)
        at = 1 + _NAME * inch, place
        axes.text(*at, look.method(method), va="center_baseline", fontsize=SIZE, transform=axes.transAxes)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, in the same order, as near as can be (least squares) to the wanted ones."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    shifted = [wanted[index] - rank * gap for rank, index in enumerate(order)]
    top = max(low, high - (len(wanted) - 1) * gap)
    places = [0.0] * len(wanted)
    for rank, (index, value) in enumerate(zip(order, isotonic_regression(shifted).x, strict=True)):
        places[index] = min(max(float(value), low), top) + rank * gap
    return places


def _frame(axes: Axes, title: str, scale: Scale) -> None:
    figure_title = axes.set_title(title, loc="left", fontweight="bold", pad=19)
    figure_title.set_in_layout(False)
    axes.text(0, 1.035, scale.y_label, fontsize=8.5, alpha=0.75, transform=axes.transAxes)
    axes.set_xlabel(scale.x_label)
    axes.grid(axis="y")
    axes.tick_params(length=0, axis="y")
    axes.tick_params(length=3, width=0.7, axis="x", which="major")
    axes.tick_params(length=1.5, width=0.5, axis="x", which="minor")
    axes.spines["left"].set_visible(False)
    if scale.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
    axes.set(xlim=scale.x, ylim=scale.y)


def _draw(axes: Axes, line: Line, scale: Scale, look: Look) -> None:
    color, dash = look.color(line.method), look.dash(line.method)
    mean = [item.mean * scale.factor for item in line.y]
    axes.plot(line.x, mean, color=color, linestyle=dash, dash_capstyle="butt")
    if any(math.isfinite(item.low) for item in line.y):
        low, high = ([getattr(item, side) * scale.factor for item in line.y] for side in ("low", "high"))
        axes.fill_between(line.x, low, high, color=color, alpha=0.11, linewidth=0)
    whole = scale.y[0] <= mean[-1] <= scale.y[1]
    axes.plot(line.x[-1:], mean[-1:], marker="o", markersize=3.6, color=color, markeredgewidth=0, clip_on=not whole)


def describe(lines: Sequence[Line], missing: Sequence[str], scale: Scale, look: Look, digits: int) -> str:
    """Where every line ends, in words."""
    ends = [f"{look.method(line.method)} {line.y[-1].mean * scale.factor:.{digits}f}" for line in lines]
    gaps = [f"{look.method(key)} not run" for key in missing]
    text = f"Lines are means over seeds, bands 95 % t-intervals. {scale.y_label} at the end: "
    return text + ", ".join([*ends, *gaps]) + "."


def by_study(
    lines: Mapping[str, Sequence[Line]],
    missing: Mapping[str, Sequence[str]],
    scale: Scale,
    look: Look,
    digits: int,
) -> tuple[Panel, ...]:
    """One panel for each study."""
    return tuple(
        panel(
            look.study(study),
            lines[study],
            missing[study],
            scale,
            look,
            describe(lines[study], missing[study], scale, look, digits),
        )
        for study in lines
    )
