"""The proposed method as published; with γ = 0.01 also the row "truncated backpropagation (Luketina)"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.aggregated import Aggregated
from bilevel.hypergradients.base import STRICT, Estimate, advance
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.tasks.cleaning_published.products import PlainProducts, credit


@dataclass(frozen=True, config=STRICT)
class PublishedAggregated(Aggregated):
    """Σ_t γ^{T−t} B_t ∂L₂(w_t)/∂w with the published products.

    gamma: γ in [0, 1].

    Cost: T mixed products and T outer gradients.

    Memory: no stored state.

    Source: code of the author's repository for deck 000.
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        products = PlainProducts(derivatives, optimizer.learning_rate)  # type: ignore[attr-defined]
        total = torch.zeros_like(derivatives.hyper)
        for batch in batches:
            params = optimizer.params(state)
            state = advance(derivatives, optimizer, state, [batch], 1)
            outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
            credit(total.mul_(self.gamma), batch[2], products.b(params, batch, outer.params))
        return Estimate(state, total, outer.loss, derivatives.cost)


METHOD = PublishedAggregated
