"""Hypergradients by central differences of whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, stacked
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class CentralDifference(Hypergradient):
    """(dL₂/dλ)_k ≈ (F(λ + ε e_k) − F(λ − ε e_k)) / 2ε,  F(λ) = L₂(w_T(λ), λ).

    For any loss and any optimizer. The error is O(ε²) from the
    difference and O(δ/ε) from rounding, δ = 2.2e-16 |F| in double and 1.2e-7 |F| in single precision; the sum is least
    near ε = δ^(1/3), which is about 1e-5 and 5e-3.

    epsilon: ε, the same for all hyperparameters.

    Cost: 2H runs of T gradients beside the one whose state is returned; no products.

    Memory: no stored state; one run at a time.

    Source: deck 001, slide "Численное".
    """

    epsilon: Positive

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        def run(hyper: Tensor) -> tuple[Tensor, Tensor]:
            shifted = derivatives.at(hyper)
            last = advance(shifted, optimizer, state, batches, len(batches))
            return last, shifted.outer_loss(optimizer.params(last), outer_batch)

        hyper = derivatives.hyper
        slopes = []
        for unit in torch.eye(hyper.shape[-1], dtype=hyper.dtype, device=hyper.device):
            above, below = hyper + self.epsilon * unit, hyper - self.epsilon * unit
            width = ((above - below) * unit).sum(-1)  # as it came out after rounding
            slopes.append((run(above)[1] - run(below)[1]) / width)
        last, outer_loss = run(hyper)
        return Estimate(last, stacked(slopes, hyper), outer_loss, derivatives.cost)


METHOD = CentralDifference
