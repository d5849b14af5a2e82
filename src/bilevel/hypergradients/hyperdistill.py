"""HyperDistill: the sum over all steps distilled into one product at an average of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, cotangent_of
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch, Problem


@dataclass(frozen=True, config=STRICT)
class HyperDistill(Hypergradient):
    """∂L₂/∂λ + π v/‖v‖,  v = B*_T ∂L₂/∂w_T,  π = θ ‖v‖ (1 − γᵀ) / (1 − γ).

    B*_T is the Jacobian ∂s_T/∂λ of the last step, on its batch, taken where the parameters are the distilled point
    w*_T = (1 − γ)/(1 − γᵀ) Σ_t γ^{T−t} w_{t−1} instead of w_{T−1}; the optimizer's other slots are as in s_{T−1}.
    The average is carried along with the run: w*_t = p_t w*_{t−1} + (1 − p_t) w_{t−1}, p_t = (γ − γᵗ)/(1 − γᵗ).
    For γ = 1 the limits hold: p_t = (t − 1)/t and T in place of (1 − γᵀ)/(1 − γ).

    gamma: γ in [0, 1]; with 0 and θ = 1 it is T1–T2. theta: θ, to be had from `fit_theta`.

    The article draws the batch at random among those of the run, with the weights of the average; here it is the last
    one, so that an estimate is a function of its arguments.

    Cost: one mixed product; a call of `fit_theta` takes 3T − 1 products and stores T states.

    Memory: one vector as large as the parameters, the distilled point.

    Source: Lee et al. 2022, algorithms 3 and 4.
    """

    gamma: Annotated[float, Field(ge=0, le=1)]
    theta: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state = state.clone()
        distilled, count = optimizer.params(state).clone(), 0.0
        derivatives.cost.hold(1)
        for index, batch in enumerate(batches):
            count = 1 + self.gamma * count  # (1 − γᵗ)/(1 − γ), which is 1 / (1 − p_t)
            distilled.lerp_(optimizer.params(state), 1 / count)
            if index + 1 == len(batches):
                last = _at(optimizer, state, distilled)
            optimizer.advance_(derivatives, state, batch)
        outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
        direction = torch.zeros_like(derivatives.hyper)
        step = optimizer.linearize(derivatives, last, batches[len(batches) - 1])
        step.pull_back_(cotangent_of(optimizer, state, outer.params), direction, to_state=False)
        # ‖v‖ of the scale and of the normalization cancel
        return Estimate(state, outer.hyper + self.theta * count * direction, outer.loss, derivatives.cost)


def fit_theta(
    problem: Problem,
    optimizer: Optimizer,
    state: Tensor,
    hyper: Tensor,
    batches: Sequence[Batch],
    outer_batch: Batch,
    gamma: float,
) -> Tensor:
    """θ of `HyperDistill` for a run, by least squares against exact reverse mode: a tensor (S,).

    For every horizon h = 1 … T the last h steps, as a run of their own, give a sample: y_h = ⟨g_h, v_h⟩ / ‖v_h‖ with
    g_h the second-order term Σ_{t > T−h} B_t A_{t+1} … A_T ∂L₂/∂w_T, x_h = ‖v_h‖ (1 − γʰ)/(1 − γ) with v_h the
    direction v of `HyperDistill`; θ = Σ x_h y_h / Σ x_h². All horizons come out of one sweep backwards. It stores the
    T states and takes 2T − 1 products for g and T for v. Where all v_h are zero θ is 0. The article's samples are the
    same with the states of the run replaced by those on the line between the first and the last (DrMAD).

    state (S, slots, P), hyper (S, H), batches with a leading axis S, and 0 ≤ γ ≤ 1; for one run S = 1.

    Raises ValueError for other shapes, for no batches and for γ out of range.
    """
    if state.dim() != 3 or hyper.dim() != 2 or len(batches) == 0 or not 0 <= gamma <= 1:
        raise ValueError(
            "fit_theta: expected a state (S, slots, P), hyperparameters (S, H), one batch or more and gamma in [0, 1], "
            f"got {tuple(state.shape)}, {tuple(hyper.shape)}, {len(batches)} batches and gamma {gamma}"
        )
    derivatives, steps = Derivatives(problem, hyper), len(batches)
    trajectory = [state.detach().clone()]
    for batch in batches:
        trajectory.append(trajectory[-1].clone())
        optimizer.advance_(derivatives, trajectory[-1], batch)
    last_batch, before_last = batches[steps - 1], trajectory[steps - 1]
    outer = derivatives.outer_gradient(optimizer.params(trajectory[steps]), outer_batch)

    cotangent = cotangent_of(optimizer, state, outer.params)
    second_order = torch.zeros_like(derivatives.hyper)
    weighted = torch.zeros_like(optimizer.params(state))  # Σ_t γ^{T−t} w_{t−1} over the horizon
    products, squares, count = second_order.new_zeros(len(hyper)), second_order.new_zeros(len(hyper)), 0.0
    for horizon in range(1, steps + 1):
        index = steps - horizon
        linear = optimizer.linearize(derivatives, trajectory[index], batches[index])
        linear.pull_back_(cotangent, second_order, to_state=index > 0)
        weighted.add_(optimizer.params(trajectory[index]), alpha=gamma ** (horizon - 1))
        count = 1 + gamma * count  # (1 − γʰ)/(1 − γ)
        direction = torch.zeros_like(second_order)
        distilled = optimizer.linearize(derivatives, _at(optimizer, before_last, weighted / count), last_batch)
        distilled.pull_back_(cotangent_of(optimizer, state, outer.params), direction, to_state=False)
        # x y and x², in which the norm of v cancels or is squared
        products.add_(count * (second_order * direction).sum(-1))
        squares.add_(count**2 * (direction * direction).sum(-1))
    return (products / squares).where(squares > 0, 0.0)


def _at(optimizer: Optimizer, state: Tensor, params: Tensor) -> Tensor:
    """A copy of the state with other parameters."""
    moved = state.clone()
    optimizer.params(moved).copy_(params)
    return moved


METHOD = HyperDistill
