"""The reverse sweep that exact and truncated reverse mode and DrMAD share; not a method itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import cotangent_of
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


def train(
    derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batches: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    """Inner steps over all batches; returns the last state and the tape: (T, S, tape_slots, P), before each step."""
    state = state.clone()
    taped = state.narrow(-2, 0, optimizer.tape_slots)
    tape = taped.new_empty(len(batches), *taped.shape)
    for index, batch in enumerate(batches):
        tape[index] = taped
        optimizer.advance_(derivatives, state, batch)
    derivatives.cost.hold(len(batches))
    return state, tape


def reverse_sweep(
    derivatives: Derivatives,
    optimizer: Optimizer,
    state: Tensor,
    tape: Sequence[Tensor] | Tensor,
    batches: Sequence[Batch],
    outer: OuterGradient,
) -> Tensor:
    """∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T over the steps in `batches`, last to first.

    tape[t]: the leading slots of the state (S, tape_slots or more, P) at which the Jacobians of step t are taken.
    Returns (S, H).
    """
    hypergradient = outer.hyper.clone()
    cotangent = cotangent_of(optimizer, state, outer.params)
    for index in reversed(range(len(batches))):
        step = optimizer.linearize(derivatives, tape[index], batches[index])
        # nothing comes before the first step: its A is not needed
        step.pull_back_(cotangent, hypergradient, to_state=index > 0)
    return hypergradient
