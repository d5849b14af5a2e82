"""Networks 784-50(ReLU)-10 at several λ at once: each with parameters of its own, or all from one hypernetwork.

A network is a row of 39,760 weights and biases. What is learned is kept at K knots: a row of means and, where weights
have a normal distribution each, of the logarithms ρ of their deviations. Separate networks have a knot each. A
hypernetwork puts knots on [0, 1], the encoded log λ, and interpolates between them linearly: w(l) = (1 − l) w₀ + l w₁
with two, piecewise with more.

Source: Grebenkova, Bakhteev and Strijov 2023, with the code of their experiments on MNIST.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from bilevel.parameters import Layout

INPUTS, HIDDEN, CLASSES = 784, 50, 10
# weights are kept as (out, in)
LAYOUT = Layout(
    {
        "hidden.weight": (HIDDEN, INPUTS),
        "hidden.bias": (HIDDEN,),
        "output.weight": (CLASSES, HIDDEN),
        "output.bias": (CLASSES,),
    }
)
FIRST_LOG_DEVIATION = -3.0


def logits(networks: Tensor, images: Tensor) -> Tensor:
    """(L, N, 10) of networks (L, 39760) for the same images (N, 784)."""
    p, count = LAYOUT.split(networks), len(networks)
    # one matrix product for the first layers of all networks
    values = linear(images, p["hidden.weight"].reshape(-1, INPUTS), p["hidden.bias"].reshape(-1)).relu()
    values = values.view(-1, count, HIDDEN).transpose(0, 1)
    # a copy of the weights: a recording does not know that those of different networks lie apart in a state
    weights = p["output.weight"].transpose(1, 2)
    return torch.baddbmm(p["output.bias"].unsqueeze(1), values, weights)


def at_knots(params: Tensor, knots: int) -> Tensor:
    """Parameters (P,) as (K, 39760 or twice that): means and, after them, ρ of each knot."""
    return params.view(knots, -1)


def interpolation(codes: Tensor, knots: int) -> Tensor:
    """(..., K), weights of the knots at codes (...) between 0 and 1: w(l) = Σ_k max(0, 1 − |l (K − 1) − k|) w_k.

    Codes beyond the outer knots are on the line of the last segment.
    """
    places = codes.unsqueeze(-1) * (knots - 1)
    left = places.floor().clamp(0, knots - 2)
    along, numbers = places - left, torch.arange(knots, device=codes.device)
    return torch.where(numbers == left, 1 - along, torch.where(numbers == left + 1, along, 0.0))


def divided(learned: Tensor) -> tuple[Tensor, Tensor]:
    """Means and ρ, both (..., 39760), of networks with a distribution."""
    means, log_deviations = torch.split(learned, LAYOUT.size, dim=-1)
    return means, log_deviations


def means_of(learned: Tensor) -> Tensor:
    """Means (..., 39760) of networks with a distribution or without."""
    return learned[..., : LAYOUT.size]


def divergence(means: Tensor, log_deviations: Tensor, deviations: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, e^{2ρ}) ‖ N(0, s²)) = Σ ½ (e^{2ρ} + μ²) / s² − ρ + log s − ½ of networks, (L,).

    means, log_deviations: μ and ρ, (L, 39760). deviations: e^ρ. log_variance: log s², (L,).
    """
    squares = deviations.square().sum(-1) + means.square().sum(-1)
    rest = LAYOUT.size / 2 * (log_variance - 1)
    return squares / 2 * torch.exp(-log_variance) - log_deviations.sum(-1) + rest


def initial(knots: int, variational: bool, generator: torch.Generator) -> Tensor:
    """First parameters (P,): at every knot weights uniform within √(6 / (fan_in + fan_out)), biases zero (Glorot and
    Bengio 2010), ρ = −3."""
    rows = []
    for _ in range(knots):
        tensors = {}
        for name, shape in LAYOUT.shapes.items():
            tensors[name] = torch.zeros(shape)
            if name.endswith("weight"):
                bound = math.sqrt(6 / sum(shape))
                tensors[name].uniform_(-bound, bound, generator=generator)
        rows.append(LAYOUT.join(tensors))
        if variational:
            rows.append(torch.full((LAYOUT.size,), FIRST_LOG_DEVIATION))
    return torch.cat(rows)
