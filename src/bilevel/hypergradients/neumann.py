"""Implicit differentiation by a truncated Neumann series, at the last inner steps: IFT(N, K)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, cotangent_of
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Neumann(Hypergradient):
    """∂L₂/∂λ + 1/K Σ_{t > T−K} B_t Σ_{j=0}^{N} A_t^j ∂L₂/∂w_t.

    At each of the last K inner steps the implicit hypergradient B (I − A)⁻¹ ∂L₂/∂w is approximated by N + 1 terms of
    its Neumann series, with the Jacobians of the step just taken; the K estimates are averaged, so that their scale
    does not depend on K. (N + 1) K products, nothing stored.

    terms: N, the number of products with A; 0 gives one term, and with K = 1 that is T1–T2.
    last_steps: K.

    Source: Lorraine et al. 2020; the form with K online steps is N.IFT(N, K) of Lee et al. 2022 and IFT(N, K) of
    deck 000.
    """

    terms: Annotated[int, Field(ge=0)]
    last_steps: Annotated[int, Field(ge=1)] = 1

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        count = min(self.last_steps, len(batches))
        state = advance(derivatives, optimizer, state, batches, len(batches) - count)
        total = torch.zeros_like(derivatives.hyper)
        for index in range(len(batches) - count, len(batches)):
            step = optimizer.linearize(derivatives, state.clone(), batches[index])
            step.advance_(state)
            outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
            term = cotangent_of(optimizer, state, outer.params)
            series = term.clone()
            for _ in range(self.terms):
                step.pull_back_(term, None)
                series.add_(term)
            step.pull_back_(series, total, to_state=False)
        return Estimate(state, outer.hyper + total / count, outer.loss, derivatives.cost)


METHOD = Neumann
