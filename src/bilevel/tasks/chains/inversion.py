"""Chains forwards and backwards, in floating-point and fixed-point numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.optimizers import LBFGS, Fixed, Optimizer
from bilevel.optimizers.lbfgs import InverseHessian
from bilevel.problem import Batch, Problem
from bilevel.reversible_dynamics import ReversibleChain

ITERATIONS = 8


def forward_chain(
    problem: Problem, optimizer: Optimizer, state: Tensor, hyper: Tensor, batches: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    """w_0 … w_T, (T + 1, S, P), and the last state, in the floating-point type of `state` (S, slots, P)."""
    derivatives, state = Derivatives(problem, hyper), state.clone()
    chain = [optimizer.params(state).clone()]
    with torch.enable_grad():
        for batch in batches:
            optimizer.advance_(derivatives, state, batch)
            chain.append(optimizer.params(state).clone())
    return torch.stack(chain), state


def fixed_point_chain(
    problem: Problem, optimizer: Optimizer, state: Tensor, hyper: Tensor, batches: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    """The same in fixed-point numbers; momentum and Adam only."""
    derivatives, fixed = Derivatives(problem, hyper), ReversibleChain(optimizer, hyper, state)
    chain = [fixed.params()]
    with torch.enable_grad():
        for batch in batches:
            fixed.advance_(chain[-1], derivatives.linearize(chain[-1], batch).gradient)
            chain.append(fixed.params())
    return torch.stack(chain), fixed.state()


def invert_lbfgs(problem: Problem, optimizer: LBFGS, last: Tensor, hyper: Tensor, batches: Sequence[Batch]) -> Tensor:
    """w̃_0 … w̃_T, (T + 1, S, P), backwards from what the last state (S, slots, P) of L-BFGS holds.

    A step forgets its oldest pair, so that it has no closed inverse. The last state holds w_T, w_{T−1} and, as
    w_{k−1} = w_k − s_k, one more of the iterates before for each of its m pairs: these are exact up to rounding (a pair
    that was left out for want of curvature leaves a gap). Further back the pairs that a step used are gone. There
    w_{t−1} = w_t + α H ∂L₁/∂w(w_{t−1}) is solved by fixed-point iteration from w_t with the H of the pairs that are
    left, those of the last state; of its iterates, the one that is nearest to solving it is taken.

    Raises ValueError for a policy other than a fixed step size that is a number.
    """
    policy = optimizer.step_size
    if not isinstance(policy, Fixed) or not isinstance(policy.learning_rate, float):
        raise ValueError(f"invert_lbfgs: expected a fixed step size that is a number, got {policy}")
    derivatives, steps = Derivatives(problem, hyper), len(batches)
    pairs, changes = (last.narrow(-2, start, optimizer.memory) for start in (3, 3 + optimizer.memory))
    inverse = InverseHessian(pairs, changes)
    chain = [last[..., 0, :], last[..., 1, :]][: steps + 1]
    for step in pairs.unbind(-2)[: max(0, steps - 1)]:
        chain.append(chain[-1] - step)
    with torch.enable_grad():
        for index in reversed(range(steps + 1 - len(chain))):
            chain.append(_before(derivatives, inverse, policy.learning_rate, chain[-1], batches[index]))
    return torch.stack(chain[::-1])


def _before(derivatives: Derivatives, inverse: InverseHessian, rate: float, following: Tensor, batch: Batch) -> Tensor:
    """w with w − α H ∂L₁/∂w(w) = `following` (S, P), as nearly as a few iterations find it, for each seed."""
    current = best = following
    least = following.new_full((*following.shape[:-1], 1), torch.inf)
    for _ in range(ITERATIONS):
        proposed = following + rate * inverse.times(derivatives.inner_gradient(current, batch)).product
        residual = torch.linalg.vector_norm(proposed - current, dim=-1, keepdim=True)
        nearer = residual < least
        if not bool(nearer.any()):
            break
        best = torch.where(nearer, current, best)
        least = torch.where(nearer, residual, least)
        current = proposed
    return best
