"""The page as a reader has it, with every table of every deck full: keyboard, narrow, on paper, read aloud."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from page import Browser, needs_chromium
from test_plots import DECKS, synthetic_histograms, synthetic_trace

from bilevel import claims
from bilevel.plots import FIGURES, draw
from bilevel.report import render
from bilevel.report.decks import Metrics, SlideTable, load

pytestmark = needs_chromium

AXE = "axe-core@4.14.1"
AXE_SHA512 = (
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5"
)
A4 = 688  # CSS pixels between the margins of the page


def shown() -> dict[str, set[str]]:
    """Metrics that a deck shows of each study; a dozen of a study that no deck shows."""
    decks = load(DECKS)
    found = {study: set(decks.costs) for deck in decks.decks for study in deck.studies}
    for block in (block for deck in decks.decks for block in deck.blocks):
        if isinstance(block, Metrics):
            metrics = set(block.metrics)
        elif isinstance(block, SlideTable):
            metrics = {quantity.metric for quantity in block.quantities}
        else:
            continue
        for study in block.studies:
            found[study] |= metrics
    return found | {"of_my_own": set(list(decks.metrics)[:12])}


def scalars() -> pd.DataFrame:
    """A value of every metric that is shown for every method of every study, for three seeds."""
    decks, random, rows = load(DECKS), np.random.default_rng(0), []
    for study, metrics in shown().items():
        for method in decks.studies[study].methods if study in decks.studies else ("none", "unrolled", "a_long_name"):
            for name in sorted(metrics):
                metric = decks.metrics[name]
                level = random.uniform(0.1, 0.99) if metric.digits else random.integers(1, 99_999)
                rows += [
                    (study, method, seed, "ok", name, level * (1 + random.normal(0, 0.03) * bool(metric.digits)))
                    for seed in range(3)
                ]
    return pd.DataFrame(rows, columns=["study", "method", "seed", "status", "metric", "value"])


def cells(table: pd.DataFrame) -> pd.DataFrame:
    values = table.groupby(["study", "method", "metric"])["value"]
    found = pd.DataFrame({"n": values.count(), "diverged": 0, "mean": values.mean(), "sd": values.std()})
    half = 4.303 * found["sd"] / np.sqrt(found["n"])
    return found.assign(low=found["mean"] - half, high=found["mean"] + half).reset_index()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    tables = folder / "tables"
    tables.mkdir()
    values = scalars()
    cells(values).to_csv(tables / "cells.csv", index=False)
    claims.evaluate(claims.load(DECKS.parent / "claims.yaml"), values).to_csv(tables / "claims.csv", index=False)
    synthetic_trace().to_csv(tables / "trace.csv", index=False)
    synthetic_histograms().to_csv(tables / "histograms.csv", index=False)
    pairs = values[["study", "method"]].drop_duplicates().itertuples(index=False)
    timing = [(*pair, "0 1 2", 12.3456, 4.1152, 742.512, "cpu (x86_64)", 1) for pair in pairs]
    columns = ["study", "method", "seeds", "seconds", "seconds_per_seed", "peak_memory_mb", "device", "threads"]
    pd.DataFrame(timing, columns=columns).to_csv(tables / "timing.csv", index=False)
    provenance = {
        "commit": "260e71ad7a1d",
        "versions": {"python": ["3.11.7"], "torch": ["2.14.1"]},
        "configuration": {"studies": {study: {"seeds": 3} for study in load(DECKS).studies}},
        "missing": [{"study": "cleaning_corrected", "method": "gamma_1", "seed": seed} for seed in range(12)],
        "diverged": [],
    }
    (tables / "provenance.json").write_text(json.dumps(provenance))
    for name in ("accuracy_by_step", "weights_histogram"):
        assert name in FIGURES["000"]
        draw("000", name, tables, folder / "figures" / "000" / f"{name}.svg", DECKS)
    render(tables, folder / "figures", DECKS, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The text of axe-core, fetched once from the npm registry by npm."""
    kept = request.config.cache.mkdir("axe-core") / "axe.min.js"
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("needs npm to fetch axe-core (Debian: apt-get install npm)")
        command = ["npm", "pack", "--silent", "--pack-destination", str(kept.parent), AXE]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("axe-core cannot be fetched: npm does not answer")
        if answer.returncode:
            pytest.skip(f"axe-core cannot be fetched: {answer.stderr.strip()[-200:]}")
        archive = kept.parent / answer.stdout.split()[-1]
        assert hashlib.sha512(archive.read_bytes()).hexdigest() == AXE_SHA512
        with tarfile.open(archive) as files:
            script = files.extractfile("package/axe.min.js")
            assert script is not None
            kept.write_bytes(script.read())
        archive.unlink()
    return kept.read_text(encoding="utf-8")


