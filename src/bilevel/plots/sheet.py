"""A sheet: panels in groups, each panel a drawing of its own, so that a narrow page can stack them.

The file is one SVG with the panels in rows; inside it every panel is an `<svg class="panel">` in a
`<g class="group">`, which a page may take out and lay out by itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element, SubElement

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from bilevel.files import replacing
from bilevel.plots.svg import FONTS, INK, adapt, coarsen, describe, isolate, parse, serialize

RC: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bilevel",
    "font.family": "DejaVu Sans",  # what matplotlib carries: widths are the same on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.5,
}
"""Settings under which every panel is drawn."""

GAP = 12.0
HEADING = 18.0


@dataclass(frozen=True)
class Panel:
    """One drawing with the words that stand for it. `coarse`: its paths are written to a tenth of a point."""

    figure: Figure
    title: str
    description: str
    coarse: bool = False

    def element(self) -> Element:
        """The drawing as an SVG element with a view box in points."""
        buffer = io.StringIO()
        FigureCanvasSVG(self.figure)
        with style():
            self.figure.savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )
        root = parse(buffer.getvalue())
        adapt(root)
        if self.coarse:
            coarsen(root)
        for key in ("width", "height", "version"):
            root.attrib.pop(key, None)
        root.set("class", "panel")
        describe(root, self.title, self.description)
        return root


@dataclass(frozen=True)
class Group:
    """Panels that belong together, under a heading or none."""

    heading: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Sheet:
    """A whole figure: groups below one another, panels in rows of at most `columns`."""

    title: str
    description: str
    groups: tuple[Group, ...]
    columns: int

    def svg(self, prefix: str) -> str:
        """The figure as one SVG document; every id in it begins with the prefix."""
        root = Element("svg", {"class": "sheet", "style": f"font-family: {FONTS}; stroke-linejoin: round"})
        width = top = 0.0
        number = 0
        for group in self.groups:
            holder = SubElement(root, "g", {"class": "group"})
            if group.heading:
                top += HEADING
                style = "font-size: 11px; font-weight: 600; fill: currentColor"
                heading = SubElement(holder, "text", {"x": "4", "y": f"{top - 6:g}", "style": style})
                heading.text = group.heading
            for start in range(0, len(group.panels), self.columns):
                left = tallest = 0.0
                for panel in group.panels[start : start + self.columns]:
                    number += 1
                    element = panel.element()
                    isolate(element, f"{prefix}-{number}")
                    w, h = size(element)
                    element.attrib.update(x=f"{left:g}", y=f"{top:g}", width=f"{w:g}", height=f"{h:g}")
                    holder.append(element)
                    left, tallest = left + w + GAP, max(tallest, h)
                width, top = max(width, left - GAP), top + tallest + GAP
        root.set("viewBox", f"0 0 {width:g} {top - GAP:g}")
        self._name(root, prefix)
        return serialize(root) + "\n"

    def write(self, path: Path, prefix: str) -> None:
        """Write the figure, whole or not at all."""
        text = self.svg(prefix)
        with replacing(path) as file:
            file.write(text.encode())

    def _name(self, root: Element, prefix: str) -> None:
        describe(root, self.title, self.description)
        for element in root[:2]:
            element.set("id", f"{prefix}-{element.get('id')}")
        root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")


def style() -> AbstractContextManager[None]:
    """The common settings, for as long as a panel is drawn."""
    return matplotlib.rc_context(cast(Any, RC))


def size(element: Element) -> tuple[float, float]:
    """Width and height of an element's view box."""
    _, _, width, height = (float(part) for part in element.get("viewBox", "0 0 0 0").split())
    return width, height


def canvas(width: float, height: float) -> Figure:
    """An empty figure of that many inches, under the common settings."""
    with style():
        return Figure(figsize=(width, height))


def empty(width: float, height: float, title: str, reason: str = "not run") -> Panel:
    """A visible gap in the place of a drawing."""
    figure = canvas(width, height)
    with style():
        axes = figure.add_axes((0.03, 0.03, 0.94, 0.94))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, linestyle=(0, (3, 3)), alpha=0.45)
        axes.text(0.5, 0.56, title, ha="center", va="bottom", fontweight="bold", transform=axes.transAxes)
        axes.text(0.5, 0.46, reason, ha="center", va="top", fontstyle="italic", transform=axes.transAxes)
    return Panel(figure, title, f"{title}: {reason}.")


def text_width(text: str, points: float) -> float:
    """Width in inches of a line of text of that size. Fonts of a page are hardly ever wider."""
    font = FontProperties(family=RC["font.family"], size=points)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) / 72
