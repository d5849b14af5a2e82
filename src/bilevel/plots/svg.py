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
_ELSEWHERE = re.compile(r"url\(\s*(?![#\s])", re.IGNORECASE)
_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_STRAIGHT = re.compile(r"M[MLz]*")
_ABSOLUTE = re.compile(r"(?:[MLQCz]|[-\d.]+|\s+)+")
_POINTS = {"M": 1, "L": 1, "Q": 2, "C": 3}
"""Commands of a path that `relative` knows -> points that each takes."""
_FORBIDDEN = ("script", "foreignObject", "metadata", "style")


def parse(text: str) -> Element:
    """Tree of an SVG document with plain tag names, without scripts, styles, metadata and anything that lies elsewhere.

    Raises:
        ValueError: the text is not well-formed XML or not SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not well-formed: {error}") from error
    for element in root.iter():
        element.tag = _plain(element.tag)
        own = {_plain(key): value for key, value in element.attrib.items()}
        element.attrib = {key: value for key, value in own.items() if _harmless(key, value)}
    if root.tag != "svg":
        raise ValueError(f"not SVG: the root element is {root.tag}")
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _FORBIDDEN]:
            parent.remove(child)
    return root


def _harmless(key: str, value: str) -> bool:
    """Neither a script nor a reference out of the document."""
    if key.lower().startswith("on") or (key == "href" and not value.startswith("#")):
        return False
    return not _ELSEWHERE.search(value)


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
        if is_straight(path := element.get("d", "")):
            element.set("d", relative(path))


def is_straight(path: str) -> bool:
    """Whether path data is of lines alone, in absolute coordinates."""
    return bool(_STRAIGHT.fullmatch("".join(letter for letter in path if letter.isalpha())))


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


def relative(path: str) -> str:
    """Path data in relative coordinates with one decimal; as it is where it has other commands than M, L, Q, C and z.

    Places are rounded before they are subtracted: errors do not add up.
    """
    if not _ABSOLUTE.fullmatch(path):
        return path
    start = at = (0, 0)
    text, command, written = "", "", ""
    words = iter(path.split())
    for word in words:
        if word == "z":
            at, text, written = start, text + "z", "z"
            continue
        command, numbers = (word, []) if word.isalpha() else (command.replace("M", "L"), [word])
        numbers += [next(words) for _ in range(2 * _POINTS[command] - len(numbers))]
        points = [
            (round(10 * float(x)), round(10 * float(y))) for x, y in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        piece = "".join(_tenths(x - at[0]) + _tenths(y - at[1]) for x, y in points)
        # pairs of numbers that follow without a letter are what the letter before says, and lines after a move
        text += piece if command == written else command.lower() + piece.lstrip()
        at = points[-1]
        start = at if command == "M" else start
        written = command.replace("M", "L")
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
