"""Figures from synthetic tables: test data with realistic numbers, made here and shown nowhere else."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
import pytest

from bilevel.errors import UserError
from bilevel.plots import FIGURES, draw
from bilevel.plots.lines import spread
from bilevel.plots.svg import isolate, parse, serialize

DECKS = Path(__file__).parent.parent / "report" / "decks.yaml"
STEPS, SEEDS = 25, 3

# final accuracy, final AUC, products a step
PUBLISHED = {
    "luketina": (0.540, 0.617, 50),
    "gamma_0.9": (0.608, 0.759, 50),
    "gamma_0.99": (0.578, 0.810, 50),
    "drmad": (0.520, 0.488, 99),
    "ift_9_5": (0.522, 0.500, 50),
    "ift_4_10": (0.507, 0.503, 50),
}
CORRECTED = {
    "none": (0.514, 0.500, 0),
    "t1_t2": (0.547, 0.587, 1),
    "gamma_0.9": (0.607, 0.779, 50),
    "gamma_0.99": (0.612, 0.834, 50),
    "drmad": (0.675, 0.873, 99),
    "ift_9_5": (0.565, 0.662, 50),
    "ift_4_10": (0.565, 0.656, 50),
    "exact": (0.668, 0.861, 99),
}  # gamma_1 is not there: a gap
RUNS = {"cleaning_published": PUBLISHED, "cleaning_corrected": CORRECTED}
DIVERGED = {("cleaning_published", "ift_4_10", 2)}
ONE_SEED = {("cleaning_corrected", "exact")}


def seeds_of(study: str, method: str) -> range:
    return range(1 if (study, method) in ONE_SEED else SEEDS)


def synthetic_trace() -> pd.DataFrame:
    random, rows = np.random.default_rng(0), []
    step = np.arange(STEPS + 1)
    for study, methods in RUNS.items():
        for method, (final, auc, products) in methods.items():
            for seed in seeds_of(study, method):
                shift, wobble = random.normal(0, 0.008), random.normal(0, 0.006, (2, STEPS + 1))
                rise = 0.1 + 0.62 * (1 - np.exp(-step / 1.1))
                fall = (0.72 - final) * (1 - np.exp(-np.maximum(step - 3, 0) / 6))
                values = {
                    "test_accuracy": rise - fall + shift + wobble[0],
                    "noise_auc": 0.5 + (auc - 0.5) * (1 - np.exp(-step / 8)) + wobble[1] * step / STEPS,
                    "jvps_total": products * step,
                }
                for metric, series in values.items():
                    if (study, method, seed) in DIVERGED:
                        series = np.where(step > 9, np.nan, series)
                    rows += [
                        (study, method, seed, int(at), metric, value) for at, value in zip(step, series, strict=True)
                    ]
    return pd.DataFrame(rows, columns=["study", "method", "seed", "step", "metric", "value"])


def synthetic_histograms(bins: int = 20) -> pd.DataFrame:
    random, rows = np.random.default_rng(1), []
    edges = np.linspace(0, 1, bins + 1)
    for study, methods in RUNS.items():
        for method, (_, auc, products) in methods.items():
            for seed in seeds_of(study, method):
                for group, size, sign in (("clean", 550, 1), ("corrupted", 450, -1)):
                    logits = random.normal(sign * 5 * (auc - 0.5), 1.6 if products else 0, size)
                    counts, _ = np.histogram(1 / (1 + np.exp(-logits)), edges)
                    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
                        rows.append((study, method, seed, "sample_weight", group, left, right, int(count)))
    columns = ["study", "method", "seed", "quantity", "group", "left", "right", "count"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    synthetic_trace().to_csv(folder / "trace.csv", index=False)
    synthetic_histograms().to_csv(folder / "histograms.csv", index=False)
    return folder


ALL = [(deck, figure) for deck, figures in FIGURES.items() for figure in figures]


@pytest.fixture(scope="session")
def figures(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("figures")
    for deck, figure in ALL:
        draw(deck, figure, frames, folder / deck / f"{figure}.svg", DECKS)
    return {figure: (folder / deck / f"{figure}.svg").read_text() for deck, figure in ALL}


def texts(svg: str) -> set[str]:
    return {element.text or "" for element in parse(svg).iter("text")}


def panels(svg: str) -> list[Element]:
    return [element for element in parse(svg).iter("svg") if element.get("class") == "panel"]


def test_the_same_tables_give_the_same_bytes_in_another_process(
    frames: Path, figures: dict[str, str], tmp_path: Path
) -> None:
    script = f"""
