"""Figures, taken from their files to stand inside the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from markupsafe import Markup

from bilevel.plots.svg import parse, serialize


@dataclass(frozen=True)
class Panel:
    """One drawing; `width` is its natural width in CSS pixels."""

    svg: Markup
    width: int


@dataclass(frozen=True)
class Group:
    """Panels under a heading, or under none."""

    heading: str
    panels: list[Panel]


@dataclass(frozen=True)
class Drawn:
    """A figure in groups of panels; `gap` says why there is none."""

    groups: list[Group]
    gap: str = ""


def read(path: Path) -> Drawn:
    """Take the panels out of a figure's file; a file without panels is one panel."""
    if not path.exists():
        return Drawn([], f"Not drawn: {path.parent.name}/{path.name} is not there.")
    try:
        root = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return Drawn([], f"Not drawn: {path.parent.name}/{path.name} cannot be used ({error}).")
    groups = [_group(element) for element in root if element.get("class") == "group"]
    return Drawn(groups or [Group("", [_panel(root)])])


def _group(element: Element) -> Group:
    heading = next((child.text or "" for child in element if child.tag == "text"), "")
    return Group(heading, [_panel(child) for child in element if child.tag == "svg"])


def _panel(element: Element) -> Panel:
    for key in ("x", "y", "width", "height", "style"):
        element.attrib.pop(key, None)
    element.set("class", "panel")
    width = float(element.get("viewBox", "0 0 300 200").split()[2]) * 4 / 3
    return Panel(Markup(serialize(element)), round(width))
