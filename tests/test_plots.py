"""Figures from synthetic tables: test data with realistic numbers, made here and shown nowhere else."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from bilevel.plots import FIGURES, draw
from bilevel.plots.lines import spread
from bilevel.plots.svg import adapt, isolate, parse, serialize

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
                        (study, method, seed, int(at), metric, value)
                        for at, value in zip(step, series, strict=True)
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
