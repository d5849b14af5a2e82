"""Functions on a cube of which few coordinates matter, and whose minimum is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.problem import Batch, Problem
from bilevel.randomness import generator

WAVES = 4
"""Ripples a side of the cube; a whole number, so that they have the same mean wherever the minimum is."""


class Functions(NamedTuple):
    """f(x) = Σ_i w_i φ(x_i − c_i) of every seed, with φ(u) = u² + r (1 − cos 2πku) / 2, k = `WAVES`; the least value is
    0, at c.

    weights: w (S, d). centers: c (S, d), in the unit cube. ripple: r.
    """

    weights: Tensor
    centers: Tensor
    ripple: float

    @property
    def problem(self) -> Problem:
        """f as an outer loss of hyperparameters x, with no inner problem; its batch is `outer_batch`."""
        return Problem(_nothing, self._loss)

    @property
    def outer_batch(self) -> Batch:
        """What the functions of the seeds differ in."""
        return self.weights, self.centers

    def parts(self, points: Tensor) -> Tensor:
        """The terms of the sum, (S, d), at points (S, d)."""
        return _terms(points, self.weights, self.centers, self.ripple)

    def __call__(self, points: Tensor) -> Tensor:
        """Values (S,) at points (S, d)."""
        return self.parts(points).sum(-1)

    def _loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        weights, centers = batch
        return _terms(hyper, weights, centers, self.ripple).sum()


def draw(dimension: int, effective: int | None, small: float, ripple: float, seeds: Sequence[int]) -> Functions:
    """Functions f = g + h: g of `effective` axes (None: all), h of the others.

    Weights are scaled so that a uniform draw from the cube gives g = 1 and h = `small` in the mean. The terms of g are
    the same in all dimensions that are large enough, but for the axes that they are on.
    """
    drawn = [_draw(dimension, effective or dimension, small, ripple, seed) for seed in seeds]
    weights, centers = zip(*drawn, strict=True)
    return Functions(torch.stack(weights), torch.stack(centers), ripple)


def _draw(dimension: int, effective: int, small: float, ripple: float, seed: int) -> tuple[Tensor, Tensor]:
    sizes, centers = (
        torch.rand(dimension, generator=generator("search_function", purpose, seed), dtype=torch.float64)
        for purpose in ("sizes", "centers")
    )
    axes = torch.randperm(dimension, generator=generator("search_function", "axes", seed, dimension))
    weights = sizes + 0.5
    means = weights * ((centers**3 + (1 - centers) ** 3) / 3 + ripple / 2)
    weights[:effective] /= means[:effective].sum()
    weights[effective:] *= small / means[effective:].sum()
    return torch.empty_like(weights).scatter_(0, axes, weights), torch.empty_like(centers).scatter_(0, axes, centers)


def _terms(points: Tensor, weights: Tensor, centers: Tensor, ripple: float) -> Tensor:
    away = points - centers
    waves = 1 - torch.cos(2 * math.pi * WAVES * away)
    return weights * (away.square() + ripple / 2 * waves)


def _nothing(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    return 0.0 * params.sum()
