"""The reverse sweep that exact and truncated reverse mode and DrMAD share; not a method itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import cotangent_of
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


def train(
    derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batches: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    """Inner steps over all batches; returns the last state and the parameters before each step, (T, S, P)."""
    state = state.clone()
    params = optimizer.params(state)
    trajectory = params.new_empty(len(batches), *params.shape)
    for index, batch in enumerate(batches):
        trajectory[index] = params
        gradient = derivatives.inner_gradient(trajectory[index], batch)
        optimizer.step_(state, gradient, derivatives.hyper)
    derivatives.cost.hold(len(batches))
    return state, trajectory


def reverse_sweep(
    derivatives: Derivatives,
    optimizer: Optimizer,
    state: Tensor,
    trajectory: Sequence[Tensor] | Tensor,
    batches: Sequence[Batch],
    outer: OuterGradient,
) -> Tensor:
    """∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T over the steps in `batches`, last to first.

    trajectory[t]: the parameters (S, P) at which the Jacobians of step t are taken. Returns (S, H).
    """
    hypergradient = outer.hyper.clone()
    cotangent = cotangent_of(optimizer, state, outer.params)
    for index in reversed(range(len(batches))):
        vector = optimizer.adjoint_(cotangent)
        inner = derivatives.linearize(trajectory[index], batches[index])
        if index == 0:  # nothing comes before the first step: its A is not needed
            inner.add_mixed_product(vector, hypergradient)
        else:
            inner.add_products(vector, optimizer.params(cotangent), hypergradient)
    return hypergradient
