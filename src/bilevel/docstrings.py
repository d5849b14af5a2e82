"""What a docstring says, in its parts, for what prints it in a terminal or on a page."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Collection, Iterable
from typing import NamedTuple

LABELS = ("Cost", "Memory", "Source")
"""Words with which a paragraph of its own begins."""

_ENTRY = re.compile(r"(?:^|(?<=[.;:] )|(?<=\n))([a-z]\w*(?:, [a-z]\w*)*): ")


class Docstring(NamedTuple):
    """Parts of a docstring.

    paragraphs: what is neither of the following, in order, as written; the first of a method is its formula.
    entries: what is said of each setting in paragraphs that begin with `name:` or `name, other:`.
    labelled: paragraphs that begin with one of `LABELS` and a colon, without it.
    raises: the paragraph that begins with `Raises`; None: nothing is said.
    """

    paragraphs: list[str]
    entries: dict[str, str]
    labelled: dict[str, str]
    raises: str | None


def read(text: str | None, names: Collection[str] = ()) -> Docstring:
    """Parts of a docstring that describes settings called `names`."""
    paragraphs, entries, labelled, raises = list[str](), dict[str, str](), dict[str, str](), None
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        label = paragraph.partition(":")[0]
        if label in LABELS:
            labelled[label] = joined(paragraph.partition(":")[2])
        elif paragraph.startswith("Raises "):
            raises = joined(paragraph)
        elif found := _entries(paragraph, names):
            entries |= found
        elif paragraph:
            paragraphs.append(paragraph)
    return Docstring(paragraphs, entries, labelled, raises)


def of_settings(cls: type, names: Collection[str]) -> dict[str, str]:
    """What a class and those it is derived from say of each of the settings `names`; nothing of some, perhaps."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= read(base.__dict__.get("__doc__"), names).entries
    return {name: found[name] for name in names if name in found}


def joined(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


def wrapped(paragraph: str, width: int, indent: str = "") -> str:
    """A paragraph in lines of `width`; items of a list are kept apart, and what is indented stays as it is."""
    return "\n".join(
        part if part.startswith("    ") else textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent)
        for part in items(paragraph.splitlines())
    )


def items(lines: Iterable[str]) -> list[str]:
    """Lines joined, but for those that begin an item of a list, and those of a block that is indented throughout."""
    items: list[str] = []
    block = False
    for line in lines:
        begins = re.match(r"(- |\d+\. |[A-Z]\w+(, besides)?: |[a-z]\w*(, [a-z]\w*)*: )", line)
        block = line.startswith("    ") and (block or not items)
        if block or begins or not items:
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return items


def _entries(paragraph: str, names: Collection[str]) -> dict[str, str]:
    """Descriptions by name, where the paragraph begins with one of them."""
    found: dict[str, str] = {}
    pieces = _ENTRY.split(paragraph)
    if pieces[0]:
        return {}
    current: list[str] = []
    for label, text in zip(pieces[1::2], pieces[2::2], strict=True):
        described = label.split(", ")
        if set(described) <= set(names):
            current = described
            found |= dict.fromkeys(current, joined(text))
        elif current:  # a word with a colon within a description
            found |= {name: f"{found[name]} {label}: {joined(text)}" for name in current}
        else:
            return {}
    return found
