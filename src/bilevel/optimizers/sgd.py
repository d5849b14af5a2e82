"""Stochastic gradient descent."""

from __future__ import annotations

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import Decay, LearningRate, Optimizer


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class SGD(Optimizer):
    """w_t = w_{t−1} − η (g_t + ω w_{t−1}), with weight decay ω coupled to the gradient.

    Adjoint, with r = dL/dw_t: dL/dg_t = −η r, and r − η ω r passes to w_{t−1} directly.
    """

    slots = 1

    learning_rate: LearningRate
    weight_decay: Decay = 0.0

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place; `hyper` is not used."""
        if self.weight_decay:
            state.mul_(1 - self.learning_rate * self.weight_decay)
        state.sub_(gradient.unsqueeze(-2), alpha=self.learning_rate)

    def adjoint_(self, cotangent: Tensor) -> Tensor:
        """See the class."""
        through_gradient = torch.mul(cotangent[..., 0, :], -self.learning_rate)
        if self.weight_decay:
            cotangent.mul_(1 - self.learning_rate * self.weight_decay)
        return through_gradient
