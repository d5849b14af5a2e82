"""Greedy hypergradients of all inner steps, aggregated with a discount γ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, linear_step_
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Aggregated(Hypergradient):
    """∂L₂(w_T, λ)/∂λ + Σ_t γ^{T−t} B_t ∂L₂(w_t, λ)/∂w_t.

    Each step contributes its greedy (one-step) hypergradient at the outer gradient of that moment; γ^{T−t} stands in
    for A_{t+1} … A_T.

    gamma: γ in [0, 1]; 0 is T1–T2.

    Cost: T mixed products, each on the graph of the training step, and T outer gradients.

    Memory: no stored state; the sum is carried forward with the steps.

    Source: Yakovlev, Bakhteev, Strijov 2023 (deck 000).
    """

    gamma: Annotated[float, Field(ge=0, le=1)]

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        total = torch.zeros_like(derivatives.hyper)
        state = state.clone()
        for index in range(len(batches)):
            step, outer, cotangent = linear_step_(derivatives, optimizer, state, batches[index], outer_batch)
            step.pull_back_(cotangent, total.mul_(self.gamma), to_state=False)
        return Estimate(state, outer.hyper + total, outer.loss, derivatives.cost)


METHOD = Aggregated
