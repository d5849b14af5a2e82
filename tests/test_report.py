"""The page from synthetic tables: test data with realistic numbers, with gaps, and with hostile strings."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page import Browser, needs_chromium
from test_plots import DECKS, DIVERGED, RUNS, seeds_of, synthetic_histograms, synthetic_trace

from bilevel import claims
from bilevel.plots import FIGURES, draw
from bilevel.report import render, words
from bilevel.report.decks import Metric, load
from bilevel.report.source import SourceError
from bilevel.settings import SettingsError
from bilevel.statistics import mean_interval

HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=http://example.com/a.png>"
CLAIMS = DECKS.parent / "claims.yaml"


def synthetic_scalars() -> pd.DataFrame:
    random, rows = np.random.default_rng(2), []
    for study, methods in RUNS.items():
        for method, (final, auc, products) in methods.items():
            for seed in seeds_of(study, method):
                shift = random.normal(0, 0.006)
                values = {
                    "test_accuracy_max": 0.715 + (final - 0.55) / 6 + shift,
                    "test_accuracy_final": final + shift,
                    "validation_accuracy_final": final + 0.01 + shift,
                    "noise_auc": auc + random.normal(0, 0.004),
                    "jvps": products,
                    "gradients": 51 + (0 if method == "none" else 1),
                    "hessian_products": products // 2,
                    "mixed_products": products - products // 2,
                    "peak_states": 51 if method == "exact" else 2,
                }
                lost = (study, method, seed) in DIVERGED
                status = "diverged" if lost else "ok"
                rows += [
                    (study, method, seed, status, name, np.nan if lost else float(x)) for name, x in values.items()
                ]
    return pd.DataFrame(rows, columns=["study", "method", "seed", "status", "metric", "value"])


def cells(scalars: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (study, method, metric), group in scalars.groupby(["study", "method", "metric"]):
        found = mean_interval(group["value"].dropna())
        lost = int((group["status"] == "diverged").sum())
        rows.append((study, method, metric, found.n, lost, found.mean, found.low, found.high, found.sd))
    return pd.DataFrame(rows, columns=["study", "method", "metric", "n", "diverged", "mean", "low", "high", "sd"])


def write_tables(folder: Path, data: str = "fashion_mnist", note: str = HOSTILE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scalars = synthetic_scalars()
    cells(scalars).to_csv(folder / "cells.csv", index=False)
    verdicts = claims.evaluate(claims.load(CLAIMS), scalars)
    verdicts.loc[0, "note"] = note
    verdicts.to_csv(folder / "claims.csv", index=False)
    synthetic_trace().to_csv(folder / "trace.csv", index=False)
    synthetic_histograms().to_csv(folder / "histograms.csv", index=False)
    pairs = [(study, method, seeds_of(study, method)) for study in RUNS for method in RUNS[study]]
    timing = [
        (study, method, " ".join(map(str, seeds)), 12.3456, 4.1152, 742.512, "cpu (x86_64)", 1)
        for study, method, seeds in pairs
    ]
    columns = ["study", "method", "seeds", "seconds", "seconds_per_seed", "peak_memory_mb", "device", "threads"]
    pd.DataFrame(timing, columns=columns).to_csv(folder / "timing.csv", index=False)
    digest = {"name": data, "splits": {"train": {"count": 4000, "image_shape": [28, 28], "images_sha256": "9f2c" * 16}}}
    missing = [{"study": "cleaning_corrected", "method": "gamma_1", "seed": seed} for seed in range(3)]
    provenance = {
        "commit": "260e71ad7a1d",
        "versions": {"python": ["3.11.7"], "torch": ["2.14.1"], "numpy": ["2.4.0"]},
        "devices": ["cpu (x86_64)"],
        "data": {data: [digest]},
        "code_hashes": {study: dict.fromkeys(RUNS[study], "a3e25c45cf1bad72") for study in RUNS},
        "configuration": {"compute": {"threads": 1}, "studies": {study: {"data": data, "seeds": 3} for study in RUNS}},
        "missing": missing,
        "diverged": [{"study": study, "method": method, "seed": seed} for study, method, seed in sorted(DIVERGED)],
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_tables(folder / "tables")
    for deck, names in FIGURES.items():
        for name in names:
            draw(deck, name, folder / "tables", folder / "figures" / deck / f"{name}.svg", DECKS)
    render(folder / "tables", folder / "figures", DECKS, folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def text(results: Path) -> str:
    return (results / "report.html").read_text()


class Ids(HTMLParser):
    """Collects ids and references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key == "href" and (value or "").startswith("#"):
                self.anchors.add((value or "")[1:])
            elif key in ("href", "src", "srcset", "action", "poster", "data") and not (value or "").startswith("data:"):
                self.fetched.append(value or "")


