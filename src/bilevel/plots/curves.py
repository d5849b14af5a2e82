"""A metric against the step or against another metric of the same steps: lines with bands over seeds, logarithmic
axes where asked for, one panel a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bilevel.plots import frames
from bilevel.plots.lines import HEIGHT, WIDTH, End, Line, box, names
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style
from bilevel.statistics import Interval, mean_interval

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DOTS = (0, (1, 1.6))


@dataclass(frozen=True)
class Axis:
    """A shared axis in its own units, which are those of the metric, or its decimal logarithm.

    floor: where zero stands on a logarithmic axis; None where nothing is zero.
    """

    label: str
    log: bool
    low: float
    high: float
    floor: float | None = None

    def mean(self, sample: Sequence[float]) -> Interval:
        """Mean and interval of a sample in the units of the axis."""
        if not self.log:
            return mean_interval(sample)
        above = [math.log10(value) for value in sample if value > 0]
        if above or self.floor is None:
            return mean_interval(above)
        return Interval(len(sample), self.floor, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Curve:
    """A method's line and, where there is one, its reference, both in the units of the axes.

    marked: numbers of the points whose piece of the line, from the point before, is marked.
    """

    line: Line
    last: float
    reference: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    marked: tuple[int, ...] = ()


def curves(
    table: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    y: str,
    x_label: str,
    y_label: str,
    x: str = "step",
    x_log: bool = False,
    y_log: bool = False,
    reference: str | None = None,
    reference_label: str = "",
    marked: str | None = None,
    marked_label: str = "",
    methods: Sequence[str] | None = None,
    skipped: float = 0.0,
    own_axes: bool = False,
) -> Sheet:
    """One line a method: the mean over seeds with its 95 % t-interval; axes are shared by the studies.

    table: `trace` or `measurements`.
    x, y: metrics; x may be `step`. Of a metric x the mean over seeds is taken at each step.
    y_log: mean and interval are those of the logarithm (a geometric mean), over the seeds whose value is above zero.
        Where no seed's is, the point stands on a line of its own at the foot of the axis, marked 0, and the line is
        broken before and after. x_log: what is not above zero is left out.
    reference: a metric that a line is to be compared with, such as a bound: thin and dotted, in the line's color.
    marked: a metric between 0 and 1, the share of the steps since the point before to which something applies; where it
        is 1, that piece of the line has a broad shade.
    methods: those to draw; None: all.
    skipped: share of each study's steps that is left out at the beginning: steep starts leave the rest no height.
    own_axes: each study has axes of its own, where steps or levels of one would leave another no room; upwards they
        hold the means and most of the bands.
    """
    known = table[table["value"].map(math.isfinite)] if len(table) else table
    if skipped:
        known = known[known["step"] >= skipped * known.groupby("study")["step"].transform("max")]
    drawn, missing = _split(known, studies, look, y, methods)
    labels = (x_label, x_log), (y_label, y_log)
    across, up = _axes(known, drawn, x, y, reference, *labels)
    panels = []
    for study in studies:
        if own_axes:
            across, up = _axes(known, {study: drawn[study]}, x, y, reference, *labels)
        found = [_curve(known, study, method, (x, y, reference, marked), across, up) for method in drawn[study]]
        shown = [curve for curve in found if curve.line.x]
        if own_axes and shown:
            up = _fitted(up, shown)
        notes = {f"dotted: {reference_label}": any(curve.reference[0] for curve in shown) and bool(reference_label)}
        notes[f"shaded: {marked_label}"] = any(curve.marked for curve in shown)
        note = ", ".join(text for text, there in notes.items() if there)
        panels.append(_panel(look.study(study), shown, missing[study], across, up, look, note))
    return Sheet(f"{y_label}, against: {x_label}", "One panel a study.", (Group("", tuple(panels)),), columns=2)


def _split(
    table: pd.DataFrame, studies: Sequence[str], look: Look, y: str, chosen: Sequence[str] | None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Methods to draw and listed methods that are not there, by study."""
    rows = table[table["metric"] == y]
    drawn, missing = {}, {}
    for study in studies:
        parts = look.order(study, frames.methods(rows, study))
        drawn[study], missing[study] = ([key for key in part if chosen is None or key in chosen] for part in parts)
    return drawn, missing


