"""The reverse sweep that exact and truncated reverse mode and DrMAD share; not a method itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import Estimate, cotangent_of
from bilevel.hypergradients.tape import DiskTape
from bilevel.optimizers import GradientOptimizer, LinearStep, Optimizer
from bilevel.problem import Batch, leaves_of

KEPT_BYTES = 2**26
"""What steps may keep for their products if that is more than the tape itself."""


class Trajectory(NamedTuple):
    """What training leaves for the sweep back.

    tape: tape[t] are the leading slots of the state (S, tape_slots or more, P) at which the Jacobians of step t are
        taken; one at a time is looked at.
    steps: the steps already linearized, by index; the others are linearized anew.
    """

    tape: Sequence[Tensor] | Tensor | DiskTape
    steps: Mapping[int, LinearStep] = MappingProxyType({})


def new_tape(optimizer: Optimizer, state: Tensor, count: int) -> Tensor:
    """Room for `count` states, (count, S, tape_slots, P)."""
    taped = taped_part(optimizer, state)
    return taped.new_empty(count, *taped.shape)


def train(
    derivatives: Derivatives,
    optimizer: Optimizer,
    state: Tensor,
    batches: Sequence[Batch],
    tape: Tensor | None = None,
) -> tuple[Tensor, Trajectory]:
    """Inner steps over all batches; returns the last state and what the sweep back needs.

    tape: a `new_tape` of the caller to be used again; None for a new one.
    """
    if tape is None:
        tape = new_tape(optimizer, state, len(batches))
    derivatives.cost.hold(len(batches))
    if not _keeps_steps(derivatives, optimizer, tape, batches):
        return train_on(tape, derivatives, optimizer, state, batches), Trajectory(tape)
    state, steps = state.clone(), {}
    taped = taped_part(optimizer, state)
    for index in range(len(batches)):
        tape[index] = taped
        steps[index] = optimizer.linearize(derivatives, tape[index], batches[index])
        steps[index].advance_(state)
        steps[index].settle()
    return state, Trajectory(tape, steps)


def _keeps_steps(derivatives: Derivatives, optimizer: Optimizer, tape: Tensor, batches: Sequence[Batch]) -> bool:
    """Whether to keep every step linearized: it must hold no graph, and little besides the tape."""
    if len(batches) == 0 or not isinstance(optimizer, GradientOptimizer):
        return False
    params = optimizer.params(tape[0])
    bytes_a_step = derivatives.kept_bytes(params, batches[0])
    if bytes_a_step is None:
        return False
    if optimizer.adjoint_reads_gradient:
        bytes_a_step += params.nbytes
    first, second = (leaves_of(batches[index]) for index in (0, min(1, len(batches) - 1)))
    if len(batches) > 1 and [leaf.data_ptr() for leaf in first] != [leaf.data_ptr() for leaf in second]:
        bytes_a_step += sum(leaf.nbytes for leaf in first)  # a step holds its batch, which may be made when asked for
    return bytes_a_step * len(batches) <= max(tape.nbytes, KEPT_BYTES)


def train_on(
    tape: Tensor | DiskTape, derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batches: Sequence[Batch]
) -> Tensor:
    """`train` on a tape of the caller; returns the last state."""
    state = state.clone()
    taped = taped_part(optimizer, state)
    for index in range(len(batches)):
        tape[index] = taped
        optimizer.advance_(derivatives, state, batches[index])
    return state


def taped_part(optimizer: Optimizer, state: Tensor) -> Tensor:
    """What a tape keeps of a state: (S, tape_slots, P), a view."""
    return state.narrow(-2, 0, optimizer.tape_slots)


def estimate_back(
    derivatives: Derivatives,
    optimizer: Optimizer,
    state: Tensor,
    trajectory: Trajectory,
    batches: Sequence[Batch],
    outer_batch: Batch,
) -> Estimate:
    """∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T over the steps in `batches`, last to first, at the last `state`."""
    outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
    hypergradient = outer.hyper.clone()
    cotangent = cotangent_of(optimizer, state, outer.params)
    # nothing comes before the first step: its A is not needed
    sweep_back_(derivatives, optimizer, trajectory, batches, cotangent, hypergradient, to_first=False)
    return Estimate(state, hypergradient, outer.loss, derivatives.cost)


def sweep_back_(
    derivatives: Derivatives,
    optimizer: Optimizer,
    trajectory: Trajectory,
    batches: Sequence[Batch],
    cotangent: Tensor,
    hypergradient: Tensor,
    *,
    to_first: bool,
) -> None:
    """Through the steps in `batches`, last to first: hypergradient (S, H) += Σ_t B_t A_{t+1} … cotangent.

    cotangent: dL₂/ds (S, slots, P) after the last of them, which becomes the one before the first.
    to_first: False where that is not wanted; `cotangent` is then left without meaning.
    """
    tape, steps = trajectory
    for index in reversed(range(len(batches))):
        step = steps[index] if index in steps else optimizer.linearize(derivatives, tape[index], batches[index])
        step.pull_back_(cotangent, hypergradient, to_state=to_first or index > 0)
        del step  # one graph at a time
