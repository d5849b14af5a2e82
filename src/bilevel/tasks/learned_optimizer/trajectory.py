"""Reverse mode for the sum of the outer losses of all steps; the method of the task `learned_optimizer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient
from bilevel.hypergradients.gradient_steps import gradient_optimizer
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Trajectory(Hypergradient):
    """The derivative of the mean of L₂(w_1, λ), …, L₂(w_T, λ), by one sweep back over the T steps.

    Every w_t adds ∂L₂/∂w_t / T to what comes back from the later steps. `outer_loss` is that mean.

    second_derivatives: whether the gradients g_t count as functions of w_{t−1} and λ. Without, they are inputs that are
        given, as in the paper: no Hessian is multiplied by, and the hypergradient is not exact.

    Cost: 2T − 1 products and T outer gradients; no products without second derivatives.

    Memory: the states of all T steps.

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
        state = state.clone()
        tape, gradients, outer = state.new_empty(count, *state.shape), list[Tensor](), list[OuterGradient]()
        derivatives.cost.hold(count)
        for index in range(count):
            tape[index] = state
            gradients.append(derivatives.inner_gradient(stepping.params(state), batches[index]))
            stepping.step_(state, gradients[-1], derivatives.hyper)
            outer.append(derivatives.outer_gradient(stepping.params(state), outer_batch))
        cotangent, total = torch.zeros_like(state), torch.zeros_like(derivatives.hyper)
        for index in reversed(range(count)):
            total.add_(outer[index].hyper)
            stepping.params(cotangent).add_(outer[index].params)
            if self.second_derivatives:
                step = stepping.linearize(derivatives, tape[index], batches[index])
                step.pull_back_(cotangent, total, to_state=index > 0)
            else:
                _pull_back_given_(stepping, derivatives, cotangent, tape[index], gradients[index], total)
        loss = torch.stack([found.loss for found in outer]).mean(0)
        return Estimate(state, total / count, loss, derivatives.cost)


def _pull_back_given_(
    optimizer: GradientOptimizer,
    derivatives: Derivatives,
    cotangent: Tensor,
    taped: Tensor,
    gradient: Tensor,
    to_hyper: Tensor,
) -> None:
    """`LinearStep.pull_back_` of a step whose gradient is given."""
    read = gradient if optimizer.adjoint_reads_gradient else None
    optimizer.adjoint_(cotangent, taped, read, derivatives.hyper, to_hyper)


METHOD = Trajectory
