"""Searched cells as graphs: a row of panels a method, one panel a domain, what domains have in common told apart.

Nodes stand on a diagonal in their order. What a node gives goes down from it; an edge to node j leaves that line in
row j, to the right, and ends at the node. An edge i → j so has a place of its own for its operation, right of column i
in row j: names never meet, and a cell has the same places in every panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import FAMILIES, Dash, Look
from bilevel.plots.operations import name_of
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style, text_width
from bilevel.plots.svg import INK

RADIUS = 0.075
"""Of a node, in inches, as all lengths here."""
ROW = 0.28
COLUMN = (0.44, 0.511)
"""Least and greatest distance of two nodes: nine of them are as wide as a phone."""
MARGIN, TOP = 0.1, 0.3
LANE = 0.066
"""Distance of two edges that end at one node."""
CORNER = 0.05
ARROW = 0.062
LABEL = (0.034, 0.042)
"""Where the name of an edge begins, from the place at which it leaves the line of its source."""
SIZE = 7.5
KEY_WIDTH, KEY_ROW, SAMPLE = 2.5, 0.19, 0.36
GAP_WIDTH, GAP_HEIGHT = 2.6, 0.8


class Edge(NamedTuple):
    """An edge with its operation."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class Kind:
    """How edges are drawn that a certain number of domains have."""

    words: str
    line: str
    color: str
    dash: Dash
    width: float


COMMON = Kind("in all domains", "a thick line", FAMILIES["aggregated"], "solid", 2.1)
PARTLY = Kind("in several, not in all", "long dashes", FAMILIES["other"], (0, (6, 1.3)), 1.6)
ALONE = Kind("in one domain alone", "short dashes", FAMILIES["drmad"], (0, (2.2, 1.3)), 1.6)
ONLY = Kind("of the only domain", "a thin line", INK, "solid", 1.3)


@dataclass(frozen=True)
class Cell:
    """The edges of each domain's cell, and the nodes there are in the space; those of `inputs` are given."""

    domains: dict[str, list[Edge]]
    nodes: tuple[int, ...]
    inputs: frozenset[int]
    seed: int

    def kind(self, edge: Edge) -> Kind:
        """Whether all domains have the edge with this operation, several or one."""
        number = sum(edge in edges for edges in self.domains.values())
        if len(self.domains) == 1:
            return ONLY
        return COMMON if number == len(self.domains) else ALONE if number == 1 else PARTLY


def cells(
    structures: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    domains: Mapping[str, str],
    methods: Sequence[str] | None = None,
) -> Sheet:
    """The chosen edges of every domain's cell, of the smallest seed that a method has.

    domains: those there may be, in the order of their panels -> titles; others come last under their own names.
    methods: those drawn; None: all.
    """
    found: list[tuple[str, Cell]] = []
    gaps = []
    for study in studies:
        parts = look.order(study, methods_of(structures, study))
        drawn, missing = ([key for key in part if methods is None or key in methods] for part in parts)
        name = look.study(study) if len(studies) > 1 else ""
        for method in drawn:
            rows = structures[(structures["study"] == study) & (structures["method"] == method)]
            found.append((": ".join(filter(None, (name, look.method(method)))), _cell(rows, domains)))
        titles = [look.method(key) for key in missing] if drawn or missing else [look.study(study)]
        if titles:
            gaps.append(Group(name, tuple(empty(GAP_WIDTH, GAP_HEIGHT, title) for title in titles)))
    column = _column([cell for _, cell in found])
    groups = [Group(heading, _panels(heading, cell, domains, column)) for heading, cell in found]
    key = [Group("", (_key([cell for _, cell in found]),))] if found else []
    return Sheet("Searched cells", "One row of panels a method, one panel a domain.", (*key, *groups, *gaps), columns=2)


def _cell(rows: pd.DataFrame, domains: Mapping[str, str]) -> Cell:
    seed = int(rows["seed"].min())
    own = rows[rows["seed"] == seed].sort_values(["target", "source"], kind="stable")
    chosen = own[own["chosen"] == 1]
    there = sorted(own["domain"].unique())
    order = [key for key in domains if key in there] + [key for key in there if key not in domains]
    columns = ["source", "target", "operation"]
    edges = {key: [*map(Edge._make, chosen[chosen["domain"] == key][columns].itertuples(index=False))] for key in order}
    sources, targets = set(map(int, own["source"])), set(map(int, own["target"]))
    return Cell(edges, tuple(sorted(sources | targets)), frozenset(sources - targets), seed)


def _column(found: Sequence[Cell]) -> float:
    """Distance of nodes at which the longest name has room between them."""
    names = {edge.operation for cell in found for edges in cell.domains.values() for edge in edges}
    widest = max((text_width(name_of(name), SIZE) for name in names), default=0.0)
    return min(max(LABEL[0] + widest + RADIUS, COLUMN[0]), COLUMN[1])


def _panels(heading: str, cell: Cell, titles: Mapping[str, str], column: float) -> tuple[Panel, ...]:
    panels = []
    for domain, edges in cell.domains.items():
        title = titles.get(domain, domain)
        panels.append(Panel(_drawing(title, cell, edges, column), f"{heading}: {title}", _words(cell, edges)))
    return tuple(panels)


