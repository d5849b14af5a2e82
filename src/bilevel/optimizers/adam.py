"""Adam, with and without bias correction, and as deck 001 starts it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import STRICT, GradientOptimizer
from bilevel.optimizers.learned import Decay, LearningRate, add_scaled_, counts, learned, pull_back, value_of
from bilevel.settings import Positive

SENSITIVE = 200
"""Roundings of the largest gradient entry, below which √v̂ + ε makes them seen: at half a percent."""

Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Adam(GradientOptimizer):
    """m_t = β₁ m_{t−1} + (1 − β₁) a_t,  v_t = β₂ v_{t−1} + (1 − β₂) a_t²,  a_t = g_t + ω w_{t−1};
    w_t = w_{t−1} − η m̂_t / (√v̂_t + ε),  m̂_t = m_t / c₁,  v̂_t = v_t / c₂.

    bias: `corrected`: m_0 = v_0 = 0, c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ, as `torch.optim.Adam` and optax;
        `uncorrected`: m_0 = v_0 = 0, c₁ = c₂ = 1;
        `first_gradient`: c₁ = c₂ = 1 and the averages start as a_1 and a_1². This is the algorithm of deck 001, slide
        "Инвертирование динамики": its steps 5.1–5.3 move the parameters first and update the averages at the new point,
        which is the same chain with the loop cut elsewhere.

    State: slots 0, 1, 2 are w, m, v; where the step number matters it is the first entry of slot 3.
    Adjoint, with r, q₁, q₂ = dL/d(w, m, v)_t and d = √v̂_t + ε: p₁ = q₁ − η r / (c₁ d);
    p₂ = q₂ + η r m̂_t / (2 d² √(c₂ v_t)), and q₂ where v_t = 0, which all gradients so far being zero implies and where
    that derivative is multiplied by zero; dL/da_t = (1 − β₁) p₁ + 2 (1 − β₂) a_t p₂; then (r + ω dL/da_t, β₁ p₁, β₂ p₂)
    passes to (w, m, v)_{t−1}.

    Where √v̂_t is hardly larger than ε, dL/da_t depends on a_t itself: ε/(|a| + ε)² at the first step. In single
    precision the rounding of g_t is then seen (peers are 11 % off on a small network), so that `is_sensitive` asks for
    that gradient in double precision; as a rule of the first step alone.

    Source: Kingma and Ba 2015; deck 001.
    """

    vectors = 3

    learning_rate: LearningRate
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Decay = 0.0
    bias: Literal["corrected", "uncorrected", "first_gradient"] = "corrected"

    @property
    def counts(self) -> bool:
        """Unless `uncorrected` with no schedule."""
        return self.bias != "uncorrected" or counts(self.learning_rate, self.weight_decay)

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        params, mean, square = state[..., 0, :], state[..., 1, :], state[..., 2, :]
        count = self.count(state)
        rate, decay = value_of(self.learning_rate, hyper, count), value_of(self.weight_decay, hyper, count)
        self._add_(mean.mul_(self.beta1), square.mul_(self.beta2), _decayed(gradient, params, decay), count)
        if count is not None:
            count.add_(1)
        params.addcdiv_(mean, self._divisor(square.sqrt(), rate, count), value=-1)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        assert gradient is not None
        if gradient.dtype != cotangent.dtype:
            return self._wide_adjoint_(cotangent, taped, gradient, hyper, to_hyper)
        r, q1, q2 = cotangent[..., 0, :], cotangent[..., 1, :], cotangent[..., 2, :]
        params, mean, square = taped[..., 0, :], taped[..., 1, :] * self.beta1, taped[..., 2, :] * self.beta2
        before = self.count(taped)
        after = None if before is None else before + 1
        rate, decay = value_of(self.learning_rate, hyper, before), value_of(self.weight_decay, hyper, before)
        descended = _decayed(gradient, params, decay)
        self._add_(mean, square, descended, before)
        share1, share2 = self._shares(before)
        first, second = self._corrections(after)

        root = square.sqrt_()
        divisor = self._divisor(root, rate, after)
        if learned(self.learning_rate):
            pull_back(self.learning_rate, -r * mean / (divisor * rate), hyper, before, to_hyper)
        scaled = r / divisor
        q1.sub_(scaled)
        # v_t = 0: zero over something, where 0/0 would stand; no other root is as small
        root.clamp_min_(1e-200 if root.dtype == torch.float64 else 1e-30)
        quotient = mean.div_(root.mul_(divisor))
        _add_product_(q2, scaled, quotient, first / (rate * 2 * second**0.5))
        by_gradient = q1 * share1
        _add_product_(by_gradient, descended, q2, share2 * 2)
        q1.mul_(self.beta1)
        q2.mul_(self.beta2)
        if learned(self.weight_decay):
            pull_back(self.weight_decay, by_gradient * params, hyper, before, to_hyper)
        if isinstance(decay, Tensor) or decay:
            r.add_(by_gradient * decay)
        return by_gradient

    def _divisor(self, root: Tensor, rate: float | Tensor, count: Tensor | None) -> Tensor:
        """(√v̂_t + ε) c₁ / η, by which m_t is divided; `root` is √v_t, `count` is t."""
        first, second = self._corrections(count)
        return (root * (first / (rate * second**0.5))).add_(self.epsilon * first / rate)

    def is_sensitive(self, taped: Tensor, gradient: Tensor) -> bool:
        """In single precision, where √v̂_t + ε of some weight is near the rounding of g_t."""
        if gradient.dtype == torch.float64 or gradient.is_complex():
            return False
        count = self.count(taped)
        second = self._corrections(None if count is None else count + 1)[1]
        noise = SENSITIVE * torch.finfo(gradient.dtype).eps * gradient.abs().amax(-1, keepdim=True)
        kept = taped[..., 2, :].amin(-1, keepdim=True) * self.beta2
        if bool(((kept / second).sqrt() + self.epsilon > noise).all()):
            return False  # the rule, once some steps are done
        square = taped[..., 2, :] * self.beta2
        square.addcmul_(gradient, gradient, value=1 - self.beta2)
        square.masked_fill_(square == 0, torch.inf)
        smallest = (square.amin(-1, keepdim=True) / second).sqrt() + self.epsilon
        return bool((smallest < noise).any())

    def _wide_adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """`adjoint_` in the precision of the gradient."""
        wide = cotangent.to(gradient.dtype)
        more = None if to_hyper is None else torch.zeros_like(to_hyper, dtype=gradient.dtype)
        result = self.adjoint_(wide, taped.to(gradient.dtype), gradient, hyper.to(gradient.dtype), more)
        cotangent.copy_(wide)
        if to_hyper is not None and more is not None:
            to_hyper.add_(more)
        return result.to(cotangent.dtype)

    def _add_(self, mean: Tensor, square: Tensor, descended: Tensor, count: Tensor | None) -> None:
        """The share of a_t, for averages that are multiplied by β₁ and β₂ already."""
        share1, share2 = self._shares(count)
        add_scaled_(mean, descended, share1)
        _add_product_(square, descended, descended, share2)

    def _shares(self, count: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
        """Weights of a_t in m_t and v_t; `count` is the number of steps done before this one."""
        share1, share2 = 1 - self.beta1, 1 - self.beta2
        if self.bias != "first_gradient" or count is None:
            return share1, share2
        number = _number(count)
        if isinstance(number, float):
            return (1.0, 1.0) if number == 0 else (share1, share2)
        first, one = number == 0, torch.ones_like(number)
        return torch.where(first, one, share1), torch.where(first, one, share2)

    def _corrections(self, count: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
        """c₁ and c₂; `count` is the number of steps with this one."""
        if self.bias != "corrected" or count is None:
            return 1.0, 1.0
        # expm1, since 1 − β₂ᵗ loses four digits of single precision at first
        number = _number(count)
        if isinstance(number, float):
            return -math.expm1(number * _log(self.beta1)), -math.expm1(number * _log(self.beta2))
        return -torch.expm1(number * _log(self.beta1)), -torch.expm1(number * _log(self.beta2))


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


def _number(count: Tensor) -> float | Tensor:
    """The count of one seed as a number, where that costs nothing: operations with numbers are faster."""
    if count.numel() > 1 or count.device.type != "cpu":
        return count
    try:
        return float(count.real if count.is_complex() else count)
    except RuntimeError:  # within torch.func.vmap
        return count


def _add_product_(to: Tensor, left: Tensor, right: Tensor, factor: float | Tensor) -> None:
    """to += factor · left · right, elementwise."""
    if isinstance(factor, Tensor):
        to.addcmul_(left * factor, right)
    else:
        to.addcmul_(left, right, value=factor)


def _decayed(gradient: Tensor, params: Tensor, decay: float | Tensor) -> Tensor:
    return gradient + params * decay if isinstance(decay, Tensor) or decay else gradient
