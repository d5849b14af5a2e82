"""The last step's hypergradient by a finite difference of gradients over λ, as in DARTS."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, cotangent_of, gradient_optimizer
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class DARTS(Hypergradient):
    """∂L₂/∂λ + ∂²L₁/∂λ∂w · v, with the product as (∂L₁/∂λ(w⁺) − ∂L₁/∂λ(w⁻)) ‖v‖ / 2ε,  w^± = w_{T−1} ± ε v/‖v‖.

    v is the optimizer's adjoint of ∂L₂/∂w_T with respect to the last gradient: −η ∂L₂/∂w_T for gradient descent, where
    the article leaves out momentum. What passes through learned settings of the optimizer and through the penalty is
    added in closed form. For ε → 0 this is T1–T2, `truncated` with one step.

    epsilon: ε, the length of the step to either side. The error is O(ε²) and, from rounding, O(δ/ε).

    Cost: two gradients over λ instead of a second derivative; no products.

    Memory: no stored state.

    Raises ValueError for an optimizer that does not take one gradient a step.

    Source: Liu et al. 2019, equation 8.
    """

    epsilon: Positive = 0.01

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        stepping, hyper = gradient_optimizer(optimizer, "darts"), derivatives.hyper
        last_batch = batches[len(batches) - 1]
        before = advance(derivatives, optimizer, state, batches, len(batches) - 1)
        params = stepping.params(before)
        gradient = derivatives.inner_gradient(params, last_batch)
        state = stepping.step(before, gradient, hyper)
        outer = derivatives.outer_gradient(stepping.params(state), outer_batch)

        total = outer.hyper.clone()
        vector = stepping.adjoint_(cotangent_of(stepping, state, outer.params), before, gradient, hyper, total)
        if derivatives.penalty is not None:
            derivatives.penalty.add_mixed_product(params, vector, total)
        norm = vector.norm(dim=-1, keepdim=True)
        shift = vector * (self.epsilon / norm).where(norm > 0, 0.0)  # a product with zero is zero
        above = derivatives.inner_hyper_gradient(params + shift, last_batch)
        below = derivatives.inner_hyper_gradient(params - shift, last_batch)
        return Estimate(state, total + (above - below) * (norm / (2 * self.epsilon)), outer.loss, derivatives.cost)


METHOD = DARTS
