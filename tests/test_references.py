"""Earlier runs, kept and shown beside a new one."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_plots import DECKS
from test_report import Ids, plain, write_tables

from bilevel import cli
from bilevel.config import layered
from bilevel.report import render
from bilevel.report.source import Source

ROOT = Path(__file__).parent.parent
KEPT = sorted(path.parent for path in (ROOT / "report/reference").glob("*/provenance.json"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """References, and a page of tables on other data beside them."""
    folder = tmp_path_factory.mktemp("references")
    write_tables(folder / "earlier/tables")
    empty = pd.DataFrame(columns=["study", "method", "metric", "n", "diverged", "mean", "low", "high", "sd"])
    empty.to_csv(folder / "earlier/tables/measured.csv", index=False)
    cli.main(["reference", "whole", "--results", str(folder / "earlier"), "--output", str(folder / "kept")])
    write_tables(folder / "tables", data="mnist_5k")
    render(folder / "tables", folder, DECKS, folder / "page.html", folder / "kept")
    render(folder / "tables", folder, DECKS, folder / "alone.html")
    return folder, (folder / "page.html").read_text()


def test_what_is_kept_of_a_run(page: tuple[Path, str]) -> None:
    folder, _ = page
    kept = folder / "kept/whole"
    for name in ("cells.csv", "timing.csv"):
        assert (kept / name).read_bytes() == (folder / "earlier/tables" / name).read_bytes(), name
    studies = set(pd.read_csv(kept / "cells.csv")["study"])
    assert set(pd.read_csv(kept / "claims.csv")["study"]) <= studies
    provenance = json.loads((kept / "provenance.json").read_text())
    assert set(provenance["configuration"]) == {"studies"}, "folders of a machine are nobody's business"
    assert set(provenance["configuration"]["studies"]) == studies


def test_its_figures_stand_beside_the_new_ones(page: tuple[Path, str]) -> None:
    words, text = plain(page[1]), page[1]
    assert "As published · whole" in words
    assert "run earlier, whole preset, commit 260e71ad7a1d" in words
    assert "Run earlier: whole preset" in words
    own = pd.read_csv(page[0] / "kept/whole/claims.csv").query("study == 'cleaning_published'").iloc[0]
    row = text[text.index(f'id="claim-{own["id"]}-{own["study"]}"') :]
    assert f"whole: {own['verdict']}" in plain(row[: row.index("</tr>")])
    table = text[text.index('id="deck-000-2-table"') :]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', table[: table.index("</thead>")])
    assert heads[:6] == ["Method", "Slide", "As published", "As published · whole", "Corrected", "Corrected · whole"]
    assert heads[6:] == ["Slide", "As published", "Corrected"], "counts are the same in every run"
    first = table[table.index("<tbody>") :]
    inside = first[: first.index("</tr>")]
    assert inside.count("slide inside") + inside.count("slide outside") == 2, "of the run on the slide's data alone"


def test_what_is_counted_of_this_run_is_this_runs_alone(page: tuple[Path, str]) -> None:
    folder, text = page
    alone = (folder / "alone.html").read_text()
    for begin, end in (('<dl class="facts">', "<div><dt>Beside it"), ('<table class="tally">', "</table>")):
        part = text[text.index(begin) : text.index(end, text.index(begin))]
        assert part in alone
    assert "· whole" not in plain(alone)


def test_ids_are_unique_and_references_lead_somewhere(page: tuple[Path, str]) -> None:
    parser = Ids()
    parser.feed(page[1])
    assert len(set(parser.ids)) == len(parser.ids)
    assert parser.anchors <= set(parser.ids)


def test_without_its_tables_nothing_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path / "tables")
    (tmp_path / "tables/claims.csv").unlink()
    with pytest.raises(SystemExit):
        cli.main(["reference", "whole", "--results", str(tmp_path), "--output", str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
    assert "is not there; finish the pipeline first" in capsys.readouterr().err


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_runs_are_of_presets_and_can_be_read(folder: Path) -> None:
    source = Source.read(folder)
    assert source.studies()
    assert not source.absent
    preset = layered([ROOT / "config.yaml", ROOT / f"workflow/presets/{folder.name}.yaml"])
    known = yaml.safe_load(DECKS.read_text(encoding="utf-8"))["studies"]
    for study in source.studies():
        assert study in preset["studies"]
        assert study in known
        assert (source.configured(study).get("settings") or {}) == preset["studies"][study].get("settings", {})
    assert "dirty" not in source.provenance["commit"]
