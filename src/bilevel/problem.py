"""The bilevel problem: min over λ of L₂(w*(λ), λ), where w*(λ) is what an optimizer makes of L₁(·, λ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.penalties import Penalty

Batch = Any  # a tensor, None, or a tuple, list or dict of batches
Loss = Callable[[Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Problem:
    """An inner and an outer loss, each `(params (P,), hyper (H,), batch) -> scalar`, written for one seed.

    inner_loss: L₁(w, λ; batch), what the inner optimizer descends.
    outer_loss: L₂(w, λ; batch), what the hyperparameters are to lower.
    inner_penalty: a further term of L₁ whose derivatives are known in closed form, such as
        `bilevel.penalties.L2`; cheaper than the same term written into `inner_loss`.
    inner_outputs, inner_output_loss: `inner_loss` in two parts, for methods that use the Gauss-Newton matrix: the
        model, `(params (P,), hyper (H,), batch) -> outputs`, a tensor, and what is made of its outputs,
        `(outputs, hyper (H,), batch) -> scalar`.
    """

    inner_loss: Loss
    outer_loss: Loss
    inner_penalty: Penalty | None = None
    inner_outputs: Loss | None = None
    inner_output_loss: Loss | None = None


def lift(loss: Loss, seeds: int) -> Loss:
    """The loss of every seed at once.

    For S > 1: (S, P), (S, H), batch with leading axis S -> (S,). For one seed, which vmap would only slow down:
    (P,), (H,), batch with a leading axis of length 1 -> scalar.
    """
    lifted, shape = lift_function(loss, seeds), (() if seeds == 1 else (seeds,))
    return lambda params, hyper, batch: _checked(lifted(params, hyper, batch), shape)


def lift_function(function: Loss, seeds: int) -> Loss:
    """As `lift`, for a function that returns a tensor of any shape; for S > 1 with a leading axis S."""

    def single(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return function(params, hyper, map_batch(_first, batch))

    def several(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        mapped = torch.func.vmap(function, in_dims=(0, 0, map_batch(lambda _: 0, batch)))
        return mapped(params, hyper, batch)

    return single if seeds == 1 else several


def gradients(loss: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradients of the sum over seeds, zero for what the loss does not depend on."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    total = loss if loss.dim() == 0 else loss.sum()
    return torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def map_batch(function: Callable[[Tensor], Any], batch: Batch) -> Any:
    """Apply `function` to every tensor of a batch, keeping its structure; whatever is no tensor becomes None."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[map_batch(function, part) for part in batch])
    if isinstance(batch, tuple | list):
        return type(batch)([map_batch(function, part) for part in batch])
    if isinstance(batch, dict):
        return {key: map_batch(function, part) for key, part in batch.items()}
    if batch is None:
        return None
    raise TypeError(f"a batch is a tensor, None, or a tuple, list or dict of these; got {type(batch).__name__}")


def leaves_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    found: list[Tensor] = []
    map_batch(found.append, batch)
    return found


def _first(tensor: Tensor) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] != 1:
        raise ValueError(f"expected a leading seed axis of length 1 in the batch, got shape {tuple(tensor.shape)}")
    return tensor.squeeze(0)


def _checked(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found != shape:
        raise ValueError(f"a loss must return one number a seed, as a tensor: expected shape {shape}, got {found}")
    return value
