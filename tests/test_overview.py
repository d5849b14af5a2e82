"""Overviews on the page: subjects with links to their studies and to the verdicts of their claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel.report import blocks
from bilevel.report.decks import Decks, load
from bilevel.report.lookup import Lookup
from bilevel.report.page import html
from bilevel.report.source import Cell, Source
from bilevel.settings import SettingsError

CLAIM = {
    "deck": "9",
    "source": "project",
    "statement": "One is <better>.",
    "metric": "loss",
    "better": "lower",
    "published": "",
    "effect": "-1",
    "low": "-2",
    "high": "-0.5",
    "n": "3",
    "p_adjusted": "0.01",
    "seeds_to_decide": "",
    "note": "",
}
SUBJECT = {
    "name": "Rates",
    "original": "параметры",
    "by": "By `unrolled`.",
    "studies": ["shown", "elsewhere"],
    "claims": ["9-better", "9-unknown"],
}


def raw(subject: dict[str, Any]) -> dict[str, Any]:
    overview = {
        "kind": "overview",
        "title": "A list",
        "corner": "Subject",
        "rows": [subject, {"name": "x", "by": "y", "studies": []}],
    }
    shown = {"kind": "metrics", "title": "Numbers", "studies": ["shown"], "metrics": ["loss"]}
    return {
        "title": "Page",
        "about": "",
        "metrics": {"loss": {"name": "Loss"}},
        "methods": {},
        "studies": {"shown": {"name": "Shown", "about": "What is shown."}, "elsewhere": {"name": "Elsewhere"}},
        "decks": [{"id": "9", "title": "Deck", "blocks": [overview, shown]}],
    }


def source() -> Source:
    verdicts = [
        {**CLAIM, "id": "9-better", "study": "shown", "verdict": "supported"},
        {**CLAIM, "id": "9-better", "study": "elsewhere", "verdict": "undecided"},
        {**CLAIM, "id": "9-other", "study": "shown", "verdict": "contradicted"},
    ]
    return Source(cells={("shown", "a", "loss"): Cell(3, 0, 1.0, 0.5, 1.5)}, claims=verdicts)


def test_rows_have_their_studies_and_verdicts() -> None:
    block = blocks.section(Lookup(decks := Decks.model_validate(raw(SUBJECT)), source()), decks.decks[0]).blocks[0]
    rates, other = block.subjects
    assert [(link.name, link.target) for link in rates.studies] == [("What is shown", "deck-9-2"), ("Elsewhere", "")]
    assert [[claim.verdict for claim in claims] for claims in rates.claims] == [["supported", "undecided"]]
    assert (other.studies, other.claims) == ([], [])


def test_links_lead_somewhere() -> None:
    page = html(Decks.model_validate(raw(SUBJECT)), source())
    table = page[page.index('<table class="data overview"') :].split("</table>")[0]
    targets = re.findall(r'href="#([^"]+)"', table)
    assert targets == ["deck-9-2", "claim-9-better-shown", "claim-9-better-elsewhere"]
    assert all(f'id="{target}"' in page for target in targets)
    assert "<code>unrolled</code>" in table
    assert "One is &lt;better&gt;." in table
    assert table.count("One is") == 1
    assert "no claim" in table


def test_studies_must_be_known(tmp_path: Path) -> None:
    file = tmp_path / "decks.yaml"
    file.write_text(yaml.safe_dump(raw({**SUBJECT, "studies": ["unknown"]})))
    with pytest.raises(SettingsError, match="deck 9: study unknown is not under studies"):
        load(file)
