"""Stochastic gradient descent with (heavy-ball) momentum."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import Decay, LearningRate, Optimizer


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Momentum(Optimizer):
    """m_t = μ m_{t−1} + g_t + ω w_{t−1},  w_t = w_{t−1} − η m_t,  m_0 = 0.

    The convention of `torch.optim.SGD` and optax. State: slot 0 is w, slot 1 is m.
    Adjoint, with r = dL/dw_t, q = dL/dm_t and p = q − η r: dL/dg_t = p; (r + ω p, μ p) passes to (w, m)_{t−1}.
    """

    slots = 2

    learning_rate: LearningRate
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Decay = 0.0

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place; `hyper` is not used."""
        params, velocity = state.unbind(-2)
        velocity.mul_(self.momentum).add_(gradient)
        if self.weight_decay:
            velocity.add_(params, alpha=self.weight_decay)
        params.sub_(velocity, alpha=self.learning_rate)

    def adjoint_(self, cotangent: Tensor) -> Tensor:
        """See the class."""
        params, velocity = cotangent.unbind(-2)
        through_gradient = torch.sub(velocity, params, alpha=self.learning_rate)
        if self.weight_decay:
            params.add_(through_gradient, alpha=self.weight_decay)
        torch.mul(through_gradient, self.momentum, out=velocity)
        return through_gradient