def _axes(
    table: pd.DataFrame,
    drawn: dict[str, list[str]],
    x: str,
    y: str,
    reference: str | None,
    across: tuple[str, bool],
    up: tuple[str, bool],
) -> tuple[Axis, Axis]:
    """Axes that hold the values of every seed; bands are cut where they are wider."""
    keep = [table["study"].eq(study) & table["method"].isin(methods) for study, methods in drawn.items()]
    rows = table[np.logical_or.reduce(keep)] if keep else table
    steps = rows[rows["metric"] == y]["step"] if x == "step" else rows[rows["metric"] == x]["value"]
    upward = rows[rows["metric"].isin([y, reference])]
    largest = upward[upward["metric"] == y].groupby(["study", "method", "step"])["value"].max()
    zero = up[1] and bool((largest <= 0).any())
    return _axis(*across, steps.to_numpy(float)), _axis(*up, upward["value"].to_numpy(float), room=0.05, zero=zero)


def _fitted(axis: Axis, found: Sequence[Curve]) -> Axis:
    """The axis cut to means and bands, which widen it by a half at most on either side."""
    items = [item for curve in found for item in curve.line.y]
    means = [item.mean for item in items]
    room = (max(means) - min(means)) or axis.high - axis.low
    low = min([*means, *(max(item.low, min(means) - room / 2) for item in items if math.isfinite(item.low))])
    high = max([*means, *(min(item.high, max(means) + room / 2) for item in items if math.isfinite(item.high))])
    return replace(axis, low=max(low - 0.05 * room, axis.low), high=min(high + 0.05 * room, axis.high))


def _axis(label: str, log: bool, values: np.ndarray, room: float = 0.0, zero: bool = False) -> Axis:
    shown = np.log10(values[values > 0]) if log else values
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    span = (high - low) or 1.0
    high = high + room * span if high > low else low + span
    if zero:
        floor = low - max(0.09 * span, 0.5)
        return Axis(label, log, floor - room * span, high, floor)
    return Axis(label, log, low - room * span, high)


def _curve(
    table: pd.DataFrame,
    study: str,
    method: str,
    metrics: tuple[str, str, str | None, str | None],
    across: Axis,
    up: Axis,
) -> Curve:
    x, y, reference, marked = metrics
    values = frames.series(table, study, method, y)
    places = {step: [float(step)] for step in values} if x == "step" else frames.series(table, study, method, x)
    at = {step: across.mean([mean_interval(sample).mean]).mean for step, sample in places.items()}
    means = {step: up.mean(sample) for step, sample in values.items()}
    steps = [step for step in values if math.isfinite(at.get(step, math.nan)) and math.isfinite(means[step].mean)]
    compared = frames.series(table, study, method, reference) if reference else {}
    both = [step for step in steps if step in compared]
    shares = frames.series(table, study, method, marked) if marked else {}
    dotted = [up.mean(compared[step]).mean for step in both]
    last = mean_interval(values[steps[-1]]).mean if steps else math.nan
    return Curve(
        Line(method, tuple(at[step] for step in steps), tuple(means[step] for step in steps)),
        last,
        (tuple(at[step] for step in both), tuple(dotted)),
        tuple(place for place, step in enumerate(steps) if place and mean_interval(shares.get(step, [0.0])).mean == 1),
    )


def _panel(
    title: str, found: Sequence[Curve], missing: Sequence[str], across: Axis, up: Axis, look: Look, note: str
) -> Panel:
    if not found:
        return empty(WIDTH, HEIGHT, title)
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes(box([look.method(curve.line.method) for curve in found]))
        _frame(axes, title, across, up)
        for curve in found:
            _draw(axes, curve, up, look)
        ends = [End(curve.line, (curve.line.y[-1].mean - up.low) / (up.high - up.low)) for curve in found]
        names(axes, ends, look)
        if note:
            axes.text(1, 1.035, note, ha="right", fontsize=8, alpha=0.75, transform=axes.transAxes)
        if missing:
            text = "not run: " + ", ".join(look.method(key) for key in missing[:3]) + (", …" if missing[3:] else "")
            figure.text(1 - 0.02 / WIDTH, 1 - 0.24 / HEIGHT, text, ha="right", fontstyle="italic", fontsize=8)
    return Panel(figure, f"{up.label}: {title}", _words(found, missing, up, look))


