"""Numbers and texts as the page writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from bilevel.report.decks import Metric

DASH = "—"
SMALL = 4
"""Digits from which on a value that they would show as zero is written with a power of ten."""
LARGE = 1e8
"""From here on every value is, since the column would be as wide as the page."""
_CODE = re.compile(r"`([^`]+)`")
_EMPHASIS = re.compile(r"(?<!\w)\*([^*\s](?:[^*]*[^*\s])?)\*(?!\w)")


def decimal(value: float, digits: int) -> str:
    """`-1234.5` as `−1 234.5`: a true minus, thin spaces from five digits on, no minus before a zero.

    With `SMALL` digits or more, `2.34e-9` as `2.3·10⁻⁹`; `1.09e14` as `1.1·10¹⁴`.
    """
    text = f"{abs(value):,.{digits}f}"
    if (digits >= SMALL and value and not text.strip("0.")) or LARGE <= abs(value) < math.inf:
        text = _power(abs(value))
    text = text.replace(",", "\u202f" if abs(value) >= 10_000 else "")
    return f"−{text}" if value < 0 and text.strip("0.") else text


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def signed(value: float, digits: int) -> str:
    """With its sign, whichever it is."""
    text = decimal(value, digits)
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"


def in_unit(value: float, metric: Metric) -> str:
    """A value of a metric in the unit it is shown in, without the unit."""
    return decimal(value * metric.scale, metric.digits)


def heading(metric: Metric) -> str:
    """Name of a metric with its unit."""
    return f"{metric.name}, {metric.unit}" if metric.unit else metric.name


def difference_unit(metric: Metric) -> str:
    """Unit of a difference of two values: percentage points for percent."""
    return "pp" if metric.unit == "%" else metric.unit


def probability(value: float | None) -> str:
    """A p with three decimals."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def measured(value: float | None) -> str:
    """A measured quantity with about three digits."""
    if value is None:
        return DASH
    return decimal(value, 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2)


def prose(text: str) -> Markup:
    """Escaped text in which `code` stands between backquotes and *emphasis* between stars."""
    safe = _CODE.sub(r"<code>\1</code>", str(escape(text)))
    return Markup(_EMPHASIS.sub(r"<em>\1</em>", safe))


def paragraphs(text: str) -> list[Markup]:
    """Paragraphs parted by blank lines."""
    return [prose(" ".join(part.split())) for part in re.split(r"\n\s*\n", text) if part.strip()]


def runs(numbers: Iterable[int]) -> str:
    """`0 1 2 5` as `0–2, 5`."""
    spans: list[list[int]] = []
    for value in sorted(set(numbers)):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)


def seeds(text: str) -> str:
    """Seeds parted by spaces, shortened; as they are if they are not numbers."""
    parts = text.split()
    return runs(map(int, parts)) if parts and all(part.isdigit() for part in parts) else text


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested data with their paths; a list of plain values is one leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{path} · {key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(item, Mapping | list) for item in value):
            yield path, ", ".join(map(str, value))
        else:
            for item in value:
                yield from flat(item, path)
    else:
        yield path, DASH if value is None else str(value)
