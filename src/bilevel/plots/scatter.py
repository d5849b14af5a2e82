"""One metric of whole runs against another: a point a method with intervals in both directions, one panel a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bilevel.plots import frames
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style, text_width
from bilevel.plots.svg import INK
from bilevel.statistics import Interval, mean_interval

WIDTH, HEIGHT = 4.35, 3.1
LEFT, RIGHT, BOTTOM, TOP = 0.42, 0.2, 0.44, 0.5
INSIDE = (WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP)
"""Size of the axes in inches, as all lengths of labels."""
ROOM = 0.09
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")
MARKER = 0.05
SIZE, LINE = 8.5, 0.13
"""Points and height of a name."""
RINGS = (0.09, 0.2, 0.33, 0.48)
"""Distances of a name from its point; the first that is free is taken. From the second on, a line leads there."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in inches from the corner of the axes."""


@dataclass(frozen=True)
class Spot:
    """A method of a study: means over seeds with their intervals."""

    method: str
    x: Interval
    y: Interval


@dataclass(frozen=True)
class Axis:
    """An axis that all panels share, in the units that are shown."""

    label: str
    low: float
    high: float

    def share(self, value: float) -> float:
        """Place of a value, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def scatter(
    scalars: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    y_factor: float = 1.0,
    joined: Sequence[Sequence[str]] = (),
) -> Sheet:
    """Means over seeds with 95 % t-intervals; axes are shared by the studies and hold the values of every seed.

    scalars: the table; seeds count that did not diverge.
    x, y: metrics.
    y_factor: what values of y are multiplied by to be shown.
    joined: methods that differ in one setting, in its order: they share a marker, and a thin line joins them.
    """
    known = scalars[(scalars["status"] == "ok") & scalars["value"].map(math.isfinite)]
    known = known.assign(value=known["value"].where(known["metric"] != y, known["value"] * y_factor))
    spots, missing = {}, {}
    for study in studies:
        rows = known[known["study"] == study]
        both = [set(frames.methods(rows[rows["metric"] == metric], study)) for metric in (x, y)]
        drawn, missing[study] = look.order(study, sorted(both[0] & both[1]))
        spots[study] = [Spot(method, _mean(rows, method, x), _mean(rows, method, y)) for method in drawn]
    shown = known[known["study"].isin(list(studies))]
    axes = _axis(x_label, shown, x), _axis(y_label, shown, y)
    markers = _markers([spot.method for found in spots.values() for spot in found], joined)
    panels = tuple(
        _panel(look.study(study), spots[study], missing[study], axes, markers, joined, look) for study in studies
    )
    return Sheet(f"{y_label}, against: {x_label}", "One panel a study.", (Group("", panels),), columns=2)


def _mean(rows: pd.DataFrame, method: str, metric: str) -> Interval:
    chosen = rows[(rows["method"] == method) & (rows["metric"] == metric)].sort_values("seed")
    return mean_interval(chosen["value"].to_numpy(float))


def _axis(label: str, rows: pd.DataFrame, metric: str) -> Axis:
    values = rows.loc[rows["metric"] == metric, "value"].to_numpy(float)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = ROOM * ((high - low) or abs(high) or 1.0)
    return Axis(label, low - room, high + room)


def _markers(methods: Sequence[str], joined: Sequence[Sequence[str]]) -> dict[str, str]:
    """One for each method or line of methods, in the order in which they are first met, the same in all panels."""
    first = {method: line[0] for line in joined for method in line}
    groups = list(dict.fromkeys(first.get(method, method) for method in methods))
    return {method: MARKERS[groups.index(first.get(method, method)) % len(MARKERS)] for method in methods}


def _panel(
    title: str,
    spots: Sequence[Spot],
    missing: Sequence[str],
    both: tuple[Axis, Axis],
    markers: Mapping[str, str],
    joined: Sequence[Sequence[str]],
    look: Look,
) -> Panel:
    if not spots:
        return empty(WIDTH, HEIGHT, title)
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, INSIDE[0] / WIDTH, INSIDE[1] / HEIGHT))
        _frame(axes, title, both)
        for line in joined:
            _join(axes, [spot for method in line for spot in spots if spot.method == method], look)
        for spot in spots:
            _draw(axes, spot, markers[spot.method], look)
        _names(axes, spots, both, look)
        if missing:
            text = "not run: " + ", ".join(look.method(key) for key in missing[:3]) + (", …" if missing[3:] else "")
            figure.text(1 - 0.02 / WIDTH, 1 - 0.24 / HEIGHT, text, ha="right", fontstyle="italic", fontsize=8)
    return Panel(figure, f"{both[1].label}: {title}", _words(spots, missing, both, look))


def _frame(axes: Axes, title: str, both: tuple[Axis, Axis]) -> None:
    across, up = both
    axes.set_title(title, loc="left", fontweight="bold", pad=19).set_in_layout(False)
    axes.text(0, 1.035, up.label, fontsize=8.5, alpha=0.75, transform=axes.transAxes)
    axes.set_xlabel(across.label)
    axes.set(xlim=(across.low, across.high), ylim=(up.low, up.high))
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}".replace(",", "\u202f"))
    axes.grid(axis="both")
    axes.tick_params(length=0, axis="y")
    axes.tick_params(length=3, width=0.7, axis="x")
    axes.spines["left"].set_visible(False)


def _join(axes: Axes, spots: Sequence[Spot], look: Look) -> None:
    if len(spots) > 1:
        places = [spot.x.mean for spot in spots], [spot.y.mean for spot in spots]
        axes.plot(*places, color=look.color(spots[0].method), linewidth=0.8, alpha=0.7)


def _draw(axes: Axes, spot: Spot, marker: str, look: Look) -> None:
    color = look.color(spot.method)
    for item, drawn in ((spot.x, axes.hlines), (spot.y, axes.vlines)):
        if math.isfinite(item.low):
            other = spot.y.mean if item is spot.x else spot.x.mean
            drawn(other, item.low, item.high, color=color, linewidth=1.0, alpha=0.5)
    axes.plot([spot.x.mean], [spot.y.mean], marker=marker, markersize=6, color=color, markeredgewidth=0)


def _names(axes: Axes, spots: Sequence[Spot], both: tuple[Axis, Axis], look: Look) -> None:
    """Names beside the points, where they meet neither one another nor points, and intervals as little as can be."""
    points = [(both[0].share(spot.x.mean) * INSIDE[0], both[1].share(spot.y.mean) * INSIDE[1]) for spot in spots]
    bars = [bar for spot, point in zip(spots, points, strict=True) for bar in _bars(spot, point, both)]
    marks = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    sizes = [text_width(look.method(spot.method), SIZE) for spot in spots]
    boxes = _places(points, sizes, marks, bars)
    inches = axes.transAxes
    for spot, point, (left, bottom, right, top) in zip(spots, points, boxes, strict=True):
        near = (min(max(point[0], left), right), min(max(point[1], bottom), top))
        if math.dist(point, near) > 1.5 * RINGS[0]:
            ends = [point[0] / INSIDE[0], near[0] / INSIDE[0]], [point[1] / INSIDE[1], near[1] / INSIDE[1]]
            axes.plot(*ends, color=INK, linewidth=0.5, alpha=0.45, transform=inches)
        axes.text(
            left / INSIDE[0],
            (bottom + top) / 2 / INSIDE[1],
            look.method(spot.method),
            va="center_baseline",
            fontsize=SIZE,
            transform=inches,
        )


def _bars(spot: Spot, point: tuple[float, float], both: tuple[Axis, Axis]) -> Iterator[Box]:
    """The intervals of a point, as boxes without width."""
    x, y = point
    if math.isfinite(spot.x.low):
        yield both[0].share(spot.x.low) * INSIDE[0], y, both[0].share(spot.x.high) * INSIDE[0], y
    if math.isfinite(spot.y.low):
        yield x, both[1].share(spot.y.low) * INSIDE[1], x, both[1].share(spot.y.high) * INSIDE[1]


def _places(
    points: Sequence[tuple[float, float]], sizes: Sequence[float], marks: Sequence[Box], bars: Sequence[Box]
) -> list[Box]:
    """A box for each name. Each is moved to where it costs least while the others stay, until none moves."""
    candidates = [list(_candidates(point, size)) for point, size in zip(points, sizes, strict=True)]
    chosen = [boxes[0] for boxes in candidates]
    for _ in range(10):
        before = list(chosen)
        for place, boxes in enumerate(candidates):
            others = [*chosen[:place], *chosen[place + 1 :], *marks]
            costs = [_cost(rank, box, others, bars) for rank, box in enumerate(boxes)]
            chosen[place] = boxes[int(np.argmin(costs))]
        if chosen == before:
            break
    return chosen


def _candidates(point: tuple[float, float], width: float) -> Iterator[Box]:
    """Boxes around a point, the nearer ones first: at right, at left, above, below and between these."""
    x, y = point
    for ring in RINGS:
        for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            part = ring if 0 in (across, up) else 0.7 * ring
            left = x + across * part - width * (1 - across) / 2
            bottom = y + up * part - LINE * (1 - up) / 2
            yield left, bottom, left + width, bottom + LINE


def _cost(rank: int, box: Box, others: Sequence[Box], bars: Sequence[Box]) -> float:
    outside = max(0.0, -box[0]) + max(0.0, box[2] - INSIDE[0]) + max(0.0, -box[1]) + max(0.0, box[3] - INSIDE[1])
    met = sum(_meet(box, other) for other in others)
    crossed = sum(_meet(box, bar) for bar in bars)
    return 1000 * (outside > 0) + 100 * outside + 40 * met + 3 * crossed + 0.25 * rank


def _meet(box: Box, other: Box) -> bool:
    gap = 0.02
    across = box[0] < other[2] + gap and other[0] < box[2] + gap
    return across and box[1] < other[3] + gap / 2 and other[1] < box[3] + gap / 2


def _words(spots: Sequence[Spot], missing: Sequence[str], both: tuple[Axis, Axis], look: Look) -> str:
    """Where every point is, in words."""
    texts = [f"{look.method(spot.method)} ({spot.x.mean:.6g}, {spot.y.mean:.4g})" for spot in spots]
    gaps = [f"{look.method(key)} not run" for key in missing]
    head = f"Points are means over seeds, lines 95 % t-intervals. {both[0].label}, {both[1].label}: "
    return head + ", ".join([*texts, *gaps]) + "."
