"""Exact forward mode: derivatives of the inner state are carried along with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, gradient_optimizer
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Forward(Hypergradient):
    """dL₂/dλ = ∂L₂/∂λ + Z_Tᵀ ∂L₂/∂w_T,  Z_t = ds_t/dλ = A_t Z_{t−1} + B_t,  Z_0 = 0.

    Exact; the method for few hyperparameters and many steps. It has no settings.

    Cost: (2T − 1) H products: H a step with each of the two Jacobians of the gradient, with the mixed one alone in the
    first.

    Memory: no state of the past; the H columns of Z, each as large as a state, whatever the number of steps.

    Raises ValueError for an optimizer that does not take one gradient a step.

    Source: Franceschi et al. 2017 (forward hypergradient).
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        stepping, hyper = gradient_optimizer(optimizer, "forward"), derivatives.hyper
        state, count = state.clone(), hyper.shape[-1]
        units = torch.eye(count, dtype=hyper.dtype, device=hyper.device)[:, None].expand(count, *hyper.shape)
        tangents = state.new_zeros(count, *state.shape)  # Z, its columns first: (H, S, slots, P)
        derivatives.cost.hold(count)
        for index, batch in enumerate(batches):
            push = derivatives.push_forward(stepping.params(state), batch)
            by_gradient = push.along(stepping.params(tangents) if index > 0 else None, units)
            tangents = _step_tangents(stepping, (state, push.gradient, hyper), (tangents, by_gradient, units))
            stepping.step_(state, push.gradient, hyper)
        outer = derivatives.outer_gradient(stepping.params(state), outer_batch)
        through_params = (stepping.params(tangents) * outer.params).sum(-1)
        return Estimate(state, outer.hyper + through_params.movedim(0, -1), outer.loss, derivatives.cost)


def _step_tangents(
    optimizer: GradientOptimizer, at: tuple[Tensor, Tensor, Tensor], along: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Tangents (H, S, slots, P) of the optimizer's step along tangents of state, gradient and hyperparameters."""
    state, gradient, hyper = at
    # √v of Adam has no derivative at a gradient that has always been zero, though the step has one: that of any
    # gradient too small to matter
    gradient = torch.where(gradient == 0, torch.finfo(gradient.dtype).tiny ** 0.45, gradient)

    def tangent(*direction: Tensor) -> Tensor:
        following: Tensor = torch.func.jvp(optimizer.step, (state, gradient, hyper), direction)[1]
        return following

    mapped: Tensor = torch.func.vmap(tangent)(*along)
    return mapped


METHOD = Forward
