"""What every method is defined to return, from dense Jacobians of the inner step; slow, plain, independent."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from cases import Case
from torch import Tensor
from torch.autograd.functional import jacobian

from bilevel.optimizers import LSTM, SGD, Adam, Clipped, Cosine, Learned, Momentum, Optimizer


def setting(value: float | Learned | Cosine, hyper: Tensor, t: int) -> Any:
    """The value of a setting at step t = 1, 2, …"""
    if isinstance(value, Cosine):
        share = min((t - 1) // value.every * value.every, value.steps) / value.steps
        return value.last + (value.first - value.last) * (1 + math.cos(math.pi * share)) / 2
    if not isinstance(value, Learned):
        return value
    scale = {"log": torch.exp, "logit": torch.sigmoid, "linear": lambda x: x}[value.scale]
    step = min(t - 1, value.steps - 1)
    if value.sizes is None:
        return scale(hyper[value.start + step])
    entries = hyper[value.start :].view(-1)[step * len(value.sizes) :]
    return torch.stack([scale(entries[group]) for group, size in enumerate(value.sizes) for _ in range(size)])


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


def clipped(optimizer: Clipped, t: int, slots: Tensor, gradient: Tensor, hyper: Tensor) -> list[Tensor]:
    length = gradient.norm()
    cut = gradient * optimizer.norm / length if length > optimizer.norm else gradient
    return STEPS[type(optimizer.optimizer)](optimizer.optimizer, t, slots, cut, hyper)


def lstm(optimizer: LSTM, t: int, slots: Tensor, gradient: Tensor, hyper: Tensor) -> list[Tensor]:
    """One step with torch's own cell, a row a coordinate."""
    u, weights = optimizer.units, optimizer.weights.split(hyper[optimizer.start :][: optimizer.size])
    order = [*range(2 * u), *range(3 * u, 4 * u), *range(2 * u, 3 * u)]  # torch has the output gate last
    if optimizer.preprocessing == "none":
        values = gradient[:, None]
    else:
        bound = torch.exp(torch.tensor(-10.0, dtype=gradient.dtype))
        large = gradient.abs() >= bound
        first = torch.where(large, gradient.abs().clamp(min=bound).log() / 10, -1.0)
        values = torch.stack([first, torch.where(large, gradient.sign(), gradient / bound)], -1)
    after = []
    for layer in (1, 2):
        w, v, b = (weights[f"{name}{layer}"][order] for name in ("input", "recurrent", "bias"))
        before = slots[1 + 2 * u * (layer - 1) :][: 2 * u].T
        h, c = torch.lstm_cell(values, (before[:, :u], before[:, u:]), w, v, b)
        values = h
        after += [h.T, c.T]
    change = values @ weights["output"][0] + weights["output_bias"]
    return list(torch.cat([(slots[0] + optimizer.scale * change)[None], *after]))


STEPS: dict[type, Callable[..., list[Tensor]]] = {
    SGD: sgd,
    Momentum: momentum,
    Adam: adam,
    Clipped: clipped,
    LSTM: lstm,
}


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
        gradient = torch.func.grad(self.case.whole_inner_loss)(state[: self.size], hyper, self.case.batches[t - 1])
        return self.update(t, state, gradient, hyper)

    def update(self, t: int, state: Tensor, gradient: Tensor, hyper: Tensor) -> Tensor:
        """The optimizer's part of a step."""
        slots = state.view(-1, self.size)
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
            return jacobian(lambda s: self.step(t, s, self.case.hyper), at, vectorize=True)
        if t not in self._a:
            self._a[t] = self.a(t, self.states[t - 1])
        return self._a[t]

    def b(self, t: int, at: Tensor | None = None) -> Tensor:
        """∂s_t/∂λ."""
        if at is not None:
            return jacobian(lambda h: self.step(t, at, h), self.case.hyper, vectorize=True)
        if t not in self._b:
            self._b[t] = self.b(t, self.states[t - 1])
        return self._b[t]

    def outer_by_state(self, t: int) -> Tensor:
        def loss(state: Tensor) -> Tensor:
            return self.case.problem.outer_loss(state[: self.size], self.case.hyper, self.case.outer_batch)

        return jacobian(loss, self.states[t])

    @cached_property
    def loss(self) -> Tensor:
        """`outer` at the case's own hyperparameters."""
        return self.outer(self.case.hyper)

    @cached_property
    def total(self) -> Tensor:
        """Its whole derivative by them."""
        return jacobian(self.outer, self.case.hyper)

    def direct(self) -> Tensor:
        w = self.states[-1][: self.size]
        return jacobian(
            lambda h: self.case.problem.outer_loss(w, h, self.case.outer_batch) + 0 * h.sum(), self.case.hyper
        )

    def inner_matrices(self, t: int) -> tuple[Tensor, Tensor]:
        """∂²L₁/∂w∂w (P, P) and ∂²L₁/∂w∂λ (P, H) at w_t on the batch of step t."""
        at = self.states[t][: self.size], self.case.hyper, self.case.batches[t - 1]
        by_params = torch.func.grad(self.case.whole_inner_loss)
        return torch.func.jacrev(by_params)(*at), torch.func.jacrev(by_params, argnums=1)(*at)

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
    return ref.total


