"""Figures, taken from their files to stand inside the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from markupsafe import Markup

from bilevel.plots.svg import NAMESPACE, parse, serialize
from bilevel.report.compact import Sheet


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


def read(path: Path, sheet: Sheet) -> Drawn:
    """Take the panels out of a figure's file; a file without panels is one panel. Their styles go into `sheet`."""
    if not path.exists():
        return Drawn([], f"Not drawn: {path.parent.name}/{path.name} is not there.")
    try:
        root = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return Drawn([], f"Not drawn: {path.parent.name}/{path.name} cannot be used ({error}).")
    groups = [_group(element, sheet) for element in root if element.get("class") == "group"]
    return Drawn(groups or [Group("", [_panel(root, sheet)])])


def _group(element: Element, sheet: Sheet) -> Group:
    heading = next((child.text or "" for child in element if child.tag == "text"), "")
    return Group(heading, [_panel(child, sheet) for child in element if child.tag == "svg"])


def _html(element: Element) -> str:
    """SVG as HTML has it: no name space, no room before the end of a tag."""
    return serialize(element).replace(f' xmlns="{NAMESPACE}"', "", 1).replace(" />", "/>")


def _panel(element: Element, sheet: Sheet) -> Panel:
    for key in ("x", "y", "width", "height", "style"):
        element.attrib.pop(key, None)
    element.set("class", "panel")
    sheet.compact(element)
    width = float(element.get("viewBox", "0 0 300 200").split()[2]) * 4 / 3
    return Panel(Markup(_html(element)), round(width))
