"""Exact reverse mode that stores few states and runs steps again to get at the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.cost import Cost
from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, cotangent_of
from bilevel.hypergradients.reverse import new_tape, sweep_back_, train
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.schedules import Advance, Binomial, Discard, Restore, Reverse, Schedule, Segments, Store, Tree
from bilevel.settings import Count


@dataclass(frozen=True, config=STRICT)
class Checkpointed(Hypergradient):
    """dL₂/dλ = ∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T, the sum of `unrolled`, with few states in memory.

    Exact. States that were not stored are computed again from the nearest one before them that was, by the same
    operations.

    schedule: `segments` cuts the steps into pieces of one length and goes back through each as `unrolled` does through
        all of them, for one training more than that takes; `binomial` runs the fewest steps that the number of
        snapshots allows, one at a time; `tree` halves intervals.
    snapshots: limit on the states stored at once, the one at the start included. None: with `segments` about √T, and
        as much again for the states of one segment; with `binomial` about √(2T), for which no step runs more than
        twice before it is linearized; with `tree` ⌈log₂ T⌉, for ½ T log₂ T steps at most. States of a segment are not
        in the limit: there are ⌈T / (snapshots + 1)⌉ of them.

    Cost: 2T − 1 products, as `unrolled`: each step is linearized once. How often it runs besides is up to the schedule,
    and all of it is counted: with the default `snapshots`, about once more with `segments`, at most twice
    with `binomial`, ½ log₂ T times with `tree`.

    Memory: the states that `snapshots` allows: about 2√T with `segments`, √(2T) with `binomial`, log₂ T with `tree`.

    Source: Chen et al. 2016 (segments); Griewank and Walther 2000 (binomial); deck 001 (tree).
    """

    schedule: Literal["segments", "binomial", "tree"] = "segments"
    snapshots: Count | None = None

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        schedule = _SCHEDULES[self.schedule](len(batches), self.snapshots)
        stored = _Snapshots(schedule, state, derivatives.cost)
        adjoint = _Adjoint(derivatives, optimizer, batches, outer_batch, schedule.together)
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
                case Reverse(start, stop):
                    adjoint.reverse(start, stop, current)
        return adjoint.estimate()


_SCHEDULES: dict[str, type[Schedule]] = {"segments": Segments, "binomial": Binomial, "tree": Tree}


class _Snapshots:
    """Copies of as many states like `example` as `schedule` stores at once, by the number of the step that follows."""

    def __init__(self, schedule: Schedule, example: Tensor, cost: Cost) -> None:
        self._buffer = example.new_empty(schedule.snapshots, *example.shape)
        self._free = list(range(schedule.snapshots))
        self._places: dict[int, int] = {}
        self._cost = cost
        self._besides = schedule.together if schedule.together > 1 else 0  # states that reversing steps together takes

    def store(self, index: int, state: Tensor) -> None:
        self._places[index] = self._free.pop()
        self.state(index).copy_(state)
        self._cost.hold(len(self._places) + self._besides)

    def state(self, index: int) -> Tensor:
        """The stored state itself, good until another takes its place."""
        return self._buffer[self._places[index]]

    def discard(self, index: int) -> None:
        self._free.append(self._places.pop(index))


class _Adjoint:
    """The sum of the steps reversed so far and dL₂/ds before them; at most `longest` steps are reversed at once."""

    def __init__(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        batches: Sequence[Batch],
        outer_batch: Batch,
        longest: int,
    ) -> None:
        self._derivatives, self._optimizer = derivatives, optimizer
        self._batches, self._outer_batch = batches, outer_batch
        self._longest = longest
        self._tape: Tensor | None = None

    def reverse(self, start: int, stop: int, state: Tensor) -> None:
        """Reverse steps stop − 1, …, start from the state before `start`; those up to T − 1 come first."""
        if stop - start > 1:
            self._reverse_segment(start, stop, state)
            return
        step = self._optimizer.linearize(self._derivatives, state, self._batches[start])
        if stop == len(self._batches):
            # the step that is to be reversed at once also ends the training
            last = state.clone()
            step.advance_(last)
            self._begin(last)
        # nothing comes before the first step: its A is not needed
        step.pull_back_(self._cotangent, self._hypergradient, to_state=start > 0)

    def estimate(self) -> Estimate:
        """After step 0."""
        return Estimate(self._state, self._hypergradient, self._outer.loss, self._derivatives.cost)

    def _reverse_segment(self, start: int, stop: int, state: Tensor) -> None:
        segment = _Part(self._batches, start, stop)
        if self._tape is None:
            self._tape = new_tape(self._optimizer, state, self._longest)
        last, trajectory = train(self._derivatives, self._optimizer, state, segment, self._tape[: stop - start])
        if stop == len(self._batches):
            self._begin(last)
        sweep_back_(
            self._derivatives,
            self._optimizer,
            trajectory,
            segment,
            self._cotangent,
            self._hypergradient,
            to_first=start > 0,
        )

    def _begin(self, state: Tensor) -> None:
        self._state = state
        self._outer: OuterGradient = self._derivatives.outer_gradient(self._optimizer.params(state), self._outer_batch)
        self._hypergradient = self._outer.hyper.clone()
        self._cotangent = cotangent_of(self._optimizer, state, self._outer.params)


class _Part(Sequence[Batch]):
    """Batches start, …, stop − 1 of a sequence, each asked for when it is needed."""

    def __init__(self, batches: Sequence[Batch], start: int, stop: int) -> None:
        self._batches, self._start, self._length = batches, start, stop - start

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # slices are not needed
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._batches[self._start + index]


METHOD = Checkpointed
