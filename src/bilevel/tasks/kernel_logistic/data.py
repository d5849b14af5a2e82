"""Two classes on the plane that no linear function tells apart: a ring of one class between two parts of the other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RADII = (1.0, 0.0, 2.0)
"""Of the minority's ring, and of the majority's two parts."""

SPREAD = 0.4
"""Standard deviation of a point's radius."""

MINORITY = 1 / 3
"""Probability of class 1."""


class Samples(NamedTuple):
    """Points (..., n, 2) and their labels (..., n), 0 or 1."""

    points: Tensor
    labels: Tensor


def draw(count: int, draws: torch.Generator) -> Samples:
    """Independent points in double precision.

    The label is 1 with probability one third. With radius r ~ N(1, 0.4²) for class 1, and for class 0 r ~ N(0, 0.4²) or
    r ~ N(2, 0.4²), either with probability one half, and an angle φ uniform, the point is (r cos φ, r sin φ). Each
    class is symmetric about the origin, so that every linear function has an AUC of one half.

    The posterior probability of class 1 depends on |r| alone. It has a cross-entropy of 0.381, an error of 0.168 and an
    AUC of 0.895 (numeric integration): nothing does better.
    """
    labels = (torch.rand(count, generator=draws, dtype=torch.float64) < MINORITY).double()
    outside = torch.rand(count, generator=draws, dtype=torch.float64) < 0.5
    ring, inner, outer = (torch.tensor(radius, dtype=torch.float64) for radius in RADII)
    center = torch.where(labels == 1, ring, torch.where(outside, outer, inner))
    radius = center + SPREAD * torch.randn(count, generator=draws, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(count, generator=draws, dtype=torch.float64)
    return Samples(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1), labels)
