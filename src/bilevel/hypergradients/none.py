"""No hyperparameter optimization: the baseline every method has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class NoHypergradient(Hypergradient):
    """0: trains and leaves λ as it is.

    After any number of steps, one or more, the estimate is zero. It has no settings.

    Cost: T gradients, those of the training; no products.

    Memory: no stored state.

    Source: none; the baseline.
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state = advance(derivatives, optimizer, state, batches, len(batches))
        loss = derivatives.outer_loss(optimizer.params(state), outer_batch)
        return Estimate(state, torch.zeros_like(derivatives.hyper), loss, derivatives.cost)


METHOD = NoHypergradient
