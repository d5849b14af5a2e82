"""Metrics of classifiers, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as mean_cross_entropy
from torch.nn.functional import one_hot


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of `scores` (N,) for `positive` (N,) booleans; ties count one half.

    From the sum of the ranks of the positives, equal scores sharing their mean rank (Mann and Whitney). NaN where
    scores are not finite or one class is empty.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0 or not bool(torch.isfinite(scores).all()):
        return float("nan")
    _, places, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    wins = ranks[places[positive]].sum() - positives * (positives + 1) / 2
    return float(wins) / (positives * negatives)


def macro_auc(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the AUC of one class against the rest: scores (N, C), labels (N,)."""
    areas = [auc(scores[:, index], labels == index) for index in range(scores.shape[1])]
    return sum(areas) / len(areas)


def hard_macro_auc(logits: Tensor, labels: Tensor) -> float:
    """`macro_auc` where the score is 1 for the class of the largest logit and 0 for the others."""
    return macro_auc(one_hot(logits.argmax(-1), logits.shape[-1]), labels)


def error(logits: Tensor, labels: Tensor) -> float:
    """Fraction of rows of `logits` (N, C) whose largest entry is not the label's."""
    return float((logits.argmax(-1) != labels).double().mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean of log Σ exp(z) − z_y over rows z of `logits` (N, C)."""
    return float(mean_cross_entropy(logits.double(), labels))


def cross_entropy_of_softmax(logits: Tensor, labels: Tensor) -> float:
    """`cross_entropy` with probabilities in the place of logits, as when a network that ends in a softmax meets a loss
    that applies one more. With C classes it is at least log(e + C − 1) − 1, 1.46115 for ten.
    """
    return cross_entropy(logits.double().softmax(-1), labels)
