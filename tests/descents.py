"""One step of a descent written plainly for one seed: dense inverse Hessians, decisions in Python numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case
from reference import setting
from torch import Tensor

from bilevel.optimizers import LBFGS, Armijo, Descent, Exact, Fixed, StrongWolfe


@dataclass(frozen=True)
class Decision:
    """What a step chose at a point: whether the new pair is kept, and a step size found by trials."""

    keep: bool
    trial: float | None


def slack(value: float) -> float:
    return value + 10 * torch.finfo(torch.float64).eps * abs(value)


def armijo(policy: Armijo, loss: Callable[[float], float], slope: float) -> float:
    for k in range(policy.limit):
        size = policy.initial * policy.shrink**k
        if loss(size) <= slack(loss(0)) + policy.slope * size * slope:
            return size
    return 0.0


def wolfe(policy: StrongWolfe, loss: Callable[[float], float], slope: Callable[[float], float]) -> float:
    """The interval [low, low + width] of the search, width None as long as nothing was too long."""
    low, width, steepest = 0.0, None, policy.curvature * abs(slope(0))
    size = policy.initial
    for _ in range(policy.limit):
        below = loss(size) <= slack(loss(0)) + policy.slope * size * slope(0)
        if below and abs(slope(size)) <= steepest:
            return size
        if not below or slope(size) > 0:
            width = size - low
        else:
            width = None if width is None else width - (size - low)
            low = size
        size = 2 * size if width is None else low + width / 2
    return low


class DescentRun:
    """A case of one seed with a descent; a state is the list of slots as one vector."""

    def __init__(self, case: Case, optimizer: Descent) -> None:
        self.case, self.optimizer, self.size = case, optimizer, case.params.numel()
        self.states = [torch.cat([case.params, case.params.new_zeros((optimizer.slots - 1) * self.size)])]
        self.decisions: list[Decision] = []
        for t in range(len(case.batches)):
            self.decisions.append(self.decide(t))
            self.states.append(self.step(t, self.states[-1], case.hyper))

    def step(self, t: int, state: Tensor, hyper: Tensor) -> Tensor:
        slots = state.view(-1, self.size)
        w, gradient = slots[0], self.gradient(t, slots[0], hyper)
        memory, direction = self.direction(slots, gradient, self.decisions[t].keep)
        moved = w + self.step_size(t, w, gradient, direction, hyper) * direction
        count = [slots[-1] + torch.eye(1, self.size, dtype=state.dtype)[0]] if self.optimizer.counts else []
        return torch.cat([moved, *memory, *count])

    def loss(self, t: int, w: Tensor, hyper: Tensor) -> Tensor:
        return self.case.whole_inner_loss(w, hyper, self.case.batches[t])

    def gradient(self, t: int, w: Tensor, hyper: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.loss(t, x, hyper))(w)

    def direction(self, slots: Tensor, gradient: Tensor, keep: bool) -> tuple[list[Tensor], Tensor]:
        if not isinstance(self.optimizer, LBFGS):
            return [], -gradient
        m = self.optimizer.memory
        steps, changes = list(slots[3 : 3 + m]), list(slots[3 + m : 3 + 2 * m])
        if keep:
            steps = [slots[0] - slots[1], *steps[:-1]]
            changes = [gradient - slots[2], *changes[:-1]]
        inverse = dense_inverse([(s, y) for s, y in zip(steps, changes, strict=True) if bool((s.detach() != 0).any())])
        direction = -gradient if inverse is None else -(inverse @ gradient)
        return [slots[0], gradient, *steps, *changes], direction

    def step_size(self, t: int, w: Tensor, gradient: Tensor, direction: Tensor, hyper: Tensor) -> Any:
        policy = self.optimizer.step_size
        if isinstance(policy, Fixed):
            return setting(policy.learning_rate, hyper, t + 1)
        if isinstance(policy, Exact):
            change = self.gradient(t, w + direction, hyper) - gradient
            return -(gradient @ direction) / (direction @ change)
        return self.decisions[t].trial

    def decide(self, t: int) -> Decision:
        hyper, slots, policy = self.case.hyper, self.states[t].view(-1, self.size), self.optimizer.step_size
        w, gradient = slots[0], self.gradient(t, slots[0], hyper)
        keep = False
        if isinstance(self.optimizer, LBFGS):
            s, y = w - slots[1], gradient - slots[2]
            tiny = torch.finfo(s.dtype).eps ** 0.5
            keep = bool(slots[-1][0] > 0) and float(s @ y) > tiny * float(s.norm() * y.norm())
        _, direction = self.direction(slots, gradient, keep)

        def loss(size: float) -> float:
            return float(self.loss(t, w + size * direction, hyper))

        def slope(size: float) -> float:
            return float(self.gradient(t, w + size * direction, hyper) @ direction)

        if isinstance(policy, Armijo):
            return Decision(keep, armijo(policy, loss, slope(0)))
        if isinstance(policy, StrongWolfe):
            return Decision(keep, wolfe(policy, loss, slope))
        return Decision(keep, None)

    def outer(self, hyper: Tensor, steps: int | None = None) -> Tensor:
        """The outer loss after all steps, the last `steps` of which see `hyper`, with the decisions taken."""
        total = len(self.case.batches)
        first = 0 if steps is None else max(total - steps, 0)
        state = self.states[first]
        for t in range(first, total):
            state = self.step(t, state, hyper)
        return self.case.problem.outer_loss(state[: self.size], hyper, self.case.outer_batch)


def dense_inverse(pairs: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """H from pairs, newest first, by the update of the matrix itself."""
    if not pairs:
        return None
    s, y = pairs[0]
    identity = torch.eye(s.numel(), dtype=s.dtype)
    inverse = (s @ y) / (y @ y) * identity
    for s, y in reversed(pairs):
        factor = identity - torch.outer(y, s) / (s @ y)
        inverse = factor.T @ inverse @ factor + torch.outer(s, s) / (s @ y)
    return inverse
