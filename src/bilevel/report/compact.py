"""Figures as they stand inside the page: the same drawings in a third of the text.

A file of a figure stands alone; on the page a hundred of them share styles, markers and edges, written once. Places are
written to a tenth of a point, relative to one another, and lines do without points that lie on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, tostring

import numpy as np

from bilevel.plots.svg import is_straight, relative

TOLERANCE = 0.07
"""Points (a tenth of a pixel on a desk) that a line may be moved by leaving out some of its places."""

_LONG = 500
"""Characters of a path from which on it is not written twice."""

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NOT_TURNED = re.compile(r"rotate\(-?0(?:\.0*)? [^)]*\)")
_NUMBER = re.compile(r"-?[\d.]+")


class Sheet:
    """What the figures of a page have in common: styles by the class that stands for them, markers and edges by id."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._defined: dict[str, str] = {}
        self._drawn: dict[tuple[tuple[str, str], ...], str] = {}
        self._ids = 0

    def css(self) -> str:
        """The styles of all figures that were made compact."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    def compact(self, root: Element) -> None:
        """Shorten a drawing in place, without any change to be seen."""
        for element in root.iter():
            self._shorten_style(element)
        self._shorten_ids(root)
        _tidy(root, in_defs=False)
        for element in root.iter("path"):
            self._draw_once(element)

    def _draw_once(self, path: Element) -> None:
        """Hundreds of points that were drawn just so before are drawn as there."""
        drawn = path.get("d", "")
        if len(drawn) < _LONG or "id" in path.attrib:
            return
        looks = tuple(sorted(path.attrib.items()))
        if looks in self._drawn:
            path.tag = "use"
            del path.attrib["d"]
            path.set("href", f"#{self._drawn[looks]}")
        else:
            self._drawn[looks] = self._new_id()
            path.set("id", self._drawn[looks])

    def _shorten_style(self, element: Element) -> None:
        style = element.attrib.pop("style", "").strip().rstrip(";").replace(": ", ":").replace("; ", ";")
        if style:
            name = self._classes.setdefault(style, f"d{len(self._classes)}")
            element.set("class", f"{element.get('class', '')} {name}".strip())

    def _shorten_ids(self, root: Element) -> None:
        names: dict[str, str] = {}
        for parent in root.iter("defs"):
            for child in [child for child in parent if child.get("id")]:
                self._define_once(parent, child, names)
        for element in root.iter():
            if (name := element.get("id")) and name not in names:
                names[name] = self._new_id()
        for element in root.iter():
            for key, value in element.attrib.items():
                if key == "id":
                    element.set(key, names[value])
                elif key == "href":
                    element.set(key, f"#{names.get(value[1:], value[1:])}")
                elif key == "aria-labelledby":
                    element.set(key, " ".join(names.get(name, name) for name in value.split()))
                elif "url(#" in value:
                    element.set(key, _REFERENCE.sub(lambda found: f"url(#{names.get(found[1], found[1])})", value))

    def _define_once(self, parent: Element, child: Element, names: dict[str, str]) -> None:
        name = child.attrib.pop("id")
        content = tostring(child, encoding="unicode")
        child.set("id", name)
        if content in self._defined:
            parent.remove(child)
        names[name] = self._defined.setdefault(content, self._new_id())

    def _new_id(self) -> str:
        self._ids += 1
        return f"f{self._ids}"


def _tidy(parent: Element, *, in_defs: bool) -> None:
    """Shorten what is below an element, and do without groups that say nothing."""
    children: list[Element] = []
    for child in parent:
        _tidy(child, in_defs=in_defs or child.tag == "defs")
        if _NOT_TURNED.fullmatch(child.get("transform", "")):
            child.attrib.pop("transform")
        if child.tag == "path":
            child.set("d", shortened(child.get("d", ""), small=in_defs))
        if child.tag == "g" and not child.attrib:
            children += list(child)
        elif child.tag not in ("g", "defs") or len(child):
            children.append(child)
    parent[:] = list(_clipped_together(children))


def _clipped_together(children: Sequence[Element]) -> Iterator[Element]:
    """Neighbors that are cut off alike, in one group that is."""
    group = Element("g")
    for child in children:
        clip = child.get("clip-path", "")
        if not clip or "transform" in child.attrib:
            yield from _ungrouped(group)
            group = Element("g")
            yield child
            continue
        if group.get("clip-path") != clip:
            yield from _ungrouped(group)
            group = Element("g", {"clip-path": clip})
        group.append(child)
    yield from _ungrouped(group)


def _ungrouped(group: Element) -> Iterator[Element]:
    """The group, without what it says on each of its members; its only member; or nothing."""
    if len(group) == 1:
        yield group[0]
    elif len(group):
        for child in group:
            child.attrib.pop("clip-path")
        yield group


def shortened(path: str, *, small: bool = False) -> str:
    """Path data as the page has it. `small`: what is round is left as it is, as markers are too small for a tenth."""
    if not is_straight(path):
        return path if small else relative(path)
    return relative("".join(map(_thinned, re.findall(r"M[^M]*", path))))


def _thinned(part: str) -> str:
    """One line, open or closed, in absolute coordinates, without the places that it need not be led through."""
    numbers = np.array([float(number) for number in _NUMBER.findall(part)]).reshape(-1, 2)
    kept = np.zeros(len(numbers), dtype=bool)
    kept[[0, -1]] = True
    waiting = [(0, len(numbers) - 1)]
    while waiting:  # Douglas and Peucker's: the place that is farthest from the straight way, until none is far
        first, last = waiting.pop()
        if last - first < 2:
            continue
        away = _distance(numbers[first + 1 : last], numbers[first], numbers[last])
        farthest = first + 1 + int(away.argmax())
        if away.max() > TOLERANCE:
            kept[farthest] = True
            waiting += [(first, farthest), (farthest, last)]
    pairs = [f"{x:g} {y:g}" for x, y in numbers[kept].round(2)]
    if len(numbers) == 2 or (len(pairs) == 2 and "z" in part):
        pairs = [f"{x:g} {y:g}" for x, y in numbers]  # a point, or something closed and thin, is drawn all the same
    return f"M {' L '.join(pairs)} {'z ' if 'z' in part else ''}"


def _distance(places: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of each place from the straight line between two others."""
    way, to = end - start, places - start
    length = float(way @ way)
    along = np.clip(to @ way / length, 0, 1) if length else np.zeros(len(to))
    result: np.ndarray = np.linalg.norm(to - along[:, None] * way, axis=1)
    return result
