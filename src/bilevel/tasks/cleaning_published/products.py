"""Jacobian products and their bookkeeping as the published run computed them (quirks 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.derivatives import Derivatives
from bilevel.models import convnet
from bilevel.problem import Batch

HALF_WIDTH = 1e-7


class PlainProducts:
    """Products with A = I − η ∂²L₁/∂w∂w and B = −η ∂²L₁/∂λ∂w by central differences of fixed half-width.

    Single precision resolves 1e-7 only barely, so that these products are mostly rounding noise; that is how the
    published numbers were made. Momentum and weight decay are left out of A and B.
    """

    def __init__(self, derivatives: Derivatives, learning_rate: float) -> None:
        self._derivatives, self._learning_rate = derivatives, learning_rate

    def a(self, params: Tensor, batch: Batch, vector: Tensor) -> Tensor:
        """A v, (S, P); counted as one Hessian product besides its two gradients."""
        self._derivatives.cost.hessian_products += 1
        difference = _central(lambda w: self._derivatives.inner_gradient(w, batch), params, vector)
        return vector - self._learning_rate * difference

    def b(self, params: Tensor, batch: Batch, vector: Tensor) -> Tensor:
        """B v at the positions of the batch, (S, batch): one number for each place, not for each sample."""
        self._derivatives.cost.mixed_products += 1
        return -self._learning_rate * _central(lambda w: self._by_place(w, batch), params, vector)

    @torch.no_grad()
    def _by_place(self, params: Tensor, batch: Batch) -> Tensor:
        """∂L₁/∂λ at each place of the batch: cross-entropyᵢ sigmoid'(λᵢ) / batch size."""
        images, labels, ids = batch
        losses: Tensor = torch.stack(
            [
                cross_entropy(convnet.forward(w, x), y, reduction="none")
                for w, x, y in zip(params, images, labels, strict=True)
            ]
        )
        weights: Tensor = torch.sigmoid(self._derivatives.hyper.gather(1, ids))
        slopes: Tensor = weights * (1 - weights)
        return losses.mul(slopes).div(ids.shape[1])


def credit(total: Tensor, ids: Tensor, contributions: Tensor) -> None:
    """Quirk 4: total[s, ids] += contributions, but of places with the same sample only the last one counts."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last = torch.full(total.shape, -1, device=ids.device).scatter_reduce(1, ids, places, "amax")
    kept = last.gather(1, ids) == places
    total.scatter_add_(1, ids, contributions * kept)


def _central(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    above = function(at + HALF_WIDTH * direction)
    below = function(at - HALF_WIDTH * direction)
    return (above - below) / (2 * HALF_WIDTH)