def checkpointed(ref: Reference, **_: Any) -> Tensor:
    return unrolled(ref)


def truncated(ref: Reference, steps: int = 1) -> Tensor:
    return reverse(ref, max(1, ref.steps - steps + 1), lambda t: None)


def drmad(ref: Reference) -> Tensor:
    first, last, steps = ref.states[0], ref.states[-1], ref.steps
    return reverse(ref, 1, lambda t: (1 - (t - 1) / steps) * first + (t - 1) / steps * last)


def neumann(ref: Reference, terms: int, last_steps: int = 1, step_size: float | None = None) -> Tensor:
    if step_size is not None:
        return neumann_of_descent(ref, terms, last_steps, step_size)
    count = min(last_steps, ref.steps)
    total = torch.zeros_like(ref.case.hyper)
    for t in range(ref.steps - count + 1, ref.steps + 1):
        powers = [ref.outer_by_state(t)]
        for _ in range(terms):
            powers.append(powers[-1] @ ref.a(t))
        total = total + sum(powers) @ ref.b(t)
    return ref.direct() + (total / count if count else 0)


def neumann_of_descent(ref: Reference, terms: int, last_steps: int, step_size: float) -> Tensor:
    total = torch.zeros_like(ref.case.hyper)
    kept = range(max(1, ref.steps - last_steps + 1), ref.steps + 1)
    for t in kept:
        hessian, mixed = ref.inner_matrices(t)
        shrink = torch.eye(ref.size, dtype=hessian.dtype) - step_size * hessian
        series = sum(torch.linalg.matrix_power(shrink, j) for j in range(terms + 1))
        total = total - step_size * ref.outer_by_state(t)[: ref.size] @ series @ mixed
    return ref.direct() + total / max(1, len(kept))


def forward(ref: Reference) -> Tensor:
    columns = torch.zeros(ref.states[0].numel(), ref.case.hyper.numel(), dtype=ref.case.hyper.dtype)
    for t in range(1, ref.steps + 1):
        columns = ref.a(t) @ columns + ref.b(t)
    return ref.direct() + ref.outer_by_state(ref.steps) @ columns


def central_difference(ref: Reference, epsilon: float) -> Tensor:
    units = epsilon * torch.eye(ref.case.hyper.numel(), dtype=ref.case.hyper.dtype)
    differences = [ref.outer(ref.case.hyper + unit) - ref.outer(ref.case.hyper - unit) for unit in units]
    return torch.stack(differences) / (2 * epsilon) if ref.steps else ref.direct()


def complex_step(ref: Reference) -> Tensor:
    return unrolled(ref)


def darts(ref: Reference, epsilon: float) -> Tensor:
    if not ref.steps:
        return ref.direct()
    before, hyper, batch = ref.states[-2], ref.case.hyper, ref.case.batches[-1]
    w = before[: ref.size]
    gradient = torch.func.grad(ref.case.whole_inner_loss)(w, hyper, batch)
    by_state = ref.outer_by_state(ref.steps)
    vector = by_state @ jacobian(lambda g: ref.update(ref.steps, before, g, hyper), gradient)
    settings = by_state @ jacobian(lambda h: ref.update(ref.steps, before, gradient, h) + 0 * h.sum(), hyper)
    shift = epsilon * vector / vector.norm()
    above, below = (torch.func.grad(ref.case.whole_inner_loss, 1)(at, hyper, batch) for at in (w + shift, w - shift))
    return ref.direct() + settings + (above - below) * vector.norm() / (2 * epsilon)