import sys
from pathlib import Path
from bilevel.plots import FIGURES, draw_all
assert not {{"torch", "pandas", "matplotlib"}} & set(sys.modules), "listing the figures should be cheap"
draw_all("000", Path({str(frames)!r}), Path({str(tmp_path)!r}), Path({str(DECKS)!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    again = {path.stem: path.read_text() for path in tmp_path.glob("*.svg")}
    assert again == {name: figures[name] for name in FIGURES["000"]}


def test_ids_are_unique_over_all_figures_and_every_reference_is_resolved(figures: dict[str, str]) -> None:
    everything = "".join(figures.values())
    ids = re.findall(r'\bid="([^"]+)"', everything)
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", everything)
    assert references
    assert {a or b for a, b in references} <= set(ids)


@pytest.mark.parametrize("figure", [figure for _, figure in ALL])
def test_figures_have_words_and_the_color_of_the_text_and_no_style_sheet(figure: str, figures: dict[str, str]) -> None:
    svg = figures[figure]
    assert "currentColor" in svg
    assert not re.search(r"<style|<script|<metadata|<\?xml|#0d0e0f|xlink", svg)
    for element in [parse(svg), *panels(svg)]:
        assert element.get("role") == "img"
        words = {child.get("id"): child.text for child in element if child.tag in ("title", "desc")}
        assert all(words[name] for name in (element.get("aria-labelledby") or "").split())


def test_names_come_from_the_decks_file_and_keys_stand_in_for_them(frames: Path, tmp_path: Path) -> None:
    draw("000", "accuracy_by_step", frames, tmp_path / "named.svg", DECKS)
    draw("000", "accuracy_by_step", frames, tmp_path / "keys.svg")
    assert {"As published", "γ = 0.99", "IFT(9, 5)"} <= texts((tmp_path / "named.svg").read_text())
    assert {"cleaning_published", "gamma_0.99", "ift_9_5"} <= texts((tmp_path / "keys.svg").read_text())


def test_what_was_not_run_is_a_visible_gap(figures: dict[str, str]) -> None:
    assert "not run: γ = 1" in texts(figures["accuracy_by_step"])
    assert {"γ = 1", "not run"} <= texts(figures["weights_histogram"])


@pytest.mark.parametrize(("deck", "figure"), ALL)
def test_without_tables_there_is_a_figure_that_says_so(deck: str, figure: str, tmp_path: Path) -> None:
    draw(deck, figure, tmp_path / "nowhere", tmp_path / "figure.svg", DECKS)
    assert "not run" in texts((tmp_path / "figure.svg").read_text())


def test_panels_fit_a_phone(figures: dict[str, str]) -> None:
    for svg in figures.values():
        widths = [float((panel.get("viewBox") or "").split()[2]) for panel in panels(svg)]
        assert max(widths) <= 320  # points, drawn on about 370 pixels: text of 8.5 points stays above 10 pixels


def test_a_diverged_seed_leaves_the_others_and_one_seed_has_no_band(figures: dict[str, str]) -> None:
    published, corrected = panels(figures["accuracy_by_step"])
    bands = [
        sum("fill-opacity: 0.11" in (path.get("style") or "") for path in panel.iter("path"))
        for panel in (published, corrected)
    ]
    assert bands == [len(PUBLISHED), len(CORRECTED) - len(ONE_SEED)]


def test_histograms_are_shares_of_each_group(figures: dict[str, str]) -> None:
    words = [element.text or "" for element in parse(figures["weights_histogram"]).iter("desc")]
    assert any(text.startswith("100 % of the clean samples") and "100 % of the corrupted" in text for text in words)


def test_a_method_that_spends_nothing_is_a_level_line(figures: dict[str, str]) -> None:
    assert "Plain training" in texts(figures["accuracy_by_cost"])


def test_an_unknown_figure_is_an_error_that_names_the_known_ones(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="000/accuracy_by_step"):
        draw("000", "nothing", frames, tmp_path / "figure.svg")


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_spread_in_order_and_no_further_than_needed(seed: int) -> None:
    wanted = list(np.random.default_rng(seed).uniform(0, 1, 9))
    places = spread(wanted, 0.08, 0.0, 1.0)
    assert np.argsort(places).tolist() == np.argsort(wanted).tolist()
    assert np.diff(sorted(places)).min() >= 0.08 - 1e-9
    assert min(places) >= 0
    assert max(places) <= 1 + 1e-9
    assert spread([0.1, 0.5, 0.9], 0.08, 0.0, 1.0) == pytest.approx([0.1, 0.5, 0.9])


def test_svg_is_stripped_of_what_could_act_and_prefixed() -> None:
    root = parse(
        '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script><style>*{}</style>'
        '<path id="a" clip-path="url(#b)"/><clipPath id="b"/><g id="unused"/></svg>'
    )
    isolate(root, "p")
    assert serialize(root) == (
        '<svg xmlns="http://www.w3.org/2000/svg"><path clip-path="url(#p-b)" /><clipPath id="p-b" /><g /></svg>'
    )


@pytest.mark.parametrize("text", ["<svg", "<html/>", ""])
def test_what_is_not_svg_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not well-formed|not SVG"):
        parse(text)


def test_figures_are_well_formed(figures: dict[str, str]) -> None:
    for svg in figures.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
