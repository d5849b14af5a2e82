"""How methods and studies are called and drawn: the same in every figure, legible on white and on near-black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

DASHES = ("solid", (0, (5, 1.6)), (0, (1.2, 1.3)), (0, (6, 1.4, 1.2, 1.4)), (0, (10, 2)))
"""Line styles of the members of a family, in their order in `decks.yaml`."""

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
        family = [other for other in self.methods if self._family(other) == self._family(key)]
        place = family.index(key) if key in family else len(family)
        return DASHES[place % len(DASHES)]

    def order(self, study: str, found: Sequence[str]) -> tuple[list[str], list[str]]:
        """Methods to draw, in the study's own order with unlisted ones last; and the listed ones not found."""
        listed = list(self.studies[study].methods) if study in self.studies else []
        drawn = [key for key in listed if key in found] + [key for key in found if key not in listed]
        return drawn, [key for key in listed if key not in found]

    def _family(self, key: str) -> str:
        return self.methods[key].family if key in self.methods else "other"
