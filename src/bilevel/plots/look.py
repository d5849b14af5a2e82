"""How methods and studies are called and drawn: the same in every figure, legible on white and on near-black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Self

from bilevel.plots.svg import INK
from bilevel.report.decks import Method, Study, load

# Okabe and Ito's hues at middle lightness: contrast of at least 3 with either background.
FAMILIES = {
    "aggregated": "#2b7bd6",
    "drmad": "#d0690f",
    "implicit": "#12917c",
    "truncated": "#c2559d",
    "exact": INK,
    "none": "#7d858f",
    "other": "#8a63d2",
}
"""Color of each family of methods."""

GROUPS = {"clean": "#2b7bd6", "corrupted": "#d0690f"}
"""Color of each group of samples."""

DASHES = ("solid", (0, (5, 1.6)), (0, (1.2, 1.3)), (0, (4.4, 1.2, 1.2, 1.2)), (0, (3, 0.9, 0.9, 0.9, 0.9, 0.9)))
"""Line styles of the members of a family. Each has a whole period in the sample beside a name."""

Dash = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """Names, families and order of methods and studies."""

    methods: Mapping[str, Method] = field(default_factory=dict)
    studies: Mapping[str, Study] = field(default_factory=dict)

    @classmethod
    def read(cls, decks_file: Path) -> Self:
        """Take them from `report/decks.yaml`."""
        decks = load(decks_file)
        return cls(decks.methods, decks.studies)

    def method(self, key: str) -> str:
        """Name of a method; its key where it has none."""
        return self.methods[key].name if key in self.methods else key

    def study(self, key: str) -> str:
        """Name of a study; its key where it has none."""
        return self.studies[key].name if key in self.studies else key

    def color(self, key: str) -> str:
        """Color of the method's family."""
        return FAMILIES.get(self._family(key), FAMILIES["other"])

    def dash(self, key: str) -> Dash:
        """Line style that tells a method from the others of its family."""
        return DASHES[self._places.get(key, 0) % len(DASHES)]

    @cached_property
    def _places(self) -> dict[str, int]:
        """Number of each method's line style: in the order of `decks.yaml`, the first that no method of its family has
        with which it shares a study. One that no study lists has another than all before it."""
        studies = {key: {name for name, study in self.studies.items() if key in study.methods} for key in self.methods}
        places: dict[str, int] = {}
        for key in self.methods:
            taken = {
                place
                for other, place in places.items()
                if self._family(other) == self._family(key) and (studies[other] & studies[key] or not studies[key])
            }
            places[key] = next(place for place in count() if place not in taken)
        return places

    def order(self, study: str, found: Sequence[str]) -> tuple[list[str], list[str]]:
        """Methods to draw, in the study's own order with unlisted ones last; and the listed ones not found."""
        listed = list(self.studies[study].methods) if study in self.studies else []
        drawn = [key for key in listed if key in found] + [key for key in found if key not in listed]
        return drawn, [key for key in listed if key not in found]

    def _family(self, key: str) -> str:
        return self.methods[key].family if key in self.methods else "other"
