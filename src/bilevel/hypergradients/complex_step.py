"""Hypergradients by the complex-step derivative of whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.complex_derivatives import ComplexDerivatives, check_analytic
from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, gradient_optimizer, stacked
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class ComplexStep(Hypergradient):
    """(dL₂/dλ)_k ≈ Im F(λ + iε e_k) / ε,  F(λ) = L₂(w_T(λ), λ).

    Nothing is subtracted, so that ε can be so small that the error O(ε²) vanishes: the result is exact up to rounding.
    Both losses must be analytic functions written with operations that torch has for complex numbers; that is checked
    at the first parameters.

    epsilon: ε. Its product with the largest derivative of anything in the run has to be negligible.

    Cost: H runs of T gradients in complex arithmetic beside the one whose state is returned; the check takes three
    gradients and two products.

    Memory: no stored state; one run at a time, its numbers twice as large.

    Raises ValueError for a loss that is not analytic or does not run in complex arithmetic, and for an optimizer that
    does not take one gradient a step.

    Source: Squire and Trapp 1998; deck 001, slide "Численное".
    """

    epsilon: Positive = 1e-20

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        gradient_optimizer(optimizer, "complex_step")
        check_analytic(derivatives, optimizer.params(state), batches[0], outer_batch, min(self.epsilon, 1e-20))
        last = advance(derivatives, optimizer, state, batches, len(batches))
        outer_loss = derivatives.outer_loss(optimizer.params(last), outer_batch)

        hyper = derivatives.hyper
        start = torch.complex(state, torch.zeros_like(state))
        slopes = []
        for unit in torch.eye(hyper.shape[-1], dtype=hyper.dtype, device=hyper.device):
            shifted = ComplexDerivatives(
                derivatives.problem, torch.complex(hyper, (self.epsilon * unit).expand_as(hyper))
            )
            shifted.cost = derivatives.cost
            shifted_last = advance(shifted, optimizer, start, batches, len(batches))
            slopes.append(shifted.outer_loss(optimizer.params(shifted_last), outer_batch).imag / self.epsilon)
        return Estimate(last, stacked(slopes, hyper), outer_loss, derivatives.cost)


METHOD = ComplexStep
