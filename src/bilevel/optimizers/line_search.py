"""Policies for the step size α_t along a direction: fixed, inexact (Armijo, strong Wolfe), exact for quadratics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, NamedTuple, Self

import torch
from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.optimizers.base import STRICT
from bilevel.optimizers.learned import Learned, LearningRate, counts, pull_back, value_of
from bilevel.problem import Batch
from bilevel.settings import Count, Positive

Fraction = Annotated[float, Field(gt=0, lt=1)]

ROUNDING = 10.0  # how many units in the last place of φ(0) a comparison of losses allows for


@plain_dataclass(frozen=True)
class Line:
    """φ(α) = L₁(w + α d, λ; batch), for every seed its own; step sizes and slopes are (S, 1).

    loss: φ(0), None for a policy that does not need it. count: number of steps done, None without a schedule.
    """

    derivatives: Derivatives
    batch: Batch
    params: Tensor
    gradient: Tensor
    direction: Tensor
    loss: Tensor | None
    count: Tensor | None

    def slope(self) -> Tensor:
        """φ'(0) = g·d."""
        return dot(self.gradient, self.direction)

    def at(self, step_size: Tensor) -> Tensor:
        """w + α d, (S, P)."""
        return torch.addcmul(self.params, self.direction, step_size)

    def loss_at(self, step_size: Tensor) -> Tensor:
        """φ(α)."""
        return self.derivatives.inner_loss(self.at(step_size), self.batch).unsqueeze(-1)

    def loss_and_slope_at(self, step_size: Tensor) -> tuple[Tensor, Tensor]:
        """φ(α) and φ'(α)."""
        loss, gradient = self.derivatives.inner_loss_and_gradient(self.at(step_size), self.batch)
        return loss.unsqueeze(-1), dot(gradient, self.direction)

    def bound(self) -> Tensor:
        """φ(0) and a little more, for rounding: close to a minimum, losses differ by less than they are exact to."""
        assert self.loss is not None
        loss = self.loss.unsqueeze(-1)
        return loss + loss.abs() * (ROUNDING * torch.finfo(loss.dtype).eps)

    def same(self, step_size: float) -> Tensor:
        """One step size for all seeds."""
        return self.params.new_full((self.params.shape[0], 1), step_size)


class Cotangents(NamedTuple):
    """dL/dw, dL/dg and dL/dd at a line's start, (S, P) each, to be added to in place."""

    params: Tensor
    gradient: Tensor
    direction: Tensor


