"""Metrics of classifiers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import metrics


def test_auc_counts_ties_one_half() -> None:
    right = torch.tensor([True, True, False, False])
    assert metrics.auc(torch.tensor([2.0, 1.0, 1.0, 0.0]), right) == 7 / 8
    assert metrics.auc(torch.zeros(4), right) == 0.5
    assert metrics.auc(torch.tensor([0.0, 0.0, 1.0, 1.0]), right) == 0.0
    assert math.isnan(metrics.auc(torch.zeros(4), torch.ones(4, dtype=torch.bool)))
    assert math.isnan(metrics.auc(torch.tensor([1.0, math.nan, 0.0, 2.0]), right))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
@settings(deadline=None)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    above = [score for score, positive in rows if positive]
    below = [score for score, positive in rows if not positive]
    found = metrics.auc(torch.tensor([float(score) for score, _ in rows]), torch.tensor([good for _, good in rows]))
    if not above or not below:
        assert math.isnan(found)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    assert found == pytest.approx(wins / (len(above) * len(below)), abs=1e-12)


def test_macro_auc_is_the_mean_of_one_against_the_rest() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7], [0.4, 0.5, 0.1]])
    labels = torch.tensor([0, 1, 2, 0])
    expected = sum(metrics.auc(scores[:, index], labels == index) for index in range(3)) / 3
    assert metrics.macro_auc(scores, labels) == expected
    # one image of class 0 is taken for class 1: its hard scores are 0, 1, 0
    assert metrics.hard_macro_auc(scores, labels) == pytest.approx((3 / 4 + 5 / 6 + 1) / 3)
    assert metrics.error(scores, labels) == 0.25


def test_cross_entropy_of_softmax_has_the_floor_of_the_deck() -> None:
    labels = torch.arange(10)
    sure = 1000 * torch.eye(10)
    assert metrics.cross_entropy(sure, labels) == pytest.approx(0)
    assert metrics.cross_entropy_of_softmax(sure, labels) == pytest.approx(math.log(math.e + 9) - 1)
    assert metrics.cross_entropy_of_softmax(sure, labels) == pytest.approx(1.46115, abs=1e-5)
    # an error that the network is sure of costs one whole unit more
    wrong = labels.clone()
    wrong[0] = 5
    assert metrics.cross_entropy_of_softmax(sure, wrong) == pytest.approx(math.log(math.e + 9) - 1 + 0.1)
