"""The page: numbers of the tables, figures and the slides' own words, set beside one another. It computes nothing.

`render` writes one HTML file that asks for nothing from anywhere: styles, figures and a little script are inside.
"""

from __future__ import annotations

from pathlib import Path

from bilevel.files import replacing
from bilevel.progress import say
from bilevel.report.decks import load
from bilevel.report.page import html
from bilevel.report.source import Source

__all__ = ["render"]

_LARGE = 2_000_000
"""Bytes of a page."""


def render(tables: Path, figures: Path, decks_file: Path, output: Path, references: Path | None = None) -> None:
    """Write the report.

    Args:
        tables: directory with `cells.csv`, `measured.csv`, `claims.csv`, `timing.csv` and `provenance.json`.
            What is not there is a gap that the page names.
        figures: directory with `<deck>/<figure>.svg`; likewise.
        decks_file: `report/decks.yaml`.
        output: HTML file; it appears whole or not at all. The same inputs give the same bytes.
        references: directory with the tables of earlier runs, a folder each, to be shown beside these.

    Raises:
        SettingsError: the decks file cannot be used.
        SourceError: a table is there but is not what it should be.
        FileError: the output cannot be written.
    """
    content = html(load(decks_file), Source.read(tables, figures, references)).encode()
    with replacing(output) as file:
        file.write(content)
    if len(content) > _LARGE:
        advice = f"; fewer studies in {references} make it smaller" if references else ""
        say(f"warning: {output} has {len(content) / 1e6:.1f} MB, which takes a phone seconds to show{advice}")
