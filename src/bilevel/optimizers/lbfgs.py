"""L-BFGS, with its adjoint in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.descent import COMPOSED, Descent
from bilevel.optimizers.line_search import Cotangents, StepSize, dot, norm
from bilevel.settings import Count


@dataclass(frozen=True, config=COMPOSED)
class LBFGS(Descent):
    """w_t = w_{t−1} + α_t d_t,  d_t = −H_t g_t, with H_t from the last m pairs by the two-loop recursion.

    A step first makes the pair s = w_{t−1} − w_{t−2}, y = g_t − g_{t−1}, of gradients as they were evaluated, each on
    the batch of its own step: the secant pair of one function where the batches are the same, and where they are not, y
    contains the difference between two batches' gradients too. A pair is left out where s·y ≤ √ε |s| |y|, ε being the
    rounding unit, so that H_t is positive definite. With ρ_i = 1 / s_i·y_i, and H_t^0 = (s·y / y·y) I of the newest
    pair, H_t applies V_iᵀ … V_i + ρ_i s_i s_iᵀ, V_i = I − ρ_i y_i s_iᵀ, from the oldest pair to the newest. Without a
    pair, as in the first step, H_t = I.

    memory: m.

    State: slots 0, 1, 2 are w_t, w_{t−1}, g_t; then m slots of s and m of y, newest first; the first entry of the last
    is the number of steps done. All seeds keep their own pairs.

    Adjoint: H_t is symmetric, so dL/dg_t = H_t u with u = −dL/dd_t, by the same recursion. When it comes to pair i, let
    q_i be the running vector of its first loop and r_i that of its second, a_i = ρ_i s_i·q_i, b_i = ρ_i y_i·r_i,
    c_i = a_i − b_i, and let a prime mark what the recursion on u has in their places. The pairs get
    dL/ds_i = c_i q'_i + c'_i q_i + σ_i y_i and dL/dy_i = −a'_i r_i − a_i r'_i + σ_i s_i, where
    σ_i = a'_i b_i + a_i b'_i − a_i a'_i is what 1/ρ_i = s_i·y_i gets; the scale of H_t^0 gets the product of the two
    vectors between the loops.

    Source: Nocedal 1980; Nocedal and Wright 2006, algorithms 7.4 and 7.5; deck 001.
    """

    step_size: StepSize
    memory: Count = 10

    @property
    def slots(self) -> int:
        """4 + 2 m."""
        return 4 + 2 * self.memory

    @property
    def counts(self) -> bool:
        """Always: the first step has no pair."""
        return True

    def direction_(self, state: Tensor, gradient: Tensor) -> Tensor:
        """−H_t g_t."""
        steps, changes = self._pairs(state)
        accepted = self._accepted(state, gradient)
        _push_(steps, state[..., 0, :] - state[..., 1, :], accepted)
        _push_(changes, gradient - state[..., 2, :], accepted)
        state[..., 1, :] = state[..., 0, :]
        state[..., 2, :] = gradient
        return InverseHessian(steps, changes).times(gradient).product.neg_()

    def direction_adjoint_(
        self, cotangent: Tensor, taped: Tensor, following: Tensor, gradient: Tensor, to: Cotangents
    ) -> None:
        """See the class."""
        inverse = InverseHessian(*self._pairs(following))
        by_steps, by_changes = self._pairs(cotangent)
        to.gradient.add_(inverse.pull_back_(gradient, -to.direction, by_steps, by_changes))

        accepted = self._accepted(taped, gradient)
        by_step, by_change = _take_(by_steps, accepted), _take_(by_changes, accepted)
        to.params.add_(cotangent[..., 1, :]).add_(by_step)
        to.gradient.add_(cotangent[..., 2, :]).add_(by_change)
        cotangent[..., 1, :] = -by_step
        cotangent[..., 2, :] = -by_change

    def _pairs(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state.narrow(-2, 3, self.memory), state.narrow(-2, 3 + self.memory, self.memory)

    def _accepted(self, before: Tensor, gradient: Tensor) -> Tensor:
        """Whether the pair that g_t makes with s_{t−1} is kept, (S, 1)."""
        step, change = before[..., 0, :] - before[..., 1, :], gradient - before[..., 2, :]
        curved: Tensor = dot(step, change) > torch.finfo(step.dtype).eps ** 0.5 * norm(step) * norm(change)
        follows: Tensor = before[..., self.slots - 1, :1] > 0
        return follows & curved


class InverseHessian:
    """H from pairs s, y (S, m, P), newest first; what is no pair, such as zeros, is passed over."""

    def __init__(self, steps: Tensor, changes: Tensor) -> None:
        self._steps, self._changes = steps, changes
        curvature = dot(steps, changes)
        self._rho = torch.where(curvature > 0, 1 / curvature, 0.0)
        self._newest = curvature[..., 0, :] > 0
        self._length = torch.where(self._newest, dot(changes[..., 0, :], changes[..., 0, :]), 1.0)
        self._scale = torch.where(self._newest, curvature[..., 0, :] / self._length, 1.0)

    def times(self, vector: Tensor) -> TwoLoops:
        """H v by the two loops, for v (S, P), with what they pass through."""
        running, pairs = vector.clone(), range(self._steps.shape[-2])
        first, second = torch.zeros_like(self._rho), torch.zeros_like(self._rho)
        for i in pairs:
            first[..., i, :] = self._rho[..., i, :] * dot(self._steps[..., i, :], running)
            running.addcmul_(self._changes[..., i, :], -first[..., i, :])
        middle, running = running, running * self._scale
        for i in reversed(pairs):
            second[..., i, :] = self._rho[..., i, :] * dot(self._changes[..., i, :], running)
            running.addcmul_(self._steps[..., i, :], first[..., i, :] - second[..., i, :])
        return TwoLoops(running, middle, first, second)

    def pull_back_(self, vector: Tensor, cotangent: Tensor, to_steps: Tensor, to_changes: Tensor) -> Tensor:
        """H u for u = `cotangent` = dL/d(H v); dL/ds and dL/dy are added to `to_steps` and `to_changes` (S, m, P)."""
        forward, backward = self.times(vector), self.times(cotangent)
        a, b, a_, b_ = forward.first, forward.second, backward.first, backward.second
        c, c_, scale = a - b, a_ - b_, self._scale.unsqueeze(-1)
        by_curvature = a_ * b + a * b_ - a * a_
        by_scale = torch.where(self._newest, dot(forward.middle, backward.middle) / self._length, 0.0)
        by_curvature[..., 0, :] += by_scale
        # q_i and r_i are sums of v and of pairs, whose coefficients are the products: they need not be kept
        ends = torch.stack([vector, cotangent], dim=-2)
        earlier = (c @ a_.mT + c_ @ a.mT).tril(-1)
        later = (a_ @ c.mT + a @ c_.mT).triu(1)
        every = scale * (a_ @ a.mT + a @ a_.mT)
        every[..., 0, :1] -= 2 * by_scale * self._scale
        diagonal = torch.diag_embed(by_curvature.squeeze(-1))
        to_steps.baddbmm_(torch.cat([c_, c], dim=-1), ends).baddbmm_(diagonal - earlier, self._changes)
        to_changes.baddbmm_(-scale * torch.cat([a_, a], dim=-1), ends)
        to_changes.baddbmm_(every, self._changes).baddbmm_(diagonal - later, self._steps)
        return backward.product


class TwoLoops(NamedTuple):
    """H v (S, P), the vector between the loops (S, P), and their products a and b with the pairs (S, m, 1)."""

    product: Tensor
    middle: Tensor
    first: Tensor
    second: Tensor


def _push_(stack: Tensor, newest: Tensor, accepted: Tensor) -> None:
    """Put `newest` (S, P) before the others in (S, m, P), the oldest drops out; only for seeds that accept."""
    for i in reversed(range(stack.shape[-2])):
        slot, incoming = stack[..., i, :], newest if i == 0 else stack[..., i - 1, :]
        torch.where(accepted, incoming, slot, out=slot)


def _take_(stack: Tensor, accepted: Tensor) -> Tensor:
    """Adjoint of `_push_`: returns what belongs to `newest`."""
    newest = torch.where(accepted, stack[..., 0, :], 0.0)
    last = stack.shape[-2] - 1
    for i in range(last):
        slot = stack[..., i, :]
        torch.where(accepted, stack[..., i + 1, :], slot, out=slot)
    stack[..., last, :].masked_fill_(accepted, 0.0)
    return newest
