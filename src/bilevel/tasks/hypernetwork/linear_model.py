"""A linear model 784-10 of digits with a Gaussian likelihood, its loss and its regularizer, and its data.

Weights are rows, one a class: (10, 785), whose last entry is the bias; 7850 in all. Targets are 1 for the class of an
image and 0 for the others.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bilevel.data import Split

Regularizer = Literal["norm", "squared_norm"]

CLASSES = 10
FEATURES = 785
"""Pixels, and 1 for the bias."""
SIZE = CLASSES * FEATURES
DEVIATION = 0.1
"""σ of the likelihood. The code of the paper calls it a variance and passes it as a deviation."""
SLOPE = 0.5 / DEVIATION**2
FLOOR = math.log(DEVIATION * math.sqrt(2 * math.pi))
"""−log N(t; y, σ²) = SLOPE (y − t)² + FLOOR."""


class Images(NamedTuple):
    """Features (N, 785), pixels between 0 and 1 and a column of ones, and targets (N, 10)."""

    features: Tensor
    targets: Tensor


class Moments(NamedTuple):
    """All that the loss of a linear model needs to know of N images: XᵀX / N (785, 785), TᵀX / N (10, 785) and the mean
    of squared targets (10,). Tenfold less work than images where there are thousands."""

    features: Tensor
    cross: Tensor
    targets: Tensor


def images_of(split: Split, ids: Tensor, device: torch.device) -> Images:
    """Images of a split in single precision."""
    pixels = split.images[ids].to(device).flatten(1).float() / 255
    targets = one_hot(split.labels[ids].to(device).long(), CLASSES).float()
    return Images(torch.cat([pixels, pixels.new_ones(len(ids), 1)], dim=1), targets)


def moments_of(images: Images) -> Moments:
    """In double precision."""
    features, targets = images.features.double(), images.targets.double()
    count = len(features)
    return Moments(features.mT @ features / count, targets.mT @ features / count, targets.square().mean(0))


def losses_on_images(weights: Tensor, images: Images) -> Tensor:
    """Mean negative log-likelihood of each class, (..., 10), of weights (..., 10, 785)."""
    shape = weights.shape[:-1]
    outputs = (images.features @ weights.reshape(-1, FEATURES).mT).view(-1, *shape)
    targets = images.targets.view(-1, *[1] * (len(shape) - 1), CLASSES)
    return SLOPE * (outputs - targets).square().mean(0) + FLOOR


def losses_on_moments(weights: Tensor, moments: Moments) -> Tensor:
    """The same from moments (in any basis of the features): w · (XᵀX w − 2 Xᵀt) / N + mean t²."""
    flat = weights.reshape(-1, weights.shape[-1])
    curved = (flat @ moments.features).view_as(weights)
    return SLOPE * ((weights * (curved - 2 * moments.cross)).sum(-1) + moments.targets) + FLOOR


def penalty(weights: Tensor, levels: Tensor, regularizer: Regularizer) -> Tensor:
    """R(w, λ), (J,), of weights (J, 10, 785).

    With one level, levels (J, 1): exp(λ) ‖w‖ or exp(λ) ‖w‖², of all weights and biases together. With one a class,
    (J, 10): the mean over classes of exp(λ_c) ‖w_c‖ or its square, without biases.
    """
    rows = weights.flatten(1).unsqueeze(1) if levels.shape[-1] == 1 else weights[..., :-1]
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    terms: Tensor = levels.exp() * (lengths if regularizer == "norm" else lengths.square())
    return terms.mean(-1)
