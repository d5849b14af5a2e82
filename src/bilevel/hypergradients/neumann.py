"""Implicit differentiation by a truncated Neumann series, at the last inner steps: IFT(N, K)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, linear_step_
from bilevel.optimizers import LinearStep, Optimizer
from bilevel.problem import Batch
from bilevel.settings import Count, Positive


@dataclass(frozen=True, config=STRICT)
class Neumann(Hypergradient):
    """∂L₂/∂λ + 1/K Σ_{t > T−K} B_t Σ_{j=0}^{N} A_t^j ∂L₂/∂w_t.

    At each of the last K inner steps the implicit hypergradient B (I − A)⁻¹ ∂L₂/∂w is approximated by N + 1 terms of
    its Neumann series; the K estimates are averaged, so that their scale does not depend on K.

    terms: N, the number of products with A; 0 gives one term, and with K = 1 that is T1–T2.
    last_steps: K.
    step_size: None: A_t and B_t are the Jacobians of the step just taken, whatever the optimizer. A number α: those of
        w − α ∂L₁/∂w at w_t on the batch of step t, whatever the optimizer, A = I − α H and B = −α M with
        H = ∂²L₁/∂w∂w, M = ∂²L₁/∂λ∂w; each t then takes a gradient more. The series converges for α below
        2 / ‖H‖ and a positive definite H; a weight decay of the optimizer is no part of H.

    Cost: (N + 1) K products: N with A and one with B for each of the last K steps, and K outer gradients.

    Memory: no stored state.

    Source: Lorraine et al. 2020 (there with a number α and K = 1); the form with K online steps is N.IFT(N, K) of
    Lee et al. 2022 and IFT(N, K) of deck 000.
    """

    terms: Annotated[int, Field(ge=0)]
    last_steps: Count = 1
    step_size: Positive | None = None

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
            if self.step_size is None:
                step, outer, cotangent = linear_step_(derivatives, optimizer, state, batches[index], outer_batch)
                self._add_by_step(step, cotangent, total)
            else:
                optimizer.advance_(derivatives, state, batches[index])
                outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
                self._add_by_descent(derivatives, optimizer.params(state), batches[index], outer.params, total)
        return Estimate(state, outer.hyper + total / count, outer.loss, derivatives.cost)

    def _add_by_step(self, step: LinearStep, term: Tensor, total: Tensor) -> None:
        series = term.clone()
        for _ in range(self.terms):
            step.pull_back_(term, None)
            series.add_(term)
        step.pull_back_(series, total, to_state=False)

    def _add_by_descent(
        self, derivatives: Derivatives, params: Tensor, batch: Batch, vector: Tensor, total: Tensor
    ) -> None:
        assert self.step_size is not None
        inner = derivatives.linearize(params, batch)
        term, series = vector.clone(), vector.clone()
        for _ in range(self.terms):
            product = torch.zeros_like(term)
            inner.add_products(term, product, None)
            series.add_(term.sub_(product, alpha=self.step_size))
        inner.add_products(series * -self.step_size, None, total)


METHOD = Neumann
