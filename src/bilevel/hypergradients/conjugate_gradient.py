"""Implicit differentiation, with the linear system solved by conjugate gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Count, NotNegative


class ConjugateGradientWarning(UserWarning):
    """Conjugate gradients ended without the accuracy asked for; the estimate uses the last iterate."""


@dataclass(frozen=True, config=STRICT)
class ConjugateGradient(Hypergradient):
    """∂L₂/∂λ − M (H + δ I)⁻¹ ∂L₂/∂w,  H = ∂²L₁/∂w∂w,  M = ∂²L₁/∂λ∂w, at w_T on the last batch.

    The implicit function theorem: right where w_T is a stationary point of L₁ on that batch, and then only; elsewhere
    it is the hypergradient of another problem. L₁ is the inner loss with its penalty. A weight decay of the optimizer
    is no part of it: write it as a penalty, or add it to the damping.

    iterations: most products with H. tolerance: solved when ‖b − (H + δ I) x‖ ≤ tolerance · ‖b‖, b = ∂L₂/∂w; 0 for a
        fixed number of iterations. damping: δ.
    curvature: `hessian`, or `gauss_newton`: in place of H the matrix Jᵀ C J + ∂²R/∂w∂w (see
        `bilevel.derivatives.GaussNewton`), which is positive semidefinite for losses that are convex in the outputs.

    Seeds are solved together, each with steps of its own, and each rests once it is done. Where a direction of negative
    or no curvature turns up, that seed stops with the iterate it has. This, and reaching `iterations` above a positive
    tolerance, raise a `ConjugateGradientWarning` with the relative residual.

    Cost: at most `iterations` products with H or the Gauss–Newton matrix, and one mixed product.

    Memory: no stored state; a few vectors as large as the parameters.

    Raises ValueError for `gauss_newton` and a problem without `inner_outputs` and `inner_output_loss`.

    Source: Pedregosa 2016; Rajeswaran et al. 2019; deck 001 (implicit differentiation).
    """

    iterations: Count
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-6
    damping: NotNegative = 0.0
    curvature: Literal["hessian", "gauss_newton"] = "hessian"

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state = advance(derivatives, optimizer, state, batches, len(batches))
        params, batch = optimizer.params(state), batches[len(batches) - 1]
        outer = derivatives.outer_gradient(params, outer_batch)
        inner = derivatives.linearize(params, batch)
        gauss_newton = derivatives.gauss_newton(params, batch) if self.curvature == "gauss_newton" else None

        def product(vector: Tensor) -> Tensor:
            result = self.damping * vector
            if gauss_newton is not None:
                gauss_newton.add_product(vector, result)
            else:
                inner.add_products(vector, result, None)
            return result

        solution = solve(product, outer.params, self.iterations, self.tolerance)
        self._warn(solution)
        hypergradient = outer.hyper.clone()
        inner.add_products(-solution.value, None, hypergradient)
        return Estimate(state, hypergradient, outer.loss, derivatives.cost)

    def _warn(self, solution: Solution) -> None:
        advice = "raise damping" if self.curvature == "gauss_newton" else "raise damping or use curvature: gauss_newton"
        if bool(solution.negative.any()):
            residual = float(solution.residual[solution.negative].max())
            warnings.warn(
                f"conjugate_gradient: met a direction of negative or no curvature, stopped at a relative residual of "
                f"{residual:.1e}; the inner problem is not at a strict minimum: {advice}",
                ConjugateGradientWarning,
                stacklevel=2,
            )
        short = ~solution.negative & (solution.residual > self.tolerance)
        if self.tolerance > 0 and bool(short.any()):
            warnings.warn(
                f"conjugate_gradient: relative residual {float(solution.residual[short].max()):.1e} after "
                f"{self.iterations} iterations, {self.tolerance:.1e} was asked for: allow more iterations or "
                "raise damping",
                ConjugateGradientWarning,
                stacklevel=2,
            )


class Solution(NamedTuple):
    """value (S, P); relative residual (S,), recursively updated; negative (S,): stopped by the curvature."""

    value: Tensor
    residual: Tensor
    negative: Tensor


def solve(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float) -> Solution:
    """Conjugate gradients for A x = b from x = 0, with `product` v -> A v on (S, P) and b (S, P), for each seed.

    A NaN in b or in a product makes the solution of that seed NaN.
    """
    value, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
    square = (residual * residual).sum(-1, keepdim=True)
    goal = tolerance**2 * square
    size = square.clone()
    active = ~(square <= goal)  # true of a NaN, so that it shows in the solution
    negative = torch.zeros_like(active)
    for _ in range(iterations):
        if not bool(active.any()):
            break
        image = product(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        negative |= active & (curvature <= 0)
        active &= ~negative
        step = (square / curvature).where(active, 0.0)
        value.addcmul_(step, direction)
        residual.addcmul_(-step, image)
        following = (residual * residual).sum(-1, keepdim=True)
        direction.mul_((following / square).where(active, 1.0)).add_(residual.where(active, 0.0))
        square = following
        active &= square > goal
    relative = (square / size).where(size > 0, 0.0).sqrt()
    return Solution(value, relative.squeeze(-1), negative.squeeze(-1))


METHOD = ConjugateGradient
