"""Convex combinations of kernels on the plane, with learned weights and widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

JITTER = 1e-8
"""What is added to the diagonal of a training matrix, whose diagonal has mean 1, before it is factorized."""


class Scale(NamedTuple):
    """What normalizes kernels, from training points: median squared distance and mean squared length (..., 1, 1), and
    the mean over points of (1 + |x|² / mean |x|²)² alike."""

    distance: Tensor
    square: Tensor
    quadratic: Tensor


class Pairs(NamedTuple):
    """What kernels need of pairs of points, (..., n, m) each, computed once.

    squares: |x − x'|² over its median on pairs of training points. linear, quadratic: these two kernels.
    """

    squares: Tensor
    linear: Tensor
    quadratic: Tensor


def scale_of(points: Tensor) -> Scale:
    """The scale of training points (..., n, 2)."""
    count = points.shape[-2]
    row, column = torch.triu_indices(count, count, offset=1, device=points.device)
    distance = _squares(points, points)[..., row, column].median(-1).values
    lengths = points.square().sum(-1)
    square = lengths.mean(-1, keepdim=True)
    quadratic = (1 + lengths / square).square().mean(-1)
    return Scale(distance[..., None, None], square[..., None], quadratic[..., None, None])


def pairs_of(left: Tensor, right: Tensor, scale: Scale) -> Pairs:
    """Pairs of points (..., n, 2) and (..., m, 2)."""
    linear = left @ right.mT / scale.square
    return Pairs(_squares(left, right) / scale.distance, linear, (1 + linear).square() / scale.quadratic)


@dataclass(frozen=True)
class Kernel:
    """K = Σ_j p_j K_j,  p = softmax(θ).

    K_j is one of: exp(−|x − x'|² / 2 s²) with a width s, x·x' and (1 + x·x' / mean |x|²)². Each is divided by the mean
    of K_j(x, x) over training points, so that a training matrix has a diagonal with mean 1 whatever the
    hyperparameters: weights can be compared, and λ has the same meaning for all kernels. (Weights exp(θ_j) that need
    not add up to 1 give the same classifiers: K and λ multiplied by one number leave the decision function as it is.)

    widths: first widths of the RBFs, in units of the median distance of training points.
    linear, quadratic: whether these two are there. learned: whether weights and widths are.

    Hyperparameters (..., size): log λ and, where they are learned, θ_j and then log s / median of each RBF.
    """

    widths: tuple[float, ...] = ()
    linear: bool = False
    quadratic: bool = False
    learned: bool = False

    @property
    def names(self) -> list[str]:
        """Of the parts, in the order of their weights."""
        radial = [f"rbf_{number}" for number in range(1, len(self.widths) + 1)]
        return radial + ["linear"] * self.linear + ["quadratic"] * self.quadratic

    def start(self, level: float) -> list[float]:
        """First hyperparameters: log λ = `level`, equal weights, the first widths."""
        if not self.learned:
            return [level]
        return [level, *[0.0] * len(self.names), *[math.log(width) for width in self.widths]]

    def weights(self, hyper: Tensor) -> Tensor:
        """p, (..., parts)."""
        count = len(self.names)
        levels = hyper[..., 1 : 1 + count] if self.learned else hyper.new_zeros(*hyper.shape[:-1], count)
        return levels.softmax(-1)

    def relative_widths(self, hyper: Tensor) -> Tensor:
        """s / median, (..., RBFs)."""
        if self.learned:
            return hyper[..., 1 + len(self.names) :].exp()
        return hyper.new_tensor(self.widths).expand(*hyper.shape[:-1], len(self.widths))

    def parts(self, hyper: Tensor, pairs: Pairs) -> list[Tensor]:
        """K_j of pairs, (..., n, m) each."""
        widths = self.relative_widths(hyper)
        rates = [-0.5 / widths[..., index, None, None].square() for index in range(len(self.widths))]
        radial = [(pairs.squares * rate).exp() for rate in rates]
        return radial + [pairs.linear] * self.linear + [pairs.quadratic] * self.quadratic

    def matrix(self, hyper: Tensor, pairs: Pairs) -> Tensor:
        """K of pairs, (..., n, m)."""
        weights, (first, *others) = self.weights(hyper), self.parts(hyper, pairs)
        total = weights[..., 0, None, None] * first
        for index, part in enumerate(others, start=1):
            total = torch.addcmul(total, weights[..., index, None, None], part)
        return total

    def factor(self, hyper: Tensor, train: Pairs) -> Tensor:
        """L of K + ε I = L Lᵀ, (..., n, n), lower triangular, ε = `JITTER`; NaN where the matrix is not positive."""
        matrix = self.matrix(hyper, train)
        diagonal = JITTER * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor, info = torch.linalg.cholesky_ex(matrix + diagonal)
        # without an exception: one seed's failure is not to end the others
        checked: Tensor = factor.masked_fill((info > 0)[..., None, None], math.nan)
        return checked


KERNELS = {
    "linear": Kernel(linear=True),
    "rbf": Kernel(widths=(1.0,)),
    "mixture": Kernel(widths=(0.25, 0.5, 1.0), linear=True, quadratic=True, learned=True),
}


def _squares(left: Tensor, right: Tensor) -> Tensor:
    return (left.unsqueeze(-2) - right.unsqueeze(-3)).square().sum(-1)
