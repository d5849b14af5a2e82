"""Metaparameters β₁, β₂, T, their ranges, and the unbounded r ∈ ℝ³ that is optimized in their place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIGHEST = 10.0
"""Temperatures are below."""
BETAS, TEMPERATURES = (0.01, 0.99), (0.1, 10.0)
"""Ranges of the random baseline and of searches."""


def values(hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """β₁ = σ(r₁) of the distillation term, β₂ = σ(r₂) of the labels' term and T = 10 σ(r₃) of r (..., 3)."""
    weights = torch.sigmoid(hyper)
    return weights[..., 0], weights[..., 1], HIGHEST * weights[..., 2]


def inverse(beta_distillation: float, beta_student: float, temperature: float) -> Tensor:
    """r (3,) with these `values`; infinite where a weight is 0 or 1, which gradients then cannot move."""
    return torch.logit(torch.tensor([beta_distillation, beta_student, temperature / HIGHEST], dtype=torch.float64))


def random_values(draws: torch.Generator) -> tuple[float, float, float]:
    """The published random baseline: β₁ and β₂ uniform on (0, 1), put into their range; T log-uniform."""
    first, second, third = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
    low, high = (math.log(bound) for bound in TEMPERATURES)
    weights = [min(max(weight, BETAS[0]), BETAS[1]) for weight in (first, second)]
    return weights[0], weights[1], math.exp(low + (high - low) * third)
