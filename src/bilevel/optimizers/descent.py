"""Descent along a direction, with a policy for the step size."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.optimizers.base import LinearStep, Optimizer
from bilevel.optimizers.line_search import Cotangents, Line, StepSize, dot
from bilevel.problem import Batch

COMPOSED = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class Evaluation(NamedTuple):
    """The inner loss (S,), None where it is not needed, and its gradient (S, P), at the parameters of s_{t−1}."""

    loss: Tensor | None
    gradient: Tensor


class Descent(Optimizer):
    """w_t = w_{t−1} + α_t d_t, with a direction d_t from the gradient and a memory, and α_t from a policy.

    The general algorithm of deck 001, "Общий алгоритм оптимизации". A subclass has a field `step_size`, and gives the
    direction and its adjoint; if anything counts steps, the count is the first entry of the last slot.
    """

    step_size: StepSize

    @property
    def counts(self) -> bool:
        """Whether the state holds the number of steps done."""
        return self.step_size.counts

    @abstractmethod
    def direction_(self, state: Tensor, gradient: Tensor) -> Tensor:
        """d_t (S, P), a new tensor; the memory in `state` becomes that of s_t, in place, parameters and count apart."""

    @abstractmethod
    def direction_adjoint_(
        self, cotangent: Tensor, taped: Tensor, following: Tensor, gradient: Tensor, to: Cotangents
    ) -> None:
        """Transposed Jacobians of `direction_`.

        cotangent: dL/ds_t outside slot 0 becomes dL/ds_{t−1}, as far as it does not pass through the gradient.
        taped, following: s_{t−1} and s_t. to: dL/dd_t is read from `to.direction`; dL/dw_{t−1} and dL/dg_t are added to
        `to.params` and `to.gradient`.
        """

    def evaluate(self, derivatives: Derivatives, state: Tensor, batch: Batch) -> Evaluation:
        """What a step begins with."""
        if self.step_size.needs_loss:
            return Evaluation(*derivatives.inner_loss_and_gradient(self.params(state), batch))
        return Evaluation(None, derivatives.inner_gradient(self.params(state), batch))

    def advance_(self, derivatives: Derivatives, state: Tensor, batch: Batch) -> None:
        """See `Optimizer`."""
        self.advance_from_(derivatives, state, batch, self.evaluate(derivatives, state, batch))

    def advance_from_(self, derivatives: Derivatives, state: Tensor, batch: Batch, evaluation: Evaluation) -> None:
        """s_{t−1} becomes s_t, in place, given what `evaluate` found at s_{t−1}."""
        line = self.line_(derivatives, state, batch, self.params(state), evaluation)
        self.finish_(state, line.direction, self.step_size.choose(line))

    def line_(
        self, derivatives: Derivatives, state: Tensor, batch: Batch, params: Tensor, evaluation: Evaluation
    ) -> Line:
        """The line from `params` that the step is taken along; the memory in `state` is updated in place."""
        direction, count = self.direction_(state, evaluation.gradient), self._count(state)
        before = None if count is None else count.clone()  # the state's own goes on
        return Line(derivatives, batch, params, evaluation.gradient, direction, evaluation.loss, before)

    def finish_(self, state: Tensor, direction: Tensor, step_size: Tensor) -> None:
        """The parameters move, and the step is counted."""
        self.params(state).addcmul_(direction, step_size)
        count = self._count(state)
        if count is not None:
            count.add_(1)

    def linearize(self, derivatives: Derivatives, taped: Tensor, batch: Batch) -> DescentStep:
        """See `Optimizer`. Takes the whole step again, trials of the policy included."""
        return DescentStep(self, derivatives, taped.narrow(-2, 0, self.slots), batch)

    def _count(self, state: Tensor) -> Tensor | None:
        return state[..., self.slots - 1, :1] if self.counts else None


class DescentStep(LinearStep):
    """One step of a `Descent`."""

    def __init__(self, optimizer: Descent, derivatives: Derivatives, taped: Tensor, batch: Batch) -> None:
        self._optimizer, self._taped, self._following = optimizer, taped, taped.clone()
        self.inner = derivatives.linearize(optimizer.params(taped), batch)
        # a search must decide as it did before, to the last bit, so it gets the same numbers from the same call
        searches = optimizer.step_size.needs_loss
        evaluation = (
            optimizer.evaluate(derivatives, taped, batch) if searches else Evaluation(None, self.inner.gradient)
        )
        line = optimizer.line_(derivatives, self._following, batch, optimizer.params(taped), evaluation)
        self._gradient, self._direction = line.gradient, line.direction
        self._step_size = optimizer.step_size.linearize(line)
        optimizer.finish_(self._following, line.direction, self._step_size.value)

    def advance_(self, state: Tensor) -> None:
        """See `LinearStep`."""
        state.copy_(self._following)

    def pull_back_(self, cotangent: Tensor, to_hyper: Tensor | None, *, to_state: bool = True) -> None:
        """See `LinearStep`."""
        by_params = self._optimizer.params(cotangent)
        by_step_size = dot(by_params, self._direction)
        to = Cotangents(by_params, torch.zeros_like(by_params), by_params * self._step_size.value)
        self._step_size.pull_back_(by_step_size, to, to_hyper)
        self._optimizer.direction_adjoint_(cotangent, self._taped, self._following, self._gradient, to)
        self.inner.add_products(to.gradient, by_params if to_state else None, to_hyper)


@dataclass(frozen=True, config=COMPOSED)
class GradientDescent(Descent):
    """w_t = w_{t−1} − α_t g_t, α_t by a policy: `GradientDescent(Exact())` is Cauchy's steepest descent.

    With `Fixed(η)` it is `SGD(η)`, which costs a little less. State: slot 0 is w; with a schedule, the first entry of
    slot 1 is the number of steps done.
    """

    step_size: StepSize

    @property
    def slots(self) -> int:
        """1, or 2 with a schedule."""
        return 2 if self.counts else 1

    def direction_(self, state: Tensor, gradient: Tensor) -> Tensor:
        """−g_t; there is no memory."""
        return -gradient

    def direction_adjoint_(
        self, cotangent: Tensor, taped: Tensor, following: Tensor, gradient: Tensor, to: Cotangents
    ) -> None:
        """See `Descent`."""
        to.gradient.sub_(to.direction)
