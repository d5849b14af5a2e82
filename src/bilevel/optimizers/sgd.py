"""Stochastic gradient descent."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import STRICT, GradientOptimizer
from bilevel.optimizers.learned import Decay, LearningRate, add_scaled_, counts, learned, pull_back, value_of


@dataclass(frozen=True, config=STRICT)
class SGD(GradientOptimizer):
    """w_t = w_{t−1} − η a_t,  a_t = g_t + ω w_{t−1}: weight decay ω is coupled to the gradient.

    State: slot 0 is w; with a schedule, the first entry of slot 1 is the number of steps done.
    Adjoint, with r = dL/dw_t: dL/da_t = −η r, and r + ω dL/da_t passes to w_{t−1} directly; dL/dη = −r·a_t,
    dL/dω = w_{t−1}·dL/da_t.
    """

    vectors = 1

    learning_rate: LearningRate
    weight_decay: Decay = 0.0

    @property
    def counts(self) -> bool:
        """With a schedule."""
        return counts(self.learning_rate, self.weight_decay)

    @property
    def adjoint_reads_gradient(self) -> bool:
        """For a learned rate only."""
        return learned(self.learning_rate)

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        params, count = state[..., 0, :], self.count(state)
        rate, decay = value_of(self.learning_rate, hyper, count), value_of(self.weight_decay, hyper, count)
        if isinstance(decay, Tensor) or decay:
            params.mul_(1 - rate * decay)
        add_scaled_(params, gradient, -rate)
        if count is not None:
            count.add_(1)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        count, params, through = self.count(taped), taped[..., 0, :], cotangent[..., 0, :]
        rate, decay = value_of(self.learning_rate, hyper, count), value_of(self.weight_decay, hyper, count)
        if gradient is not None:
            descended = torch.addcmul(gradient, params, torch.as_tensor(decay, dtype=params.dtype))
            pull_back(self.learning_rate, -through * descended, hyper, count, to_hyper)
        by_gradient = torch.mul(through, -rate)
        if learned(self.weight_decay):
            pull_back(self.weight_decay, by_gradient * params, hyper, count, to_hyper)
        if isinstance(decay, Tensor) or decay:
            add_scaled_(through, by_gradient, decay)
        return by_gradient