def _drawing(title: str, cell: Cell, edges: Sequence[Edge], column: float) -> Figure:
    last = len(cell.nodes) - 1
    width = 2 * (MARGIN + RADIUS) + column * last
    height = TOP + MARGIN + 2 * RADIUS + ROW * last
    figure = canvas(width, height)
    with style():
        axes = _plane(figure, width, height)
        axes.text(MARGIN, height - 0.04, title, fontsize=8.5, fontweight="bold", va="top")
        at = {
            node: (MARGIN + RADIUS + column * place, height - TOP - RADIUS - ROW * place)
            for place, node in enumerate(cell.nodes)
        }
        for node in cell.nodes:
            _outline(axes, at[node], RADIUS, given=node in cell.inputs)
            axes.text(*at[node], str(node), ha="center", va="center_baseline", fontsize=SIZE)
        lanes = _lanes(edges)
        for source in cell.nodes:
            _trunk(axes, at[source], [at[edge.target][1] + lanes[edge] for edge in edges if edge.source == source])
        for edge in edges:
            _edge(axes, at[edge.source], at[edge.target], lanes[edge], cell.kind(edge))
            x, y = at[edge.source][0], at[edge.target][1] + lanes[edge]
            axes.text(x + LABEL[0], y + LABEL[1], name_of(edge.operation), fontsize=SIZE, va="baseline")
    return figure


def _plane(figure: Figure, width: float, height: float) -> Axes:
    """All of the figure, in inches."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(0, height))
    return axes


def _lanes(edges: Sequence[Edge]) -> dict[Edge, float]:
    """Heights at which edges end, from the middle of their node: those from farther away below.

    What leaves a line farther to the right then never passes through the name of another edge.
    """
    lanes: dict[Edge, float] = {}
    for target in {edge.target for edge in edges}:
        ending = sorted(edge for edge in edges if edge.target == target)
        gap = min(LANE, 1.6 * RADIUS / len(ending))
        lanes |= {edge: gap * (rank - (len(ending) - 1) / 2) for rank, edge in enumerate(ending)}
    return lanes


def _outline(axes: Axes, at: tuple[float, float], radius: float, given: bool) -> None:
    """A square for an input, a circle for another node."""
    x, y = at
    shape = Rectangle((x - radius, y - radius), 2 * radius, 2 * radius) if given else Circle(at, radius)
    shape.set(facecolor="none", edgecolor=INK, linewidth=0.8)
    axes.add_patch(shape)


def _trunk(axes: Axes, at: tuple[float, float], ends: Sequence[float]) -> None:
    """The line down from a node, to where its last edge turns off."""
    if ends:
        x, y = at
        axes.plot([x, x], [y - RADIUS, min(ends) + CORNER], color=INK, alpha=0.45, linewidth=0.9)


def _edge(axes: Axes, start: tuple[float, float], end: tuple[float, float], lane: float, kind: Kind) -> None:
    """From the line of the source, around a corner, to the rim of the target, with an arrow there."""
    x, y = start[0], end[1] + lane
    tip = end[0] - (RADIUS**2 - lane**2) ** 0.5
    places = [(x, y + CORNER), (x, y), (x + CORNER, y), (tip - ARROW, y)]
    codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3, Path.LINETO]
    line = PathPatch(Path(places, codes), facecolor="none", edgecolor=kind.color, capstyle="butt")
    line.set(linestyle=kind.dash, linewidth=kind.width)
    axes.add_patch(line)
    arrow = [(tip, y), (tip - ARROW, y + ARROW / 2.2), (tip - ARROW, y - ARROW / 2.2)]
    axes.add_patch(Polygon(arrow, facecolor=kind.color, edgecolor="none", linewidth=0))


def _key(found: Sequence[Cell]) -> Panel:
    """Which line and which node is what."""
    there = {cell.kind(edge).words for cell in found for edges in cell.domains.values() for edge in edges}
    kinds = [kind for kind in (COMMON, PARTLY, ALONE, ONLY) if kind.words in there]
    height = KEY_ROW * (len(kinds) + 1) + 0.06
    figure = canvas(KEY_WIDTH, height)
    with style():
        axes = _plane(figure, KEY_WIDTH, height)
        rows = [height - KEY_ROW * (rank + 0.5) - 0.03 for rank in range(len(kinds) + 1)]
        beside = MARGIN + SAMPLE + 0.08
        for kind, y in zip(kinds, rows, strict=False):
            axes.plot([MARGIN, MARGIN + SAMPLE], [y, y], color=kind.color, linestyle=kind.dash, linewidth=kind.width)
            axes.text(beside, y, kind.words, va="center_baseline", fontsize=8.5)
        words = "input, computed node"
        _outline(axes, (MARGIN + 0.06, rows[-1]), 0.06, given=True)
        _outline(axes, (MARGIN + SAMPLE - 0.06, rows[-1]), 0.06, given=False)
        axes.text(beside, rows[-1], words, va="center_baseline", fontsize=8.5)
    texts = [f"Edges {kind.words}: {kind.line}." for kind in kinds]
    return Panel(figure, "Key", " ".join([*texts, f"Square, circle: {words}."]))


def _words(cell: Cell, edges: Sequence[Edge]) -> str:
    """All edges of a cell, and how many of them all domains have."""
    kinds = {edge: cell.kind(edge) for edge in edges}
    texts = [
        f"{edge.source} → {edge.target} {name_of(edge.operation)}"
        + ("" if kind is ONLY else f" ({kind.words.removeprefix('in ')})")
        for edge, kind in kinds.items()
    ]
    common = sum(kind is COMMON for kind in kinds.values())
    count = "" if ONLY in kinds.values() else f" {common} of {len(edges)} edges are in all domains."
    return f"Seed {cell.seed}.{count} Edges: {', '.join(texts)}."