@pytest.fixture(scope="module")
def ids(text: str) -> Ids:
    parser = Ids()
    parser.feed(text)
    return parser


def plain(text: str) -> str:
    """Words of the page without markup."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|script)>.*?</\1>", "", text)).split())


def row(text: str, head: str) -> str:
    """Words of the first row of a table that begins with this head."""
    found = re.search(rf'(?s)<tr[^>]*><th scope="row">{re.escape(head)}.*?</tr>', text)
    assert found, head
    return plain(found[0])


def section(text: str, start: str, end: str) -> str:
    return text[text.index(f'id="{start}"') : text.index(f'id="{end}"')]


def test_the_page_is_one_file_with_unique_ids_and_no_dead_anchors(text: str, ids: Ids) -> None:
    assert ids.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(ids.ids) == len(set(ids.ids))
    assert ids.anchors <= set(ids.ids)
    assert text.startswith("<!doctype html>")
    assert '<html lang="en">' in text
    assert 'name="viewport"' in text
    assert len(text) < 1_000_000


def test_hostile_strings_are_text(text: str) -> None:
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in text
    assert text.count("<script>") == 1


def test_the_page_reads_in_the_promised_order(text: str, ids: Ids) -> None:
    order = [name for name in ids.ids if name in ("verdicts", "deck-000", "deck-001", "cost", "provenance")]
    assert order == ["verdicts", "deck-000", "deck-001", "cost", "provenance"]
    titles = [
        "What was asked",
        "The slide's table",
        "Test accuracy against the outer step",
        "Learned weights of clean and corrupted samples",
        "Telling clean from corrupted samples",
        "Test accuracy against Jacobian products spent",
        "What differs and why",
        "The theorem",
        "Error against the number of inner steps, at fixed λ",
        "The same for several γ, relative to the exact hypergradient",
        "Error along an outer optimization",
        "Which reading of the theorem holds",
        "Errors and the bound",
        "All metrics",
    ]
    heads = re.findall(r'<h3><a href="#deck-000[^>]*>([^<]+)', text)
    assert [head.replace("&#39;", "'") for head in heads] == titles


def test_missing_and_diverged_runs_are_named_at_the_top(text: str) -> None:
    head = plain(text[: text.index('id="verdicts"')])
    assert "3 runs missing" in head
    assert "cleaning_corrected · γ = 1 · seeds 0–2" in head
    assert "1 run diverged" in head
    assert "cleaning_published · IFT(4, 10) · seed 2" in head
    assert "40 of 43, 1 diverged" in head


def test_every_verdict_of_the_table_is_on_the_page(text: str, results: Path) -> None:
    verdicts = pd.read_csv(results / "tables" / "claims.csv", dtype=str)
    found = re.findall(r'<tr role="row" id="claim-[^"]+" data-verdict="([^"]+)" data-source="([^"]+)"', text)
    assert found == list(zip(verdicts["verdict"], verdicts["source"], strict=True))


def test_the_slides_table_sets_the_figure_beside_both_protocols(text: str, results: Path) -> None:
    table = section(text, "deck-000-2", "deck-000-3")
    cells_ = pd.read_csv(results / "tables" / "cells.csv").set_index(["study", "method", "metric"])
    for name, slide, published, corrected, told in (
        ("Truncated backpropagation (Luketina)", 72.5, "luketina", "t1_t2", "1"),
        ("DrMAD", 69.8, "drmad", "drmad", "99"),
        ("Proposed, γ = 0.99", 73.5, "gamma_0.99", "gamma_0.99", "50"),
    ):
        words_ = row(table, name)
        for study, method in (("cleaning_published", published), ("cleaning_corrected", corrected)):
            cell = cells_.loc[(study, method, "test_accuracy_max")]
            mean, low, high = (f"{100 * cell[key]:.1f}" for key in ("mean", "low", "high"))
            inside = "inside" if 100 * cell["low"] <= slide <= 100 * cell["high"] else "outside"
            assert f"{mean} [{low}, {high}] n = {int(cell['n'])} · slide {inside}" in words_
        assert f" {slide} " in words_
        jvps = [
            f"{cells_.loc[(f'cleaning_{p}', m, 'jvps')]['mean']:.0f}"
            for p, m in zip(("published", "corrected"), (published, corrected), strict=True)
        ]
        assert words_.endswith(" ".join([told, *jvps]))
    assert "not on the slide" in row(table, "Proposed, γ = 0.9 ")
    assert "n = 2, 1 diverged" in row(table, "IFT(4, 10)")


def test_gaps_and_single_seeds_are_visible_in_tables(text: str) -> None:
    metrics = section(text, "deck-000-14-cleaning_corrected", "deck-001")
    assert row(metrics, "γ = 1").count("not run") == 5
    assert re.search(r"0\.8\d\d — n = 1", row(metrics, "Exact"))


def test_other_data_than_the_slides_is_said_and_nothing_is_called_inside(results: Path, tmp_path: Path) -> None:
    write_tables(tmp_path, data="mnist_5k")
    render(tmp_path, results / "figures", DECKS, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "The slide's figures are for Fashion-MNIST. Levels on mnist_5k are not" in plain(text).replace("&#39;", "'")
    assert "slide inside" not in text
    assert "slide outside" not in text


def test_a_large_page_is_warned_of(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (results / "tables", results / "figures", DECKS, tmp_path / "report.html")
    render(*arguments)
    assert capsys.readouterr().err == ""
    (tmp_path / "reference").mkdir()
    monkeypatch.setattr("bilevel.report._LARGE", 100_000)
    render(*arguments, tmp_path / "reference")
    said = capsys.readouterr().err
    assert re.search(r"warning: .*report.html has \d+\.\d MB", said)
    assert "fewer studies in" in said


def test_a_page_is_rendered_from_nothing_at_all(tmp_path: Path) -> None:
    render(tmp_path / "tables", tmp_path / "figures", DECKS, tmp_path / "report.html")
    words_ = plain((tmp_path / "report.html").read_text())
    for name in (
        "cells.csv",
        "claims.csv",
        "timing.csv",
        "provenance.json",
        *(f"000/{name}.svg" for name in FIGURES["000"]),
    ):
        assert f"{name} is not there" in words_
    assert words_.count("Not run") >= 2


def test_a_broken_figure_is_a_gap(results: Path, tmp_path: Path) -> None:
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "accuracy_by_step.svg").write_text("<svg")
    render(results / "tables", tmp_path, DECKS, tmp_path / "report.html")
    assert "000/accuracy_by_step.svg cannot be used (not well-formed" in (tmp_path / "report.html").read_text()


def test_a_study_that_no_deck_shows_is_not_left_out(results: Path, tmp_path: Path) -> None:
    table = pd.read_csv(results / "tables" / "cells.csv")
    own = table[table["study"] == "cleaning_published"].assign(study="my_study")
    tmp_path.joinpath("cells.csv").write_text(pd.concat([table, own]).to_csv(index=False))
    render(tmp_path, results / "figures", DECKS, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "my_study" in section(text, "other", "cost")


def test_the_same_inputs_give_the_same_bytes(results: Path, tmp_path: Path, text: str) -> None:
    render(results / "tables", results / "figures", DECKS, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Optimising", "titel: Optimising", "titel: unknown key"),
        (
            "studies: [cleaning_published, cleaning_corrected]",
            "studies: [nothing]",
            "study nothing is not under studies",
        ),
        ("metric: jvps", "metric: nothing", "metric nothing is not under metrics"),
        ("title: Optimising", "title: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_decks_file_is_named_and_the_old_page_stays(
    old: str, new: str, message: str, results: Path, tmp_path: Path
) -> None:
    decks, output = tmp_path / "decks.yaml", tmp_path / "report.html"
    decks.write_text(DECKS.read_text().replace(old, new))
    output.write_text("old")
    with pytest.raises(SettingsError, match=message):
        render(results / "tables", results / "figures", decks, output)
    assert output.read_text() == "old"


def test_a_table_without_its_columns_is_an_error_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("study,method,metric,n,diverged,mean\n")
    with pytest.raises(SourceError, match=r"cells\.csv: columns are missing: low, high"):
        render(tmp_path, tmp_path, DECKS, tmp_path / "report.html")


def test_decks_file_and_registered_figures_agree() -> None:
    decks = load(DECKS)
    shown = {(deck.id, block.figure) for deck in decks.decks for block in deck.blocks if block.kind == "figure"}
    assert shown == {(deck, figure) for deck, figures in FIGURES.items() for figure in figures}
    named = {method for study in decks.studies.values() for method in study.methods}
    assert named <= set(decks.methods)


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (-0.04, 1, "0.0"),
        (-1.25, 2, "−1.25"),
        (1234, 0, "1234"),
        (-12345.6, 1, "−12\u202f345.6"),
        (0, 0, "0"),
        (0.0, 6, "0.000000"),
        (-2.34e-9, 6, "−2.3·10⁻⁹"),
        (-1.09e14, 1, "−1.1·10¹⁴"),
        (1e8, 0, "1.0·10⁸"),
        (2e-6, 6, "0.000002"),
    ],
)
def test_decimals(value: float, digits: int, expected: str) -> None:
    assert words.decimal(value, digits) == expected


def test_other_words() -> None:
    assert words.signed(1.25, 1) in ("+1.2", "+1.3")
    assert words.signed(0.0, 1) == "0.0"
    assert words.in_unit(0.7253, Metric(name="accuracy", unit="%", scale=100, digits=1)) == "72.5"
    assert [words.probability(value) for value in (0.0004, 0.0316, None)] == ["< 0.001", "0.032", "—"]
    assert words.seeds("0 1 2 7") == "0–2, 7"
    assert words.seeds("a b") == "a b"
    assert words.prose("*as run* with `a*b*c` <b>") == "<em>as run</em> with <code>a*b*c</code> &lt;b&gt;"
    assert list(words.flat({"a": {"b": [1, 2]}, "c": [{"d": None}]})) == [("a · b", "1, 2"), ("c · d", "—")]


# in a browser

CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.slice(0, 3).map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const back = behind(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.color);
    const front = ink.slice(0, 3).map((c, i) => c * style.opacity + back[i] * (1 - style.opacity));
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${element.tagName}: ${element.textContent.slice(0, 30)}`);
  }
  return low;
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def test_every_metric_of_a_claim_has_a_name() -> None:
    metrics = {claim.metric for claim in claims.load(DECKS.parent / "claims.yaml")}
    assert metrics - set(load(DECKS).metrics) == set()


@needs_chromium
def test_nothing_is_asked_of_the_network_and_nothing_is_logged(results: Path) -> None:
    with Browser() as browser:
        for width, dark, media in ((1300, False, ""), (400, True, ""), (800, False, "print")):
            browser.open(results / "report.html", width, dark=dark, media=media)
        assert browser.console == []
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
        assert browser.outgoing() == []


@needs_chromium
def test_the_check_of_requests_sees_a_request(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/a.png"><script>console.log("said")</script>')
    with Browser() as browser:
        browser.open(page)
        assert "said" in browser.console
        assert browser.outgoing() == ["http://example.invalid/a.png"]


@needs_chromium
@pytest.mark.parametrize("width", [320, 400, 700, 1000, 1300])
def test_no_width_makes_the_page_scroll_sideways(width: int, results: Path, browser: Browser) -> None:
    browser.open(results / "report.html", width)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool, results: Path, browser: Browser) -> None:
    browser.open(results / "report.html", 1300, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    assert browser.evaluate(CONTRAST) == []


@needs_chromium
def test_figures_are_legible_on_a_phone(results: Path, browser: Browser) -> None:
    browser.open(results / "report.html", 400)
    script = """Math.min(...[...document.querySelectorAll("svg.panel text")].map((text) =>
      parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
    assert browser.evaluate(script) >= 9


VERDICTS = '[...document.querySelectorAll("#claims tbody tr:not([hidden])")].map((row) => row.dataset.verdict)'
EFFECTS = '[...document.querySelectorAll("#claims .effect")].map((cell) => cell.dataset.value)'
HEAD = 'document.querySelectorAll("#claims thead th")[3]'


@needs_chromium
def test_tables_sort_by_keyboard_up_down_and_back(results: Path, browser: Browser) -> None:
    browser.open(results / "report.html")
    original = browser.evaluate(EFFECTS)
    browser.evaluate(f'{HEAD}.querySelector("button").focus()')
    states, orders = [], []
    for _ in range(3):
        browser.press("Enter")
        states.append(browser.evaluate(f'{HEAD}.getAttribute("aria-sort")'))
        orders.append([float(value) for value in browser.evaluate(EFFECTS) if value])
    assert states == ["ascending", "descending", None]
    assert orders[0] == sorted(orders[0])
    assert orders[1] == sorted(orders[1], reverse=True)
    assert browser.evaluate(EFFECTS) == original


@needs_chromium
def test_verdicts_are_narrowed_by_choice_and_by_words(results: Path, browser: Browser) -> None:
    browser.open(results / "report.html")
    everything = browser.evaluate(VERDICTS)
    choose = """(() => { const select = document.querySelector('[data-filter="claims"] [data-key="verdict"]');
      select.value = "supported"; select.dispatchEvent(new Event("input", {bubbles: true})); })()"""
    browser.evaluate(choose)
    assert browser.evaluate(VERDICTS) == [verdict for verdict in everything if verdict == "supported"]
    search = """(() => { const input = document.querySelector('[data-filter="claims"] input');
      input.value = "no such words"; input.dispatchEvent(new Event("input", {bubbles: true})); })()"""
    browser.evaluate(search)
    assert browser.evaluate(VERDICTS) == []
    assert browser.evaluate('document.querySelector(".tools .count").textContent') == f"0 of {len(everything)} rows"


@needs_chromium
def test_paper_has_everything_but_the_controls(results: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(results / "report.html", 1300, dark=True)
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    browser.media(dark=True, kind="print")
    shown = 'document.querySelector("%s").checkVisibility()'
    assert not browser.evaluate(shown % ".contents")
    assert not browser.evaluate(shown % ".tools")
    assert browser.evaluate(shown % "#claims")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