class LinearStepSize:
    """A step size (S, 1) at a known line. As it stands here, a constant."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def pull_back_(self, by_value: Tensor, to: Cotangents, to_hyper: Tensor | None) -> None:
        """Add to `to` and `to_hyper` the transposed derivatives of the step size, applied to dL/dα (S, 1)."""


class StepSize(ABC):
    """A policy: α_t as a function of the line that it is to be taken along."""

    @property
    def needs_loss(self) -> bool:
        """Whether `Line.loss` is looked at."""
        return False

    @property
    def counts(self) -> bool:
        """Whether `Line.count` is looked at."""
        return False

    @abstractmethod
    def choose(self, line: Line) -> Tensor:
        """α_t, (S, 1)."""

    def linearize(self, line: Line) -> LinearStepSize:
        """α_t, ready for products with its transposed derivatives. As it stands here, it has none: a constant."""
        return LinearStepSize(self.choose(line))


@dataclass(frozen=True, config=STRICT)
class Fixed(StepSize):
    """α_t = η, a number or `Learned` from the hyperparameters, one for all steps or one a step."""

    learning_rate: LearningRate

    @field_validator("learning_rate")
    @classmethod
    def _one_a_line(cls, rate: LearningRate) -> LearningRate:
        if isinstance(rate, Learned) and rate.sizes is not None:
            raise ValueError("a line has one step size: leave the sizes of Learned out, or choose SGD or Momentum")
        return rate

    @property
    def counts(self) -> bool:
        """With a schedule."""
        return counts(self.learning_rate)

    def choose(self, line: Line) -> Tensor:
        """See the class."""
        rate = value_of(self.learning_rate, line.derivatives.hyper, line.count)
        return rate if isinstance(rate, Tensor) else line.same(rate)

    def linearize(self, line: Line) -> LinearStepSize:
        """See `StepSize`."""
        return _LinearFixed(self, line)


class _LinearFixed(LinearStepSize):
    def __init__(self, policy: Fixed, line: Line) -> None:
        super().__init__(policy.choose(line))
        self._rate, self._hyper, self._count = policy.learning_rate, line.derivatives.hyper, line.count

    def pull_back_(self, by_value: Tensor, to: Cotangents, to_hyper: Tensor | None) -> None:
        pull_back(self._rate, by_value, self._hyper, self._count, to_hyper)


@dataclass(frozen=True, config=STRICT)
class Armijo(StepSize):
    """α_t = initial · shrinkᵏ with the least k for which φ(α) ≤ φ(0) + slope · α φ'(0): sufficient decrease.

    φ(0) is raised by ten units in its last place. Where none of the first `limit` trials is accepted, α_t = 0. A trial
    is one evaluation of the loss.

    As a function of parameters, directions and hyperparameters, α_t is piecewise constant: its derivative is exactly
    zero wherever there is one, and it jumps where k changes. The hypergradient is that of the piece.

    Source: Armijo 1966; Nocedal and Wright 2006, algorithm 3.1; deck 001, "Общий алгоритм оптимизации" (b).
    """

    initial: Positive = 1.0
    shrink: Fraction = 0.5
    slope: Fraction = 1e-4
    limit: Count = 50

    @property
    def needs_loss(self) -> bool:
        """Yes."""
        return True

    def choose(self, line: Line) -> Tensor:
        """See the class."""
        bound, decrease = line.bound(), self.slope * line.slope()
        step_size = line.same(self.initial)
        accepted = torch.zeros_like(step_size, dtype=torch.bool)
        for _ in range(self.limit):
            accepted = accepted | (line.loss_at(step_size) <= bound + step_size * decrease)
            if accepted.all():
                break
            step_size = torch.where(accepted, step_size, step_size * self.shrink)
        return torch.where(accepted, step_size, 0.0)


@dataclass(frozen=True, config=STRICT)
class StrongWolfe(StepSize):
    """An α_t with φ(α) ≤ φ(0) + slope · α φ'(0) and |φ'(α)| ≤ curvature · |φ'(0)|, by bracketing and bisection.

    From `initial`: a step is too long if φ(α) lies above the line or φ'(α) > curvature |φ'(0)|, and too short if
    φ'(α) < −curvature |φ'(0)|. It is doubled until one is too long, then the interval between the longest that is too
    short and the shortest that is too long is halved. Such an interval always holds an α that will do, so that for a
    loss that is smooth and bounded below only `limit` can end the search in vain; then α_t is the longest step that
    was too short (which does decrease the loss), or 0. φ(0) is raised by ten units in its last place. A trial is one
    gradient.

    There is no interpolation, on purpose: α_t is `initial` times a dyadic fraction, piecewise constant in parameters,
    directions and hyperparameters. Its derivative is exactly zero wherever there is one, and it jumps where the number
    of doublings or the choice of a half changes. The hypergradient is that of the piece.

    Source: Wolfe 1969; Nocedal and Wright 2006, section 3.1; deck 001, "Общий алгоритм оптимизации" (b).
    """

    initial: Positive = 1.0
    slope: Fraction = 1e-4
    curvature: Fraction = 0.9
    limit: Count = 40

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.slope >= self.curvature:
            raise ValueError(
                f"slope must be less than curvature, or there may be no such step; got slope {self.slope} and "
                f"curvature {self.curvature}"
            )
        return self

    @property
    def needs_loss(self) -> bool:
        """Yes."""
        return True

    def choose(self, line: Line) -> Tensor:
        """See the class."""
        bound, start = line.bound(), line.slope()
        steepest = self.curvature * start.abs()
        step_size, low, high = line.same(self.initial), line.same(0.0), line.same(math.inf)
        accepted = torch.zeros_like(step_size, dtype=torch.bool)
        for _ in range(self.limit):
            loss, slope = line.loss_and_slope_at(step_size)
            # "not below" and not "above", so that a step to where the loss is not a number is too long
            too_long = ~(loss <= bound + self.slope * step_size * start) | ~(slope <= steepest)
            too_short = ~too_long & (slope < -steepest)
            accepted = accepted | ~(too_long | too_short)
            if accepted.all():
                break
            high = torch.where(too_long & ~accepted, step_size, high)
            low = torch.where(too_short & ~accepted, step_size, low)
            following = torch.where(high.isinf(), 2 * step_size, (low + high) / 2)
            step_size = torch.where(accepted, step_size, following)
        return torch.where(accepted, step_size, low)


@dataclass(frozen=True, config=STRICT)
class Exact(StepSize):
    """α_t = −g·d / d·y,  y = g(w + d) − g(w): the minimum along the line where the loss is quadratic.

    For any other loss, the step of the secant method. Where d·y ≤ 0 the line has no minimum, or d = 0: α_t = 0. One
    gradient a step.

    It is smooth, and its derivative counts: with k = dL/dα / d·y and p = g(w + d), dL/dp = −k α d,
    dL/dg = k (α − 1) d, dL/dd = −k (g + α y), the first of which passes to w, d and λ by one product with each
    Jacobian of the gradient at w + d.

    Source: Nocedal and Wright 2006, section 3.5; deck 001, "Общий алгоритм оптимизации" (c).
    """

    def choose(self, line: Line) -> Tensor:
        """See the class."""
        ahead = line.derivatives.inner_gradient(line.params + line.direction, line.batch)
        return -line.slope() * _inverse(dot(line.direction, ahead - line.gradient))

    def linearize(self, line: Line) -> LinearStepSize:
        """See `StepSize`."""
        return _LinearExact(line)


class _LinearExact(LinearStepSize):
    def __init__(self, line: Line) -> None:
        self._line = line
        self._ahead = line.derivatives.linearize(line.params + line.direction, line.batch)
        self._change = self._ahead.gradient - line.gradient
        self._inverse = _inverse(dot(line.direction, self._change))
        super().__init__(-line.slope() * self._inverse)

    def pull_back_(self, by_value: Tensor, to: Cotangents, to_hyper: Tensor | None) -> None:
        line, factor = self._line, by_value * self._inverse
        to.gradient.addcmul_(line.direction, factor * (self.value - 1))
        to.direction.addcmul_(torch.addcmul(line.gradient, self._change, self.value), -factor)
        through = torch.zeros_like(line.params)
        self._ahead.add_products(line.direction * (-factor * self.value), through, to_hyper)
        to.params.add_(through)
        to.direction.add_(through)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Σᵢ leftᵢ rightᵢ over the last axis, which stays with length 1."""
    product: Tensor = torch.linalg.vecdot(left, right)
    return product.unsqueeze(-1)


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm over the last axis, which stays with length 1."""
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return length


def _inverse(curvature: Tensor) -> Tensor:
    return torch.where(curvature > 0, 1 / curvature, 0.0)
