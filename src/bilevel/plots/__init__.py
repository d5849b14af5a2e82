"""Figures of the report: one file a figure family, each a function from tables to a `Sheet` of panels.

`FIGURES` says which figures a deck has; `draw` writes one of them. Importing this package loads neither pandas
nor matplotlib, so that a workflow may list the figures at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel.errors import UserError

if TYPE_CHECKING:
    from bilevel.plots.look import Look
    from bilevel.plots.sheet import Sheet
    from bilevel.tables import TableName

__all__ = ["FIGURES", "Drawing", "draw"]


@dataclass(frozen=True)
class Drawing:
    """A function of a figure family, the table it reads, and the studies that it is given, one panel or row each."""

    module: str
    function: str
    table: TableName
    studies: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, tables: Path, look: Look) -> Sheet:
        """Read the table and lay the figure out."""
        from bilevel.plots.frames import read

        family = getattr(import_module(f"bilevel.plots.{self.module}"), self.function)
        sheet: Sheet = family(read(tables, self.table), self.studies, look, **self.settings)
        return sheet


_CLEANING = ("cleaning_published", "cleaning_corrected")

FIGURES: dict[str, dict[str, Drawing]] = {
    "000": {
        "accuracy_by_step": Drawing("by_step", "accuracy_by_step", "trace", _CLEANING),
        "weights_histogram": Drawing("histograms", "weights_histogram", "histograms", _CLEANING),
        "auc_by_step": Drawing("by_step", "auc_by_step", "trace", _CLEANING),
        "accuracy_by_cost": Drawing("by_cost", "accuracy_by_cost", "trace", _CLEANING),
    },
}
"""Deck -> figure -> how it is drawn; the file is `results/figures/<deck>/<figure>.svg`."""


def draw(deck: str, figure: str, tables: Path, output: Path, decks_file: Path | None = None) -> None:
    """Draw one figure from the tables of a finished run.

    Args:
        deck: key of `FIGURES`, such as "000".
        figure: key of `FIGURES[deck]`.
        tables: directory of the tables (`trace.csv`, `histograms.csv`).
        output: SVG file; it appears whole or not at all. The same tables give the same bytes.
        decks_file: `report/decks.yaml`, for the names and families of methods and studies; without it the
            keys stand in their place.

    Raises:
        UserError: the deck or the figure is unknown.
    """
    from bilevel.plots.look import Look

    if figure not in FIGURES.get(deck, {}):
        known = ", ".join(f"{key}/{name}" for key, names in FIGURES.items() for name in names)
        raise UserError(f"no figure {deck}/{figure}; there are: {known}")
    look = Look.read(decks_file) if decks_file else Look()
    FIGURES[deck][figure](tables, look).write(output, prefix=f"f{deck}-{figure}")
