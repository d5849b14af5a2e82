"""The weights that minimize the training loss of the linear model at given λ, up to rounding, without a search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from bilevel.tasks.hypernetwork.linear_model import CLASSES, SLOPE, Moments, Regularizer, losses_on_moments

HALVINGS = 64
RANGE = 60.0
"""log ν is between −60 and 60."""
NEGLIGIBLE = 1e-12
"""Of the largest eigenvalue: directions in which the images do not differ."""


class BestResponse:
    """w*(λ) = argmin of the mean over classes of the training losses + R(w, λ), see `linear_model.penalty`.

    It is a ridge regression, w = (XᵀX / N + ν I)⁻¹ Xᵀt / N. For the squared norm ν is exp(λ) / SLOPE, ten times that
    with one level for all classes. For the norm ν is half as much over ‖w‖, that is the solution of ν ‖w(ν)‖ = τ, whose
    left side grows with ν, and is found by bisection; where it stays below τ, w* = 0. Biases that are not penalized,
    those of one level a class, are the means of what the pixels leave.

    moments: of the training images. by_class: whether there is a level for each class, or one for all.
    """

    def __init__(self, moments: Moments, regularizer: Regularizer, *, by_class: bool) -> None:
        self.regularizer, self.by_class = regularizer, by_class
        features, cross = moments.features, moments.cross
        if by_class:
            means, self._targets = features[-1, :-1], cross[:, -1]
            features = features[:-1, :-1] - torch.outer(means, means)
            cross = cross[:, :-1] - torch.outer(self._targets, means)
        values, vectors = torch.linalg.eigh(features)
        kept = values > NEGLIGIBLE * values[-1]
        self._values, self._basis = values[kept], vectors[:, kept]
        self._projected = cross @ self._basis
        energy = self._projected.square()
        self._energy = energy if by_class else energy.sum(0, keepdim=True)
        if by_class:
            self._means = means @ self._basis
            self._basis = pad(self._basis, (0, 1, 0, 1))
            self._basis[-1, -1] = 1

    def weights(self, levels: Tensor) -> Tensor:
        """w*(λ), (J, 10, 785), at levels (J, 1 or 10)."""
        found: Tensor = self._coordinates(levels) @ self._basis.mT
        return found

    def losses(self, levels: Tensor, moments: Moments) -> Tensor:
        """Losses of each class, (J, 10), on the images that `moments` are of, at w*(λ)."""
        features = self._basis.mT @ moments.features @ self._basis
        projected = Moments(features, moments.cross @ self._basis, moments.targets)
        return losses_on_moments(self._coordinates(levels), projected)

    def _coordinates(self, levels: Tensor) -> Tensor:
        """Weights (J, 10, K) in a basis of the directions that the training images have."""
        share = 1 if self.by_class else CLASSES
        strength = levels.double().exp() * (share / SLOPE)
        found: Tensor
        if self.regularizer == "squared_norm":
            found = self._projected / (self._values + strength.unsqueeze(-1))
        else:
            found = self._shrunk(strength / 2)
        if not self.by_class:
            return found
        biases = self._targets - (found * self._means).sum(-1)
        return torch.cat([found, biases.unsqueeze(-1)], dim=-1)

    def _shrunk(self, wanted: Tensor) -> Tensor:
        """Solutions for the norm, at τ (J, groups)."""
        found = self._projected / (self._values + self._ridge(wanted).unsqueeze(-1))
        nothing = wanted >= self._energy.sum(-1).sqrt()
        shrunk: Tensor = found.masked_fill(nothing.unsqueeze(-1), 0.0)
        return shrunk

    def _ridge(self, wanted: Tensor) -> Tensor:
        """ν with ν ‖w(ν)‖ = τ, for τ (J, groups)."""
        low, high = torch.full_like(wanted, -RANGE), torch.full_like(wanted, RANGE)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            ridge = middle.exp()
            lengths = (self._energy / (self._values + ridge.unsqueeze(-1)).square()).sum(-1).sqrt()
            below = ridge * lengths < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).exp()
