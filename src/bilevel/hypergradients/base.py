"""What every hypergradient method offers, and what it returns."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.derivatives import Derivatives, OuterGradient
from bilevel.optimizers import GradientOptimizer, LinearStep, Optimizer
from bilevel.problem import Batch, Problem, map_batch
from bilevel.settings import STRICT as STRICT
from bilevel.settings import Configurable


class Estimate(NamedTuple):
    """What a method returns.

    state: the inner state after all batches, (S, slots, P).
    hypergradient: its estimate of d L₂(w_T(λ), λ) / dλ, (S, H).
    outer_loss: L₂(w_T, λ), (S,).
    cost: what it took, per seed.
    """

    state: Tensor
    hypergradient: Tensor
    outer_loss: Tensor
    cost: Cost


class Hypergradient(Configurable, ABC):
    """Advances the inner optimization over `batches` and estimates d L₂(w_T(λ), λ) / dλ.

    A method is a frozen pydantic dataclass: its fields are its settings. It implements `_estimate`, which sees tensors
    with a seed axis only.
    """

    def __call__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        state: Tensor,
        hyper: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        """Run over `batches` and estimate.

        state: (S, slots, P) or (slots, P); hyper: (S, H) or (H,) alike; every tensor of a batch has the leading axis S
        exactly if these have. `batches` is any sequence; its items may be made when asked for, but must be the same
        each time (exact methods look at them several times).

        Raises ValueError where shapes do not fit together.
        """
        _check_shapes(optimizer, state, hyper)
        start, state = time.perf_counter(), state.detach()
        with torch.enable_grad():
            if state.dim() == 2:
                estimate = self._without_seed_axis(problem, optimizer, state, hyper, batches, outer_batch)
            else:
                estimate = self._any_length(Derivatives(problem, hyper), optimizer, state, batches, outer_batch)
        seconds = time.perf_counter() - start
        return estimate._replace(cost=replace(estimate.cost, seconds=seconds))

    def _without_seed_axis(
        self,
        problem: Problem,
        optimizer: Optimizer,
        state: Tensor,
        hyper: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        derivatives = Derivatives(problem, hyper.unsqueeze(0))
        widened = WithSeedAxis(batches)
        result = self._any_length(
            derivatives, optimizer, state.unsqueeze(0), widened, map_batch(_unsqueeze, outer_batch)
        )
        return Estimate(
            result.state.squeeze(0),
            result.hypergradient.squeeze(0),
            result.outer_loss.squeeze(0),
            result.cost,
        )

    def _any_length(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        if len(batches) > 0:
            return self._estimate(derivatives, optimizer, state, batches, outer_batch)
        outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
        return Estimate(state.clone(), outer.hyper, outer.loss, derivatives.cost)

    @abstractmethod
    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        """The method itself, on tensors with a seed axis and at least one batch; returns `derivatives.cost` too."""


class WithSeedAxis(Sequence[Batch]):
    """A sequence of batches seen with a leading axis of one seed."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return map_batch(_unsqueeze, self._batches[index])


def advance(
    derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batches: Sequence[Batch], count: int
) -> Tensor:
    """The state after inner steps over the first `count` batches, a new tensor."""
    state = state.clone()
    for index in range(count):
        optimizer.advance_(derivatives, state, batches[index])
    return state


def linear_step_(
    derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batch: Batch, outer_batch: Batch
) -> tuple[LinearStep, OuterGradient, Tensor]:
    """One inner step, `state` in place: the step linearized, L₂ where it leads, and dL₂/ds there (S, slots, P)."""
    step = optimizer.linearize(derivatives, state.clone(), batch)
    step.advance_(state)
    outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
    return step, outer, cotangent_of(optimizer, state, outer.params)


def cotangent_of(optimizer: Optimizer, state: Tensor, params_cotangent: Tensor) -> Tensor:
    """dL/ds of a function of the parameters alone: (S, slots, P), zero outside slot 0."""
    cotangent = state.new_zeros(state.shape)
    cotangent[..., 0, :] = params_cotangent
    return cotangent


def stacked(slopes: Sequence[Tensor], hyper: Tensor) -> Tensor:
    """Derivatives by one hyperparameter each, (S,), put together as `hyper` (S, H) is; there may be none."""
    return torch.stack(list(slopes), dim=-1) if slopes else torch.zeros_like(hyper)


def _unsqueeze(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def _check_shapes(optimizer: Optimizer, state: Tensor, hyper: Tensor) -> None:
    if state.dim() not in (2, 3) or state.shape[-2] != optimizer.slots:
        raise ValueError(
            f"state: expected shape ({optimizer.slots}, P) or (S, {optimizer.slots}, P) for "
            f"{type(optimizer).__name__}, got {tuple(state.shape)}; make it with optimizer.init(params)"
        )
    if hyper.dtype != state.dtype or not state.is_floating_point():
        raise ValueError(f"state and hyper must have one floating-point type, got {state.dtype} and {hyper.dtype}")
    if hyper.dim() != state.dim() - 1 or hyper.shape[:-1] != state.shape[:-2]:
        expected = "(H,)" if state.dim() == 2 else f"({state.shape[0]}, H)"
        raise ValueError(
            f"hyper: expected shape {expected} for a state of shape {tuple(state.shape)}, got {tuple(hyper.shape)}"
        )


def gradient_optimizer(optimizer: Optimizer, method: str) -> GradientOptimizer:
    """The optimizer, if it takes one gradient a step; ValueError otherwise."""
    if not isinstance(optimizer, GradientOptimizer):
        raise ValueError(
            f"{method}: needs an optimizer whose step is a function of one gradient, such as SGD, Momentum or Adam, "
            f"got {type(optimizer).__name__}; unrolled and truncated work with any optimizer"
        )
    return optimizer