RUN_AXE = """(async () => {
  const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]});
  const said = (rule) => rule.nodes.slice(0, 3).map((node) => `${rule.id}: ${node.target} ${node.failureSummary}`);
  return found.violations.flatMap(said);
})()"""


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (400, False)])
def test_axe_finds_no_violation(width: int, dark: bool, page: Path, browser: Browser, axe: str) -> None:
    browser.open(page, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    browser.evaluate(f"{axe}\n;0")
    assert browser.evaluate(RUN_AXE) == []


def test_axe_sees_a_violation(tmp_path: Path, browser: Browser, axe: str) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<!doctype html><title>t</title><html lang=en><p style='color: #eee'>pale</p><img src='data:,'>")
    browser.open(wrong)
    browser.evaluate(f"{axe}\n;0")
    found: list[str] = browser.evaluate(RUN_AXE)
    assert {text.split(":")[0] for text in found} == {"color-contrast", "image-alt"}


@pytest.mark.parametrize("width", [320, 400, 768, 1300, 1920])
def test_nothing_but_tables_scrolls_sideways(width: int, page: Path, browser: Browser) -> None:
    browser.open(page, width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


WIDER = """[...document.querySelectorAll("main .scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1)
  .map((box) => `${box.querySelector("table").id}: ${box.scrollWidth} in ${box.clientWidth}`)"""


def test_every_table_fits_on_a_desk(page: Path, browser: Browser) -> None:
    browser.open(page, 1300)
    assert browser.evaluate(WIDER) == []


FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
  at.dataset.reached = "yes";
  return {tag: at.tagName, outline: style.outlineStyle, width: parseFloat(style.outlineWidth),
    seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth};
})()"""
CONTROLS = 'a[href], button, input, select, summary, [tabindex="0"]'


@pytest.mark.parametrize("width", [1300, 400])
def test_every_control_is_reached_by_tab_and_its_focus_is_seen(width: int, page: Path, browser: Browser) -> None:
    browser.open(page, width)
    visible = f"[...document.querySelectorAll('{CONTROLS}')].filter((each) => each.checkVisibility())"
    assert browser.evaluate(f"{visible}.some((each) => each.tabIndex < 0)") is False
    browser.evaluate("document.documentElement.style.scrollBehavior = 'auto'")  # no waiting for what glides
    places: list[dict[str, Any]] = []
    for _ in range(150):  # of some hundreds that are alike
        browser.press("Tab")
        places.append(browser.evaluate(FOCUS))
    unseen = [place for place in places if place["outline"] == "none" or place["width"] < 2 or not place["seen"]]
    assert unseen == []
    # in order, without passing one over; what the contents show changes with the place
    order = f"[...document.querySelectorAll('main :is({CONTROLS})')].filter((each) => each.checkVisibility())"
    reached = browser.evaluate(f"{order}.map((each) => each.dataset.reached === 'yes')")
    assert sum(reached) > 100
    assert all(reached[: sum(reached)])


CUT = """[...document.querySelectorAll("main *, header *")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.width && each.checkVisibility() && (box.right > innerWidth + 1 || box.left < -1);
  }).slice(0, 5).map((each) => `${each.tagName} ${each.getAttribute("class")} ${each.textContent.slice(0, 40)}`)"""


def test_paper_cuts_nothing_off_and_hides_no_words(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(page, A4, media="print", phone=False)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open], .configuration)').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= A4
    assert browser.evaluate(CUT) == []
    if shutil.which("pdftotext"):
        browser.open(page, 1300)
        browser.pdf(tmp_path / "report.pdf")
        answer = subprocess.run(
            ["pdftotext", str(tmp_path / "report.pdf"), "-"], capture_output=True, text=True, check=True
        )
        words = set(answer.stdout.split())
        numbers = browser.evaluate(
            '[...document.querySelectorAll("main table strong")].map((each) => each.textContent)'
        )
        assert len(numbers) > 500
        assert {word for text in numbers for word in text.split()} - words == set()


def test_the_page_without_figures_is_small(page: Path) -> None:
    """2 MB at most, for the default set; what figures take is looked at where they are drawn."""
    text = page.read_text(encoding="utf-8")
    figures = sum(path.stat().st_size for path in page.parent.glob("figures/*/*.svg"))
    assert len(text.encode()) - figures < 900_000


def test_nothing_is_logged_and_nothing_asked_for(page: Path) -> None:
    with Browser() as browser:
        for width, dark, media in ((1300, False, ""), (400, True, ""), (1300, False, "print")):
            browser.open(page, width, dark=dark, media=media)
        assert browser.console == []
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
        assert browser.outgoing() == []
