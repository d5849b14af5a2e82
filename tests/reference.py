"""What every method is defined to return, from dense Jacobians of the inner step; slow, plain, independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from torch import Tensor
from torch.autograd.functional import jacobian

from bilevel.optimizers import SGD, Momentum, Optimizer


class Reference:
    """One case of one seed with one optimizer; a state is the concatenation of its slots."""

    def __init__(self, case: Case, optimizer: Optimizer) -> None:
        self.case, self.optimizer, self.size = case, optimizer, case.params.numel()
        self.states = [torch.cat([case.params] + [torch.zeros_like(case.params)] * (optimizer.slots - 1))]
        self._a: dict[int, Tensor] = {}
        self._b: dict[int, Tensor] = {}
        for batch in case.batches:
            self.states.append(self.step(self.states[-1], case.hyper, batch).detach())

    def step(self, state: Tensor, hyper: Tensor, batch: Any) -> Tensor:
        w = state[: self.size]
        loss = self.case.whole_inner_loss
        gradient = torch.func.grad(loss)(w, hyper, batch) + self.optimizer.weight_decay * w
        if isinstance(self.optimizer, SGD):
            return w - self.optimizer.learning_rate * gradient
        assert isinstance(self.optimizer, Momentum)
        velocity = self.optimizer.momentum * state[self.size :] + gradient
        return torch.cat([w - self.optimizer.learning_rate * velocity, velocity])

    def trained(self, hyper: Tensor) -> Tensor:
        state = self.states[0]
        for batch in self.case.batches:
            state = self.step(state, hyper, batch)
        return state[: self.size]

    def outer(self, hyper: Tensor) -> Tensor:
        return self.case.problem.outer_loss(self.trained(hyper), hyper, self.case.outer_batch)

    def a(self, t: int, at: Tensor | None = None) -> Tensor:
        """∂s_t/∂s_{t−1}, t = 1 … T."""
        if at is not None:
            return jacobian(lambda s: self.step(s, self.case.hyper, self.case.batches[t - 1]), at)
        if t not in self._a:
            self._a[t] = self.a(t, self.states[t - 1])
        return self._a[t]

    def b(self, t: int, at: Tensor | None = None) -> Tensor:
        """∂s_t/∂λ."""
        if at is not None:
            return jacobian(lambda h: self.step(at, h, self.case.batches[t - 1]), self.case.hyper)
        if t not in self._b:
            self._b[t] = self.b(t, self.states[t - 1])
        return self._b[t]

    def outer_by_state(self, t: int) -> Tensor:
        def loss(state: Tensor) -> Tensor:
            return self.case.problem.outer_loss(state[: self.size], self.case.hyper, self.case.outer_batch)

        return jacobian(loss, self.states[t])

    def direct(self) -> Tensor:
        w = self.states[-1][: self.size]
        return jacobian(
            lambda h: self.case.problem.outer_loss(w, h, self.case.outer_batch) + 0 * h.sum(), self.case.hyper
        )

    @property
    def steps(self) -> int:
        return len(self.case.batches)


def reverse(ref: Reference, first: int, point: Callable[[int], Tensor | None]) -> Tensor:
    total, cotangent = ref.direct(), ref.outer_by_state(ref.steps)
    for t in range(ref.steps, first - 1, -1):
        total = total + cotangent @ ref.b(t, point(t))
        cotangent = cotangent @ ref.a(t, point(t))
    return total


def unrolled(ref: Reference) -> Tensor:
    return jacobian(ref.outer, ref.case.hyper)


def truncated(ref: Reference, steps: int = 1) -> Tensor:
    return reverse(ref, max(1, ref.steps - steps + 1), lambda t: None)


def drmad(ref: Reference) -> Tensor:
    first, last, steps = ref.states[0], ref.states[-1], ref.steps
    return reverse(ref, 1, lambda t: (1 - (t - 1) / steps) * first + (t - 1) / steps * last)


def neumann(ref: Reference, terms: int, last_steps: int = 1) -> Tensor:
    count = min(last_steps, ref.steps)
    total = torch.zeros_like(ref.case.hyper)
    for t in range(ref.steps - count + 1, ref.steps + 1):
        powers = [ref.outer_by_state(t)]
        for _ in range(terms):
            powers.append(powers[-1] @ ref.a(t))
        total = total + sum(powers) @ ref.b(t)
    return ref.direct() + (total / count if count else 0)


def aggregated(ref: Reference, gamma: float) -> Tensor:
    total = ref.direct()
    for t in range(1, ref.steps + 1):
        total = total + gamma ** (ref.steps - t) * (ref.outer_by_state(t) @ ref.b(t))
    return total


def none(ref: Reference) -> Tensor:
    return torch.zeros_like(ref.case.hyper) if ref.steps else ref.direct()
