"""Exact reverse mode through the inner optimization."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient
from bilevel.hypergradients.reverse import reverse_sweep, train
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Unrolled(Hypergradient):
    """dL₂/dλ = ∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T,  A_t = ∂s_t/∂s_{t−1},  B_t = ∂s_t/∂λ  (deck 000).

    Exact. Stores the T parameter vectors and the graph of one step: the optimizer's part of A_t and B_t is applied in
    closed form, the loss's part by one Hessian-vector and one mixed product a step. It has no settings.

    Source: Maclaurin et al. 2015; Franceschi et al. 2017 (reverse hypergradient).
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state, trajectory = train(derivatives, optimizer, state, batches)
        outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
        hypergradient = reverse_sweep(derivatives, optimizer, state, trajectory, batches, outer)
        return Estimate(state, hypergradient, outer.loss, derivatives.cost)


METHOD = Unrolled
