"""The losses of `cases` once more, written with operations that torch has for complex numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from cases import MLP, Case, _labels, _randn
from torch import Tensor

import bilevel


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each sample."""
    return logits.exp().sum(-1).log() - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def analytic(case: Case) -> Case:
    """The same functions of real arguments."""
    made = {"quadratic": _quadratic, "sample_weights": _sample_weights}.get(case.name, _mlp)(case)
    return replace(case, problem=made)


def _quadratic(case: Case) -> bilevel.Problem:
    factor, coupling = _randn(5, 5, seed=0), _randn(3, 5, seed=1)
    curvature = factor @ factor.T / 5 + torch.eye(5, dtype=torch.float64)

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        bent = (w - b) @ curvature.to(w.dtype)
        return 0.5 * (bent * (w - b)).sum() + h @ coupling.to(w.dtype) @ w + 0.5 * h[0].exp() * (w * w).sum()

    return bilevel.Problem(inner, case.problem.outer_loss)


def _sample_weights(case: Case) -> bilevel.Problem:
    features, labels = _randn(12, 4, seed=20), _labels(12, classes=3, seed=21)

    def inner(w: Tensor, h: Tensor, ids: Tensor) -> Tensor:
        losses = cross_entropy(features.to(w.dtype)[ids] @ w.view(4, 3), labels[ids])
        return (losses * torch.sigmoid(h[ids])).mean()

    def outer(w: Tensor, h: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(batch[0] @ w.view(4, 3), batch[1]).mean()

    return bilevel.Problem(inner, outer)


def _mlp(case: Case) -> bilevel.Problem:
    def loss(w: Tensor, h: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        p = MLP.split(w)
        return cross_entropy(torch.tanh(batch[0] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], batch[1]).mean()

    def whole(w: Tensor, h: Tensor, batch: Any) -> Tensor:
        return loss(w, h, batch) + 0.5 * (h.exp() * w * w).sum()

    if case.problem.inner_penalty is None:
        return bilevel.Problem(whole, loss)
    return bilevel.Problem(loss, loss, case.problem.inner_penalty)
