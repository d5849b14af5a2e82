"""Functions of two variables: a row of panels a method, in bands of color with contour lines and samples on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from scipy.interpolate import RegularGridInterpolator

from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import GROUPS, Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style
from bilevel.plots.svg import INK

WIDTH = 1.68  # two panels stand side by side on a phone
LEFT, RIGHT, BOTTOM, TOP = 0.22, 0.04, 0.2, 0.2
SIDE = WIDTH - LEFT - RIGHT
"""Inches that the longer side of the plane is drawn with."""
GAP_HEIGHT = 0.8
KEY_WIDTH, KEY_HEIGHT, KEY_LINE = 3.3, 0.52, 0.18

BELOW, ABOVE = GROUPS["clean"], GROUPS["corrupted"]
"""Hues on either side of the middle. The middle itself is as the page is, light or dark."""
DEEPEST = 0.88
"""Opacity of the outermost bands: samples and lines, which have the color of text, stay legible on them."""

DECISION: Mapping[str, str] = {"decision_start": "Before", "decision_end": "After"}
KERNEL: Mapping[str, str] = {"kernel_start": "Before", "kernel_end": "After"}


@dataclass(frozen=True)
class Glyph:
    """Mark of a place: a polygon around it, in points, hollow or filled."""

    polygon: np.ndarray
    filled: bool
    words: str
    opacity: float = 1.0


def _regular(corners: int, radius: float) -> np.ndarray:
    angles = np.pi / 2 + 2 * np.pi / corners * np.arange(corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


GLYPHS = {
    "class 0": Glyph(_regular(6, 1.35), filled=False, words="Hollow circles"),
    "class 1": Glyph(_regular(3, 1.9), filled=True, words="Filled triangles"),
    "class 0, test": Glyph(_regular(6, 0.9), filled=False, words="Faint hollow circles", opacity=0.4),
    "class 1, test": Glyph(_regular(3, 1.3), filled=True, words="Faint filled triangles", opacity=0.4),
    "x₀": Glyph(_regular(4, 3.6), filled=True, words="Diamond"),
}

Marks = dict[str, np.ndarray]
"""Name of a glyph -> places of shape (n, 2)."""


@dataclass(frozen=True)
class Field:
    """A function on a grid: values of shape (len(y), len(x)), NaN where there is none."""

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray

    @property
    def unit(self) -> float:
        """Inches that one unit of x and of y is drawn with."""
        return SIDE / float(max(np.ptp(self.x), np.ptp(self.y)))

    def inside(self, places: np.ndarray) -> np.ndarray:
        """Those of the places that the grid holds; what rounding put just outside it is moved to its rim."""
        low, high = np.array([self.x[0], self.y[0]]), np.array([self.x[-1], self.y[-1]])
        moved = places.clip(low, high)
        kept: np.ndarray = moved[(np.abs(moved - places) <= 1e-4 * (high - low)).all(axis=1)]
        return kept

    def at(self, places: np.ndarray) -> np.ndarray:
        """Values at places that it holds, linear between the points of the grid; NaN where there is none."""
        between = RegularGridInterpolator((self.y, self.x), self.values)
        found: np.ndarray = between(places[:, ::-1])
        return found


@dataclass(frozen=True)
class Scale:
    """Bands of color that all panels share.

    middle: what is neither hue. Where it is an edge itself, the hues meet there; otherwise the band around it has none.
    edges: rising; each parts two bands. What is beyond the first and the last one is in the outermost bands.
    ends: of the scale in the key.
    ticks: values written there.
    lines: values at which there is a contour line.
    """

    label: str
    middle: float
    edges: tuple[float, ...]
    ends: tuple[float, float]
    ticks: tuple[float, ...]
    lines: tuple[float, ...]
    line_width: float

    def layers(self) -> list[tuple[float, float, str, float]]:
        """Side of the middle (1 or -1), edge, hue and opacity: on each side, outer layers lie on the inner ones.

        Opacities are such that bands are equally far apart in color, and seams between them do not show.
        """
        sides = {1.0: [edge for edge in self.edges if edge >= self.middle]}
        sides[-1.0] = [edge for edge in reversed(self.edges) if edge <= self.middle]
        most = max(len(edges) for edges in sides.values())
        opacity = [DEEPEST * rank / most for rank in range(most + 1)]
        return [
            (side, edge, ABOVE if side > 0 else BELOW, 1 - (1 - opacity[rank + 1]) / (1 - opacity[rank]))
            for side, edges in sides.items()
            for rank, edge in enumerate(edges)
        ]


@dataclass(frozen=True)
class Row:
    """A method of a study: title of each panel -> what it shows (None: no values); marks on all of them."""

    heading: str
    fields: dict[str, Field | None]
    marks: Marks


PROBABILITY = Scale(
    label="Probability of class 1",
    middle=0.5,
    edges=tuple(k / 8 for k in range(1, 8)),
    ends=(0.0, 1.0),
    ticks=(0.0, 0.25, 0.5, 0.75, 1.0),
    lines=(0.5,),
    line_width=1.3,
)

# Steps up to 1, the value at x₀. There is no edge at zero, which the tail of a kernel is rounded to.
_QUARTERS = (0.25, 0.5, 0.75, 1.0)
POSITIVE = Scale(
    label="Kernel K(x₀, x) / K(x₀, x₀)",
    middle=0.0,
    edges=_QUARTERS,
    ends=(0.0, 1.25),
    ticks=(0.0, 0.5, 1.0),
    lines=(0.5, 1.0),
    line_width=0.7,
)
SIGNED = replace(
    POSITIVE,
    edges=(*(-edge for edge in reversed(_QUARTERS)), *_QUARTERS),
    ends=(-1.25, 1.25),
    ticks=(-1.0, -0.5, 0.0, 0.5, 1.0),
    lines=(-1.0, -0.5, 0.5, 1.0),
)


def decision(
    points: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    quantities: Mapping[str, str] = DECISION,
    methods: Sequence[str] | None = None,
    samples: str = "train",
    tests: str | None = None,
) -> Sheet:
    """Probability of class 1 on the plane, with the line where it is one half and the samples of both classes.

    quantities: those drawn, from left to right -> titles of their panels.
    methods: those drawn; None: all.
    samples: quantity whose values are labels, 0 or 1.
    tests: another one, whose places are drawn lightly; None: none.

    Of each method the first seed that has points is drawn.
    """

    def marks(rows: pd.DataFrame) -> Marks:
        found: Marks = {}
        for quantity, suffix in ((tests, ", test"), (samples, "")):
            labels = rows[rows["quantity"] == quantity]
            found |= {f"class {label}{suffix}": _places(labels[labels["value"] == label]) for label in (0, 1)}
        return found

    rows, gaps = _rows(points, studies, look, quantities, methods, marks)
    return _sheet(rows, gaps, PROBABILITY, _decision_words)


def kernel(
    points: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    quantities: Mapping[str, str] = KERNEL,
    methods: Sequence[str] | None = None,
    center: str = "center",
) -> Sheet:
    """Kernel K(x₀, x) / K(x₀, x₀) as a function of x on the plane; it may be negative, and above 1.

    quantities, methods: as for `decision`.
    center: quantity that has x₀ as its one point.
    """

    def marks(rows: pd.DataFrame) -> Marks:
        return {"x₀": _places(rows[rows["quantity"] == center])[:1]}

    rows, gaps = _rows(points, studies, look, quantities, methods, marks)
    return _sheet(rows, gaps, _kernel_scale(rows), _kernel_words)


def _rows(
    points: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    quantities: Mapping[str, str],
    chosen: Sequence[str] | None,
    marks: Callable[[pd.DataFrame], Marks],
) -> tuple[list[Row], list[Group]]:
    """What is drawn, and gaps in the place of what was not run."""
    shown = points[points["quantity"].isin(list(quantities))]
    rows, gaps = [], []
    for study in studies:
        parts = look.order(study, methods_of(shown, study))
        drawn, missing = ([key for key in part if chosen is None or key in chosen] for part in parts)
        name = look.study(study) if len(studies) > 1 else ""
        for method in drawn:
            found = points[(points["study"] == study) & (points["method"] == method)]
            found = found[found["seed"] == found["seed"].min()]
            fields = {title: _field(found[found["quantity"] == key]) for key, title in quantities.items()}
            rows.append(Row(": ".join(filter(None, (name, look.method(method)))), fields, marks(found)))
        titles = [look.method(key) for key in missing] if drawn or missing else [look.study(study)]
        if titles:
            gaps.append(Group(name, tuple(empty(WIDTH, GAP_HEIGHT, title) for title in titles)))
    return rows, gaps


def _places(rows: pd.DataFrame) -> np.ndarray:
    places = rows[["x", "y"]].sort_values(["x", "y"]).to_numpy(float)
    found: np.ndarray = places[np.isfinite(places).all(axis=1)]
    return found


def _field(rows: pd.DataFrame) -> Field | None:
    """The function on its grid; None without two places in each direction."""
    known = rows[np.isfinite(rows[["x", "y", "value"]].to_numpy(float)).all(axis=1)].drop_duplicates(["x", "y"])
    grid = known.pivot(index="y", columns="x", values="value")
    if min(grid.shape) < 2:
        return None
    return Field(grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy(float))


def _kernel_scale(rows: Sequence[Row]) -> Scale:
    """Both hues only where there is something for the second."""
    lowest = [np.nanmin(field.values) for row in rows for field in row.fields.values() if field]
    return SIGNED if min(lowest, default=0.0) < -_QUARTERS[0] else POSITIVE


def _sheet(rows: Sequence[Row], gaps: Sequence[Group], scale: Scale, words: Callable[[Field, Marks], str]) -> Sheet:
    groups = [Group(row.heading, tuple(_panels(row, scale, words))) for row in rows]
    titles = list(dict.fromkeys(title for row in rows for title in row.fields))
    heading = ": ".join([scale.label, ", ".join(titles).lower()]) if titles else scale.label
    names = list(dict.fromkeys(name for row in rows for name, places in row.marks.items() if len(places)))
    key = [Group("", (_key(scale, names),))] if rows else []
    return Sheet(heading, "One row of panels a method.", (*key, *groups, *gaps), columns=2)


def _panels(row: Row, scale: Scale, words: Callable[[Field, Marks], str]) -> Iterator[Panel]:
    for title, field in row.fields.items():
        name = f"{scale.label}: {row.heading}, {title.lower()}"
        if field is None:
            yield replace(empty(WIDTH, GAP_HEIGHT, title, "no values"), title=name)
        else:
            marks = {kind: field.inside(places) for kind, places in row.marks.items()}
            yield Panel(_drawing(title, field, marks, scale), name, words(field, marks), coarse=True)


def _drawing(title: str, field: Field, marks: Marks, scale: Scale) -> Figure:
    width, height = field.unit * np.ptp(field.x), field.unit * np.ptp(field.y)
    whole = TOP + height + BOTTOM
    figure = canvas(WIDTH, whole)
    with style():
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / whole, width / WIDTH, height / whole))
        axes.set(xlim=field.x[[0, -1]], ylim=field.y[[0, -1]])
        _bands(axes, field, scale)
        _mark(axes, marks, field.unit)
        axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold", pad=4)
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=7.5, length=2, width=0.6, pad=2)
        _surround(axes)
    return figure


def _surround(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.6)


def _bands(axes: Axes, field: Field, scale: Scale) -> None:
    values = np.ma.masked_invalid(field.values)
    for side, edge, hue, opacity in scale.layers():
        outermost = float((side * values).max())
        if outermost > side * edge:
            levels = [side * edge, outermost + 1]
            axes.contourf(field.x, field.y, side * values, levels=levels, colors=[hue], alpha=opacity)
    lines = [line for line in scale.lines if values.min() < line < values.max()]
    if lines:
        axes.contour(
            field.x, field.y, values, levels=lines, colors=INK, linewidths=scale.line_width, linestyles="solid"
        )


def _mark(axes: Axes, marks: Marks, unit: float) -> None:
    """All marks of a kind are one path: the file would be several times as long with a mark an element."""
    for name, places in marks.items():
        if not len(places):
            continue
        polygon, filled = GLYPHS[name].polygon, GLYPHS[name].filled
        closed = np.concatenate([polygon, polygon[:1]]) / (72 * unit)
        vertices = (places[:, None] + closed).reshape(-1, 2)
        codes = [Path.MOVETO, *[Path.LINETO] * (len(polygon) - 1), Path.CLOSEPOLY] * len(places)
        colors = {"facecolor": INK if filled else "none", "edgecolor": "none" if filled else INK}
        width, opacity = 0 if filled else 0.6, GLYPHS[name].opacity
        patch = PathPatch(Path(vertices, codes), linewidth=width, alpha=opacity, clip_on=False, **colors)
        axes.add_patch(patch)


def _key(scale: Scale, names: Sequence[str]) -> Panel:
    """Which color is which value, and which mark is what."""
    whole = max(KEY_HEIGHT, 0.16 + KEY_LINE * len(names))
    figure = canvas(KEY_WIDTH, whole)
    with style():
        figure.text(0.1 / KEY_WIDTH, 1 - 0.04 / whole, scale.label, fontsize=8.5, va="top")
        axes = figure.add_axes((0.1 / KEY_WIDTH, 1 - 0.35 / whole, 2.0 / KEY_WIDTH, 0.14 / whole))
        ends = np.array(scale.ends)
        _bands(axes, Field(ends, np.array([0.0, 1.0]), np.stack([ends, ends])), scale)
        axes.set_yticks([])
        axes.set_xticks(scale.ticks, [_number(tick) for tick in scale.ticks])
        axes.tick_params(labelsize=7.5, length=2, width=0.6, pad=2)
        _surround(axes)
        beside = figure.add_axes((0, 0, 1, 1))
        beside.set_axis_off()
        beside.set(xlim=(0, KEY_WIDTH), ylim=(0, whole))
        for place, name in enumerate(names):
            height = whole - 0.16 - KEY_LINE * place
            _mark(beside, {name: np.array([[2.4, height]])}, unit=1)
            beside.text(2.52, height, name, va="center_baseline", fontsize=8.5)
    shapes = [f"{GLYPHS[name].words}: {name}." for name in names]
    return Panel(figure, "Key", " ".join([_key_words(scale), *shapes]))


def _key_words(scale: Scale) -> str:
    above = [edge for edge in scale.edges if edge >= scale.middle]
    below = [edge for edge in reversed(scale.edges) if edge <= scale.middle]
    texts = [f"Orange: above {_number(above[0])}, deeper up to {_number(above[-1])}."]
    texts += [f"Blue: below {_number(below[0])}, deeper down to {_number(below[-1])}."] if below else []
    lines = ", ".join(_number(line) for line in scale.lines)
    return " ".join([*texts, f"Contour {'lines' if len(scale.lines) > 1 else 'line'}: {lines}."])


def _decision_words(field: Field, marks: Marks) -> str:
    values = field.values[np.isfinite(field.values)]
    text = f"{_range(field)} It is above one half on {100 * (values > 0.5).mean():.0f} % of the plane"
    counts = []
    for name, places in marks.items():
        at = field.at(places)
        if np.isfinite(at).any():
            counts.append(f"{(at > 0.5).sum()} of {np.isfinite(at).sum()} samples of {name}")
    return text + (", where " + " and ".join(counts) + " stand." if counts else ".")


def _kernel_words(field: Field, marks: Marks) -> str:
    row, column = np.unravel_index(np.nanargmax(field.values), field.values.shape)
    text = f"{_range(field)} It is largest at ({_number(field.x[column])}, {_number(field.y[row])})"
    return text + "".join(f"; x₀ is ({_number(x)}, {_number(y)})" for x, y in marks["x₀"]) + "."


def _range(field: Field) -> str:
    return f"From {_number(np.nanmin(field.values))} to {_number(np.nanmax(field.values))}."


def _number(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:g}".replace("-", "−")  # + 0.0: no minus before zero