def _frame(axes: Axes, title: str, across: Axis, up: Axis) -> None:
    axes.set_title(title, loc="left", fontweight="bold", pad=19).set_in_layout(False)
    axes.text(0, 1.035, up.label, fontsize=8.5, alpha=0.75, transform=axes.transAxes)
    axes.set_xlabel(across.label)
    axes.set(xlim=(across.low, across.high), ylim=(up.low, up.high))
    for axis, drawn, most in ((across, axes.xaxis, 6), (up, axes.yaxis, 7)):
        if axis.log:
            ticks = _ticks(axis, most)
            drawn.set_ticks(list(ticks), list(ticks.values()))
    axes.grid(axis="y")
    axes.tick_params(length=0, axis="y")
    axes.tick_params(length=3, width=0.7, axis="x")
    axes.spines["left"].set_visible(False)


def _ticks(axis: Axis, most: int) -> dict[float, str]:
    """Places and texts of whole decades on a logarithmic axis, at most so many; of 1, 2, 5 where there are few."""
    low = axis.low if axis.floor is None else axis.floor + 0.3
    foot = {} if axis.floor is None else {axis.floor: "0"}
    whole = [float(place) for place in range(math.ceil(low - 1e-9), math.floor(axis.high + 1e-9) + 1)]
    if len(whole) < 3:
        decades = range(math.floor(low), math.ceil(axis.high))
        between = [decade + math.log10(part) for decade in decades for part in (1, 2, 5)]
        return foot | {place: _plain(place) for place in between if low - 1e-9 <= place <= axis.high + 1e-9}
    stride = next(size for size in (1, 2, 3, 4, 5, 10, 20, 50, 100) if len(whole) <= most * size or size == 100)
    small = whole[0] >= 0 and whole[-1] <= 4
    chosen = [place for place in whole if place % stride == 0]
    return foot | {place: _plain(place) if small else _power(place) for place in chosen}


def _plain(place: float) -> str:
    """10 to that power as a number; as a multiple of a whole power where it is very large or very small."""
    if -3 - 1e-9 <= place < 4 - 1e-9:
        return f"{10**place:,.4g}".replace(",", "\u202f")
    first, exponent = f"{10**place:.0e}".split("e")
    return _power(float(exponent)) if first == "1" else f"{first}·{_power(float(exponent))}"


def _power(place: float) -> str:
    return "10" + str(int(place)).translate(SUPERSCRIPTS)


def _draw(axes: Axes, curve: Curve, up: Axis, look: Look) -> None:
    line = curve.line
    color, dash = look.color(line.method), look.dash(line.method)
    for x, y in _runs(line, up):
        mean = [item.mean for item in y]
        axes.plot(x, mean, color=color, linestyle=dash, dash_capstyle="butt")
        if len(x) == 1:
            axes.plot(x, mean, marker="o", markersize=2.6, color=color, markeredgewidth=0, clip_on=False)
        if any(math.isfinite(item.low) for item in y):
            low, high = [item.low for item in y], [item.high for item in y]
            axes.fill_between(x, low, high, color=color, alpha=0.11, linewidth=0)
    for place in curve.marked:
        piece = slice(place - 1, place + 1)
        mean = [item.mean for item in line.y[piece]]
        axes.plot(line.x[piece], mean, color=color, linewidth=5, alpha=0.28, solid_capstyle="butt")
    if curve.reference[0]:
        axes.plot(*curve.reference, color=color, linestyle=DOTS, linewidth=1, dash_capstyle="butt")
    last = line.y[-1].mean
    axes.plot(line.x[-1:], [last], marker="o", markersize=3.6, color=color, markeredgewidth=0, clip_on=False)


def _runs(line: Line, up: Axis) -> Iterator[tuple[list[float], list[Interval]]]:
    """Parts of a line between which it is broken: those at the foot and those above it."""
    for _, group in groupby(zip(line.x, line.y, strict=True), key=lambda point: point[1].mean == up.floor):
        points = list(group)
        yield [x for x, _ in points], [y for _, y in points]


def _words(found: Sequence[Curve], missing: Sequence[str], up: Axis, look: Look) -> str:
    """Where every line ends, in words."""
    ends = [f"{look.method(curve.line.method)} {curve.last:.2g}" for curve in found]
    gaps = [f"{look.method(key)} not run" for key in missing]
    means = "geometric means" if up.log else "means"
    foot = " Zero stands at the foot of the axis." if up.floor is not None else ""
    text = f"Lines are {means} over seeds, bands 95 % t-intervals.{foot} {up.label}, mean at the end: "
    return text + ", ".join([*ends, *gaps]) + "."