def implicit(ref: Reference, inverse: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """∂L₂/∂λ − inverse(H, ∂L₂/∂w) M at w_T on the last batch."""
    if not ref.steps:
        return ref.direct()
    hessian, mixed = ref.inner_matrices(ref.steps)
    return ref.direct() - inverse(hessian, ref.outer_by_state(ref.steps)[: ref.size]) @ mixed


def conjugate_gradient(ref: Reference, iterations: int, tolerance: float, damping: float) -> Tensor:
    assert tolerance == 0

    def inverse(hessian: Tensor, right: Tensor) -> Tensor:
        # the iterate of k steps is the solution within the Krylov space of dimension k
        matrix = hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype)
        assert torch.linalg.eigvalsh(matrix).min() > 0  # otherwise the method stops early
        vectors = [right / right.norm()]
        for _ in range(iterations - 1):
            following = matrix @ vectors[-1]
            for _ in range(2):  # orthogonalized twice, against rounding
                for vector in vectors:
                    following = following - (vector @ following) * vector
            vectors.append(following / following.norm())
        basis = torch.stack(vectors, dim=1)
        return basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ right)

    return implicit(ref, inverse)


def nystrom(ref: Reference, rank: int, damping: float, seed: int = 0) -> Tensor:
    def inverse(hessian: Tensor, right: Tensor) -> Tensor:
        chosen = torch.randperm(ref.size, generator=torch.Generator().manual_seed(seed))[:rank]
        block = hessian[:, chosen]
        approximate = block @ torch.linalg.pinv(block[chosen], hermitian=True, rtol=1e-9) @ block.T
        return torch.linalg.solve(approximate + damping * torch.eye(ref.size, dtype=hessian.dtype), right)

    return implicit(ref, inverse)


def hyperdistill(ref: Reference, gamma: float, theta: float) -> Tensor:
    if not ref.steps:
        return ref.direct()
    direction = distilled_direction(ref, ref.steps, gamma)
    scale = theta * direction.norm() * sum(gamma**j for j in range(ref.steps))
    return ref.direct() + scale * direction / direction.norm()


def distilled_direction(ref: Reference, horizon: int, gamma: float) -> Tensor:
    """∂L₂/∂w_T · ∂s_T/∂λ at the average of the parameters before the last `horizon` steps."""
    weights = [gamma ** (horizon - 1 - i) for i in range(horizon)]
    params = [state[: ref.size] for state in ref.states[ref.steps - horizon : ref.steps]]
    average = sum(weight * w for weight, w in zip(weights, params, strict=True)) / sum(weights)
    point = torch.cat([average, ref.states[-2][ref.size :]])
    return ref.outer_by_state(ref.steps) @ ref.b(ref.steps, point)


def fitted_theta(ref: Reference, gamma: float) -> Tensor:
    xs, ys = [], []
    for horizon in range(1, ref.steps + 1):
        direction = distilled_direction(ref, horizon, gamma)
        second_order = truncated(ref, horizon) - ref.direct()
        xs.append(direction.norm() * sum(gamma**j for j in range(horizon)))
        ys.append(second_order @ direction / direction.norm())
    return torch.linalg.lstsq(torch.stack(xs)[:, None], torch.stack(ys)[:, None]).solution.squeeze()


def aggregated(ref: Reference, gamma: float) -> Tensor:
    total = ref.direct()
    for t in range(1, ref.steps + 1):
        total = total + gamma ** (ref.steps - t) * (ref.outer_by_state(t) @ ref.b(t))
    return total


def first_order(ref: Reference) -> Tensor:
    return ref.direct()


def none(ref: Reference) -> Tensor:
    return torch.zeros_like(ref.case.hyper) if ref.steps else ref.direct()
