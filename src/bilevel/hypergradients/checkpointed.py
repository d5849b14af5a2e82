"""Exact reverse mode that stores few states and runs steps again to get at the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.cost import Cost
from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, cotangent_of
from bilevel.optimizers import LinearStep, Optimizer
from bilevel.problem import Batch
from bilevel.schedules import Advance, Binomial, Discard, Restore, Reverse, Schedule, Store, Tree


@dataclass(frozen=True, config=STRICT)
class Checkpointed(Hypergradient):
    """dL₂/dλ = ∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T, the sum of `unrolled`, with few states in memory.

    Exact. States that were not stored are computed again from the nearest one before them that was, by the same
    operations. Each step is linearized once; how often it runs besides is up to the schedule, and all of it is counted.
    The graph of one step at a time is in memory.

    schedule: `binomial` runs the fewest steps that the number of snapshots allows; `tree` halves intervals.
    snapshots: limit on the states stored at once, the one at the start included. None: with `binomial` about √(2T), for
        which no step runs more than twice before it is linearized, less than one training more than `unrolled` takes;
        with `tree` ⌈log₂ T⌉, for ½ T log₂ T steps at most.

    Source: Griewank and Walther 2000 (binomial); deck 001 (tree).
    """

    schedule: Literal["binomial", "tree"] = "binomial"
    snapshots: Annotated[int, Field(ge=1)] | None = None

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        kind: type[Schedule] = Binomial if self.schedule == "binomial" else Tree
        schedule = kind(len(batches), self.snapshots)
        stored = _Snapshots(schedule.snapshots, state, derivatives.cost)
        adjoint = _Adjoint(derivatives, optimizer, batches, outer_batch)
        working, current = torch.empty_like(state), state
        for action in schedule:
            match action:
                case Advance(start, stop):
                    if current is not working:  # a snapshot, which stays as it is
                        current = working.copy_(current)
                    for index in range(start, stop):
                        optimizer.advance_(derivatives, current, batches[index])
                case Store(index):
                    stored.store(index, current)
                case Restore(index):
                    current = stored.state(index)
                case Discard(index):
                    stored.discard(index)
                case Reverse(index):
                    adjoint.reverse(index, current)
        return adjoint.estimate()


class _Snapshots:
    """Copies of at most `count` states like `example`, by the number of the step that follows."""

    def __init__(self, count: int, example: Tensor, cost: Cost) -> None:
        self._buffer = example.new_empty(count, *example.shape)
        self._free = list(range(count))
        self._places: dict[int, int] = {}
        self._cost = cost

    def store(self, index: int, state: Tensor) -> None:
        self._places[index] = self._free.pop()
        self.state(index).copy_(state)
        self._cost.hold(len(self._places))

    def state(self, index: int) -> Tensor:
        """The stored state itself, good until another takes its place."""
        return self._buffer[self._places[index]]

    def discard(self, index: int) -> None:
        self._free.append(self._places.pop(index))


class _Adjoint:
    """The sum of the steps reversed so far and dL₂/ds before them."""

    def __init__(
        self, derivatives: Derivatives, optimizer: Optimizer, batches: Sequence[Batch], outer_batch: Batch
    ) -> None:
        self._derivatives, self._optimizer = derivatives, optimizer
        self._batches, self._outer_batch = batches, outer_batch

    def reverse(self, index: int, state: Tensor) -> None:
        """Reverse step `index` from the state before it; the last step of all is the first."""
        step = self._optimizer.linearize(self._derivatives, state, self._batches[index])
        if index == len(self._batches) - 1:
            self._begin(step, state)
        # nothing comes before the first step: its A is not needed
        step.pull_back_(self._cotangent, self._hypergradient, to_state=index > 0)

    def estimate(self) -> Estimate:
        """After step 0."""
        return Estimate(self._state, self._hypergradient, self._outer.loss, self._derivatives.cost)

    def _begin(self, step: LinearStep, state: Tensor) -> None:
        # the step that is to be reversed at once also ends the training
        self._state = state.clone()
        step.advance_(self._state)
        self._outer: OuterGradient = self._derivatives.outer_gradient(
            self._optimizer.params(self._state), self._outer_batch
        )
        self._hypergradient = self._outer.hyper.clone()
        self._cotangent = cotangent_of(self._optimizer, self._state, self._outer.params)


METHOD = Checkpointed
