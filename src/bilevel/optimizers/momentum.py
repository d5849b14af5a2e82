"""Stochastic gradient descent with momentum: heavy ball and Nesterov."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import STRICT, GradientOptimizer
from bilevel.optimizers.learned import (
    Decay,
    LearningRate,
    MomentumFactor,
    add_scaled_,
    counts,
    learned,
    pull_back,
    value_of,
)


@dataclass(frozen=True, config=STRICT)
class Momentum(GradientOptimizer):
    """m_t = μ m_{t−1} + a_t,  a_t = g_t + ω w_{t−1},  m_0 = 0;  w_t = w_{t−1} − η m_t, or, with `nesterov`,
    w_t = w_{t−1} − η (a_t + μ m_t).

    The convention of `torch.optim.SGD` and optax. State: slot 0 is w, slot 1 is m; with a schedule, the first entry of
    slot 2 is the number of steps done.
    Adjoint, with r = dL/dw_t, q = dL/dm_t: p = q − η r and dL/da_t = p, or, with `nesterov`, p = q − η μ r and
    dL/da_t = p − η r; then (r + ω dL/da_t, μ p) passes to (w, m)_{t−1}.
    """

    vectors = 2

    learning_rate: LearningRate
    momentum: MomentumFactor = 0.9
    weight_decay: Decay = 0.0
    nesterov: bool = False

    @property
    def counts(self) -> bool:
        """With a schedule."""
        return counts(self.learning_rate, self.momentum, self.weight_decay)

    @property
    def tape_slots(self) -> int:
        """The parameters, or all if anything is learned or follows a schedule."""
        return self.slots if self._learned or self.counts else 1

    @property
    def adjoint_reads_gradient(self) -> bool:
        """If anything is learned."""
        return self._learned

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        params, velocity, count = state[..., 0, :], state[..., 1, :], self.count(state)
        rate = value_of(self.learning_rate, hyper, count)
        factor = value_of(self.momentum, hyper, count)
        decay = value_of(self.weight_decay, hyper, count)
        velocity.mul_(factor)
        if isinstance(decay, Tensor) or decay:
            gradient = torch.add(gradient, params * decay)
        velocity.add_(gradient)
        if self.nesterov:
            add_scaled_(params, gradient, -rate)
            add_scaled_(params, velocity, -rate * factor)
        else:
            add_scaled_(params, velocity, -rate)
        if count is not None:
            count.add_(1)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        by_params, by_velocity = cotangent[..., 0, :], cotangent[..., 1, :]
        count = self.count(taped)
        rate = value_of(self.learning_rate, hyper, count)
        factor = value_of(self.momentum, hyper, count)
        decay = value_of(self.weight_decay, hyper, count)
        if gradient is not None:
            self._pull_back_settings(by_params, by_velocity, taped, gradient, hyper, to_hyper)
        ahead = rate * factor if self.nesterov else rate
        total = _minus_scaled(by_velocity, by_params, ahead)
        by_gradient = _minus_scaled(total, by_params, rate) if self.nesterov else total
        if isinstance(decay, Tensor) or decay:
            add_scaled_(by_params, by_gradient, decay)
        torch.mul(total, factor, out=by_velocity)
        return by_gradient

    def _pull_back_settings(
        self, r: Tensor, q: Tensor, taped: Tensor, gradient: Tensor, hyper: Tensor, to_hyper: Tensor | None
    ) -> None:
        params, velocity, count = taped[..., 0, :], taped[..., 1, :], self.count(taped)
        rate = value_of(self.learning_rate, hyper, count)
        factor = value_of(self.momentum, hyper, count)
        descended = gradient + params * value_of(self.weight_decay, hyper, count)
        following = velocity * factor + descended
        if self.nesterov:
            p = q - r * factor * rate
            pull_back(self.learning_rate, -r * (descended + following * factor), hyper, count, to_hyper)
            pull_back(self.momentum, p * velocity - r * following * rate, hyper, count, to_hyper)
            pull_back(self.weight_decay, (p - r * rate) * params, hyper, count, to_hyper)
        else:
            p = q - r * rate
            pull_back(self.learning_rate, -r * following, hyper, count, to_hyper)
            pull_back(self.momentum, p * velocity, hyper, count, to_hyper)
            pull_back(self.weight_decay, p * params, hyper, count, to_hyper)

    @property
    def _learned(self) -> bool:
        return learned(self.learning_rate, self.momentum, self.weight_decay)


def _minus_scaled(tensor: Tensor, other: Tensor, factor: float | Tensor) -> Tensor:
    """tensor − factor · other, in one pass where the factor is a number."""
    return tensor - other * factor if isinstance(factor, Tensor) else torch.sub(tensor, other, alpha=factor)
