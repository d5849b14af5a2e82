"""The one-step hypergradient of DARTS as published (quirk 4)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Clipped, Momentum, Optimizer
from bilevel.optimizers.learned import value_of
from bilevel.problem import Batch
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class UnmovedDARTS(Hypergradient):
    """∂L₂/∂λ(w) − η (∂L₁/∂λ(w⁺) − ∂L₁/∂λ(w⁻)) ‖v‖ / 2ε,  v = ∂L₂/∂w(w),  w^± = w ± ε v/‖v‖,  w = w_{T−1}.

    Quirk 4: the step to w' = w − η ∂L₁/∂w was computed and not used, so that everything is taken at w. The step is that
    of plain gradient descent, without momentum and clipping, at the learning rate η of the moment.

    epsilon: ε.

    Cost: two gradients over λ; no products.

    Memory: no stored state.

    Raises ValueError for an optimizer other than clipped momentum.

    Source: Liu et al. 2019, equation 8, with w' = w; the published code's `_compute_virtual_model`.
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
        if not isinstance(optimizer, Clipped) or not isinstance(optimizer.optimizer, Momentum):
            raise ValueError(f"darts_unmoved: expected Clipped(Momentum), got {type(optimizer).__name__}")
        last_batch = batches[len(batches) - 1]
        state = advance(derivatives, optimizer, state, batches, len(batches) - 1)
        params, momentum = optimizer.params(state), optimizer.optimizer
        rate = value_of(momentum.learning_rate, derivatives.hyper, momentum.count(state))
        outer = derivatives.outer_gradient(params, outer_batch)
        norm = outer.params.norm(dim=-1, keepdim=True)
        shift = outer.params * (self.epsilon / norm).where(norm > 0, 0.0)  # a product with zero is zero
        above = derivatives.inner_hyper_gradient(params + shift, last_batch)
        below = derivatives.inner_hyper_gradient(params - shift, last_batch)
        hypergradient = outer.hyper - rate * (above - below) * (norm / (2 * self.epsilon))
        optimizer.advance_(derivatives, state, last_batch)
        return Estimate(state, hypergradient, outer.loss, derivatives.cost)


METHOD = UnmovedDARTS
