"""Reverse mode for the sum of the outer losses of all steps; the method of the task `learned_optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, gradient_optimizer
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch

PullBack = Callable[[Tensor, Tensor, bool], object]
"""`LinearStep.pull_back_` of a step: of cotangent, `to_hyper` and `to_state`."""


@dataclass(frozen=True, config=STRICT)
class Trajectory(Hypergradient):
    """The derivative of the mean of L₂(w_1, λ), …, L₂(w_T, λ), by one sweep back over the T steps.

    Every w_t adds ∂L₂/∂w_t / T to what comes back from the later steps. `outer_loss` is that mean.

    second_derivatives: whether the gradients g_t count as functions of w_{t−1} and λ. Without, they are inputs that are
        given, as in the paper: no Hessian is multiplied by, and the hypergradient is not exact.

    Cost: 2T − 1 products and T outer gradients; no products without second derivatives.

    Memory: the states of all T steps; without second derivatives, what `step_with_adjoint_` of the optimizer keeps.

    Raises ValueError for an optimizer that does not take one gradient a step.

    Source: Andrychowicz et al. 2016, equation 3 with all weights equal.
    """

    second_derivatives: bool = False

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        stepping, count = gradient_optimizer(optimizer, "trajectory"), len(batches)
        state, steps, outer = state.clone(), list[PullBack](), list[OuterGradient]()
        derivatives.cost.hold(count)
        for index in range(count):
            steps.append(self._advance_(stepping, derivatives, state, batches[index]))
            outer.append(derivatives.outer_gradient(stepping.params(state), outer_batch))
        cotangent, total = torch.zeros_like(state), torch.zeros_like(derivatives.hyper)
        for index in reversed(range(count)):
            total.add_(outer[index].hyper)
            stepping.params(cotangent).add_(outer[index].params)
            steps[index](cotangent, total, index > 0)
        loss = torch.stack([found.loss for found in outer]).mean(0)
        return Estimate(state, total / count, loss, derivatives.cost)

    def _advance_(
        self, optimizer: GradientOptimizer, derivatives: Derivatives, state: Tensor, batch: Batch
    ) -> PullBack:
        """One step, `state` in place."""
        gradient = derivatives.inner_gradient(optimizer.params(state), batch)
        if not self.second_derivatives:
            adjoint_ = optimizer.step_with_adjoint_(state, gradient, derivatives.hyper)
            return lambda cotangent, to_hyper, to_state: adjoint_(cotangent, to_hyper)
        taped = state.clone()
        optimizer.step_(state, gradient, derivatives.hyper)
        return lambda cotangent, to_hyper, to_state: optimizer.linearize(derivatives, taped, batch).pull_back_(
            cotangent, to_hyper, to_state=to_state
        )


METHOD = Trajectory
