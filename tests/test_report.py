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
                rows += [(study, method, seed, status, name, np.nan if lost else float(x)) for name, x in values.items()]
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
        "code_hashes": {study: {method: "a3e25c45cf1bad72" for method in RUNS[study]} for study in RUNS},
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
