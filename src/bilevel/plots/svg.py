"""SVG as a tree: what matplotlib wrote, made fit to stand inside a page beside others. Imports no matplotlib."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

INK = "#0d0e0f"
"""Stands for the color of text: replaced by `currentColor`, so that a figure follows the page it is on."""

NAMESPACE = "http://www.w3.org/2000/svg"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_STRAIGHT = re.compile(r"M[MLz]*")
_FORBIDDEN = ("script", "foreignObject", "metadata", "style")


def parse(text: str) -> Element:
    """Tree of an SVG document with plain tag names, without scripts, styles and metadata.

    Raises:
        ValueError: the text is not well-formed XML or not SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not well-formed: {error}") from error
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.attrib = {
            _plain(key): value for key, value in element.attrib.items() if not key.lower().startswith("on")
        }
    if root.tag != "svg":
        raise ValueError(f"not SVG: the root element is {root.tag}")
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _FORBIDDEN]:
            parent.remove(child)
    return root


def isolate(root: Element, prefix: str) -> None:
    """Give every id that is referred to a prefix, and drop the other ones, so that no two figures clash."""
    used = set(_references(root))
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.attrib.pop(key) if value not in used else element.set(key, f"{prefix}-{value}")
            elif key == "href" and value.startswith("#"):
                element.set(key, f"#{prefix}-{value[1:]}")
            elif key == "aria-labelledby":
                element.set(key, " ".join(f"{prefix}-{name}" for name in value.split()))
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def adapt(root: Element) -> None:
    """Let ink follow the page's text color, and text its font; a hundredth of a point is fine enough."""
    for element in root.iter():
        style = element.get("style")
        if style is not None:
            element.set("style", _FAMILY.sub("", style).replace(INK, "currentColor").rstrip("; "))
        for key in set(element.attrib) - {"style", "id", "href"}:
            element.set(key, _LONG.sub(_short, " ".join(element.attrib[key].split())))
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None


def coarsen(root: Element) -> None:
    """Write paths of straight lines to a tenth of a point, from each corner to the next: about half the text.

    For drawings of many short lines. Other paths are left as they are.
    """
    for element in root.iter("path"):
        words = element.get("d", "").split()
        if words and _STRAIGHT.fullmatch("".join(word for word in words if word.isalpha())):
            element.set("d", _relative(words))


def describe(root: Element, title: str, description: str) -> None:
    """Name an image for those who do not see it."""
    heading, text = Element("title", id="title"), Element("desc", id="desc")
    heading.text, text.text = title, description
    root[:0] = [heading, text]
    root.set("role", "img")
    root.set("aria-labelledby", "title desc")


def serialize(root: Element) -> str:
    """The document's text, one byte sequence for one tree."""
    root.set("xmlns", NAMESPACE)
    text = ElementTree.tostring(root, encoding="unicode")
    root.attrib.pop("xmlns")
    return text


def _references(root: Element) -> Iterator[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href":
                yield value.removeprefix("#")
            elif key == "aria-labelledby":
                yield from value.split()
            else:
                yield from _REFERENCE.findall(value)


def _relative(words: list[str]) -> str:
    """Path data of M, L and z in relative coordinates, where pairs without a letter are lines.

    Places are rounded before they are subtracted: errors do not add up.
    """
    start = at = (0, 0)
    text, rest = "", iter(words)
    for word in rest:
        if word == "z":
            at = start
            text += "z"
            continue
        to = (round(10 * float(next(rest))), round(10 * float(next(rest))))
        start = to if word == "M" else start
        pair = _tenths(to[0] - at[0]) + _tenths(to[1] - at[1])
        text += "m" + pair.lstrip() if word == "M" else pair
        at = to
    return text


def _tenths(number: int) -> str:
    """A number of tenths with what parts it from the number before it: a space or its sign."""
    text = f"{abs(number) / 10:g}"
    return ("-" if number < 0 else " ") + (text.removeprefix("0") or "0")


def _short(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _plain(name: str) -> str:
    return name.rpartition("}")[2]
