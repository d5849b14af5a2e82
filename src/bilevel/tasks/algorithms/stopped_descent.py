"""Gradient descent that stops where the gradient is small: the number of steps jumps, and with it the result."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import SGD, Until
from bilevel.problem import Problem
from bilevel.settings import Count, Positive
from bilevel.tasks.algorithms.base import STRICT, Algorithm


@dataclass(frozen=True, config=STRICT)
class StoppedDescent(Algorithm):
    """L₂(w_c(x)) = ½ ‖w_c(x) − b‖², c(x) the number of steps until ‖∂L₁/∂w‖ < ε.

    L₁ = ½ (w₁²/4 + w₂²) − ½ (w₁ + w₂) + x/2 ‖w‖²: x is the coefficient of regularization. Descent goes from
    w_0 = (3, −2); b = (1, 0.5).

    low, high: range of x. epsilon: ε. learning_rate: η. most_steps: ValueError where the criterion takes more.

    Source: deck 001, slide "Дифференцирование методов оптимизации" (stopping criterion ‖∇L‖ < ε).
    """

    low: Positive = 0.3
    high: Positive = 1.5
    epsilon: Positive = 0.2
    learning_rate: Positive = 0.3
    most_steps: Count = 100

    def pieces(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Algorithm`; every input is a seed of one batch, which stops on its own."""
        optimizer = Until(SGD(learning_rate=self.learning_rate), gradient_norm=self.epsilon)
        start = torch.tensor([3.0, -2.0], dtype=inputs.dtype).expand(len(inputs), -1)
        estimate = Unrolled()(
            Problem(_inner, _outer),
            optimizer,
            optimizer.init(start),
            inputs.unsqueeze(-1),
            [None] * self.most_steps,
            None,
        )
        if not bool(optimizer.stopped(estimate.state).all()):
            raise ValueError(
                f"stopped_descent: the gradient does not fall below {self.epsilon} within {self.most_steps} steps; "
                "allow more steps, or choose a smaller learning rate"
            )
        return optimizer.steps_done(estimate.state).long(), estimate.outer_loss, estimate.hypergradient.squeeze(-1)


def _inner(params: Tensor, hyper: Tensor, batch: None) -> Tensor:
    stretch = params.new_tensor([0.25, 1.0])
    return 0.5 * (stretch * params * params).sum() - 0.5 * params.sum() + 0.5 * hyper[0] * (params * params).sum()


def _outer(params: Tensor, hyper: Tensor, batch: None) -> Tensor:
    away = params - params.new_tensor([1.0, 0.5])
    return 0.5 * (away * away).sum()


METHOD = StoppedDescent
