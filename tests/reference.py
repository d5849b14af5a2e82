"""What every method is defined to return, from dense Jacobians of the inner step; slow, plain, independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from torch import Tensor
from torch.autograd.functional import jacobian

from bilevel.optimizers import SGD, Adam, Learned, Momentum, Optimizer


def setting(value: float | Learned, hyper: Tensor, t: int) -> Any:
    """The value of a setting at step t = 1, 2, …"""
    if not isinstance(value, Learned):
        return value
    entry = hyper[value.start + min(t - 1, value.steps - 1)]
    return {"log": torch.exp, "logit": torch.sigmoid, "linear": lambda x: x}[value.scale](entry)


def sgd(optimizer: SGD, t: int, slots: Tensor, gradient: Tensor, hyper: Tensor) -> list[Tensor]:
    w = slots[0]
    gradient = gradient + setting(optimizer.weight_decay, hyper, t) * w
    return [w - setting(optimizer.learning_rate, hyper, t) * gradient]


def momentum(optimizer: Momentum, t: int, slots: Tensor, gradient: Tensor, hyper: Tensor) -> list[Tensor]:
    w, old = slots[0], slots[1]
    gradient = gradient + setting(optimizer.weight_decay, hyper, t) * w
    factor = setting(optimizer.momentum, hyper, t)
    velocity = factor * old + gradient
    direction = gradient + factor * velocity if optimizer.nesterov else velocity
    return [w - setting(optimizer.learning_rate, hyper, t) * direction, velocity]


def adam(optimizer: Adam, t: int, slots: Tensor, gradient: Tensor, hyper: Tensor) -> list[Tensor]:
    w, first, second = slots[:3]
    gradient = gradient + setting(optimizer.weight_decay, hyper, t) * w
    start = optimizer.bias == "first_gradient" and t == 1
    first = optimizer.beta1 * first + (1 if start else 1 - optimizer.beta1) * gradient
    second = optimizer.beta2 * second + (1 if start else 1 - optimizer.beta2) * gradient**2
    corrected = optimizer.bias == "corrected"
    mean = first / (1 - optimizer.beta1**t) if corrected else first
    square = second / (1 - optimizer.beta2**t) if corrected else second
    rate = setting(optimizer.learning_rate, hyper, t)
    return [w - rate * mean / (square.sqrt() + optimizer.epsilon), first, second]


STEPS: dict[type, Callable[..., list[Tensor]]] = {SGD: sgd, Momentum: momentum, Adam: adam}


class Reference:
    """One case of one seed with one optimizer; a state is the concatenation of its slots."""

    def __init__(self, case: Case, optimizer: Optimizer) -> None:
        self.case, self.optimizer, self.size = case, optimizer, case.params.numel()
        self.states = [torch.cat([case.params] + [torch.zeros_like(case.params)] * (optimizer.slots - 1))]
        self._a: dict[int, Tensor] = {}
        self._b: dict[int, Tensor] = {}
        for t in range(1, len(case.batches) + 1):
            self.states.append(self.step(t, self.states[-1], case.hyper).detach())

    def step(self, t: int, state: Tensor, hyper: Tensor) -> Tensor:
        """s_t from s_{t−1}, as the optimizer's class defines it."""
        slots = state.view(-1, self.size)
        w, batch, loss = slots[0], self.case.batches[t - 1], self.case.whole_inner_loss
        gradient = torch.func.grad(loss)(w, hyper, batch)
        found = STEPS[type(self.optimizer)](self.optimizer, t, slots, gradient, hyper)
        if len(found) < len(slots):  # the count of steps
            found.append(slots[-1] + torch.eye(1, self.size, dtype=state.dtype)[0])
        return torch.cat(found)

    def trained(self, hyper: Tensor) -> Tensor:
        state = self.states[0]
        for t in range(1, self.steps + 1):
            state = self.step(t, state, hyper)
        return state[: self.size]

    def outer(self, hyper: Tensor) -> Tensor:
        return self.case.problem.outer_loss(self.trained(hyper), hyper, self.case.outer_batch)

    def a(self, t: int, at: Tensor | None = None) -> Tensor:
        """∂s_t/∂s_{t−1}, t = 1 … T."""
        if at is not None:
            return jacobian(lambda s: self.step(t, s, self.case.hyper), at)
        if t not in self._a:
            self._a[t] = self.a(t, self.states[t - 1])
        return self._a[t]

    def b(self, t: int, at: Tensor | None = None) -> Tensor:
        """∂s_t/∂λ."""
        if at is not None:
            return jacobian(lambda h: self.step(t, at, h), self.case.hyper)
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
