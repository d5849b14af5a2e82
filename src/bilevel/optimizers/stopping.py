"""Stopping criteria: an optimizer that stands still once it has arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.optimizers.base import GradientOptimizer, GradientStep, LinearStep, Optimizer
from bilevel.optimizers.descent import COMPOSED, Descent, DescentStep
from bilevel.optimizers.line_search import norm
from bilevel.problem import Batch
from bilevel.settings import Positive


@dataclass(frozen=True, config=COMPOSED)
class Until(Optimizer):
    """`optimizer` until a criterion holds; from then on a step is the identity. Every seed stops on its own.

    gradient_norm: stop before the first step with |g_t| < ε, g_t on the batch of that step.
    step_norm: stop after the first step with |w_t − w_{t−1}| < ε |w_t|.

    Jacobians are those of the piece: for a seed that has stopped, A_t = I and B_t = 0; the number of steps, with which
    the trained parameters jump, is not differentiated. Once all seeds have stopped, a step evaluates nothing. The
    gradient is the one that the wrapped step evaluates anyway.

    State: that of `optimizer`, and one slot whose first entry is n ≥ 0 after n steps, and −1 − n once stopped after n.
    `steps_done` and `stopped` read it. A point between two states means nothing, so that DrMAD refuses it.

    Source: deck 001, "Общий алгоритм оптимизации" (the stopping criterion as a source of jumps).
    """

    optimizer: Optimizer
    gradient_norm: Positive | None = None
    step_norm: Positive | None = None

    @model_validator(mode="after")
    def _some_criterion(self) -> Self:
        if self.gradient_norm is None and self.step_norm is None:
            raise ValueError("a criterion is needed: gradient_norm, step_norm or both")
        return self

    @property
    def slots(self) -> int:
        """One more."""
        return self.optimizer.slots + 1

    def init(self, params: Tensor) -> Tensor:
        """See `Optimizer`."""
        wrapped = self.optimizer.init(params)
        return torch.cat([wrapped, torch.zeros_like(wrapped[..., :1, :])], dim=-2)

    def stopped(self, state: Tensor) -> Tensor:
        """Which seeds have stopped: (...) truth values from a state (..., slots, P)."""
        return self._mark(state).squeeze(-1) < 0

    def steps_done(self, state: Tensor) -> Tensor:
        """How many steps each seed has really taken: (...) integers from a state (..., slots, P)."""
        mark = self._mark(state).squeeze(-1)
        return torch.where(mark < 0, -1 - mark, mark).long()

    def advance_(self, derivatives: Derivatives, state: Tensor, batch: Batch) -> None:
        """See `Optimizer`."""
        if self.stopped(state).all():
            return
        gradient, advance_ = self._begin(derivatives, self.wrapped(state), batch)
        self.take_(state, self.active(state, gradient), advance_)

    def linearize(self, derivatives: Derivatives, taped: Tensor, batch: Batch) -> LinearStep:
        """See `Optimizer`."""
        if self.stopped(taped).all():
            return Identity()
        step = self.optimizer.linearize(derivatives, self.wrapped(taped), batch)
        return UntilStep(self, step, self.active(taped, self._gradient_of(step, derivatives, taped, batch)))

    def wrapped(self, state: Tensor) -> Tensor:
        """The wrapped optimizer's part of a state, as a view."""
        return state.narrow(-2, 0, self.optimizer.slots)

    def active(self, before: Tensor, gradient: Tensor | None) -> Tensor:
        """Which seeds take the step from s_{t−1}, (S, 1)."""
        running = self._mark(before) >= 0
        if self.gradient_norm is None or gradient is None:
            return running
        # "not below" and not "above": a gradient that is not a number does not count as arrival
        return running & ~(norm(gradient) < self.gradient_norm)

    def take_(self, state: Tensor, active: Tensor, advance_: Callable[[Tensor], None]) -> None:
        """s_{t−1} becomes s_t in place, `advance_` being the wrapped step."""
        mark = self._mark(state)
        arrived = (mark >= 0) & ~active
        if active.any():
            following = self.wrapped(state).clone()
            advance_(following)
            near = active & self._near(state, following)
            self.wrapped(state).copy_(torch.where(active.unsqueeze(-1), following, self.wrapped(state)))
            mark.add_(active)
            arrived = arrived | near
        mark.copy_(torch.where(arrived, -1 - mark, mark))

    def _begin(
        self, derivatives: Derivatives, state: Tensor, batch: Batch
    ) -> tuple[Tensor | None, Callable[[Tensor], None]]:
        """The gradient, where it is looked at, and the rest of the wrapped step, which does not evaluate it again."""
        optimizer = self.optimizer
        if isinstance(optimizer, GradientOptimizer):
            gradient = derivatives.inner_gradient(optimizer.params(state), batch)
            return gradient, lambda following: optimizer.step_(following, gradient, derivatives.hyper)
        if isinstance(optimizer, Descent):
            found = optimizer.evaluate(derivatives, state, batch)
            return found.gradient, lambda following: optimizer.advance_from_(derivatives, following, batch, found)
        needed = self.gradient_norm is not None
        seen = derivatives.inner_gradient(optimizer.params(state), batch) if needed else None
        return seen, lambda following: optimizer.advance_(derivatives, following, batch)

    def _gradient_of(self, step: LinearStep, derivatives: Derivatives, taped: Tensor, batch: Batch) -> Tensor | None:
        if self.gradient_norm is None:
            return None
        if isinstance(step, GradientStep | DescentStep):
            return step.inner.gradient
        return derivatives.inner_gradient(self.params(taped), batch)

    def _near(self, state: Tensor, following: Tensor) -> Tensor:
        before, after = self.params(state), self.params(following)
        if self.step_norm is None:
            return torch.zeros_like(before[..., :1], dtype=torch.bool)
        return norm(after - before) < self.step_norm * norm(after)

    def _mark(self, state: Tensor) -> Tensor:
        return state[..., self.slots - 1, :1]


class UntilStep(LinearStep):
    """One step of `Until`: the wrapped one for seeds that take it, the identity for others."""

    def __init__(self, optimizer: Until, step: LinearStep, active: Tensor) -> None:
        self._optimizer, self._step, self._active = optimizer, step, active

    def advance_(self, state: Tensor) -> None:
        """See `LinearStep`."""
        self._optimizer.take_(state, self._active, self._step.advance_)

    def pull_back_(self, cotangent: Tensor, to_hyper: Tensor | None, *, to_state: bool = True) -> None:
        """See `LinearStep`."""
        through = self._optimizer.wrapped(cotangent)
        pulled = through.clone()
        by_hyper = None if to_hyper is None else torch.zeros_like(to_hyper)
        self._step.pull_back_(pulled, by_hyper, to_state=to_state)
        # chosen and not multiplied by zero, since where a seed stands still its derivatives may be infinite
        through.copy_(torch.where(self._active.unsqueeze(-1), pulled, through))
        if to_hyper is not None and by_hyper is not None:
            to_hyper.add_(torch.where(self._active, by_hyper, 0.0))


class Identity(LinearStep):
    """A step that no seed takes."""

    def advance_(self, state: Tensor) -> None:
        """Nothing changes."""

    def pull_back_(self, cotangent: Tensor, to_hyper: Tensor | None, *, to_state: bool = True) -> None:
        """Nothing changes."""
