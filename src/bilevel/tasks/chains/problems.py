"""Where the chains run: a small network and a quadratic, drawn for every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bilevel.parameters import Layout
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator

SAMPLES, FEATURES, HIDDEN, CLASSES = 100, 10, 16, 4
DECAY = 1e-3
LAYOUT = Layout({"w1": (HIDDEN, FEATURES), "b1": (HIDDEN,), "w2": (CLASSES, HIDDEN), "b2": (CLASSES,)})
WEIGHTS = 40
CONDITION = 100.0


class Start(NamedTuple):
    """A problem, first parameters (S, P) and the batch of every step, all in float64."""

    problem: Problem
    params: Tensor
    batch: Batch


def network(study: str, seeds: Sequence[int]) -> Start:
    """Cross-entropy of a tanh network 10-16-4 on 100 samples labelled by another one, and 10⁻³ ‖w‖² / 2."""
    draws = [generator(study, "problem", seed) for seed in seeds]
    inputs = torch.stack([torch.randn(SAMPLES, FEATURES, generator=draw, dtype=torch.float64) for draw in draws])
    teachers = [_initial(draw) * 3 for draw in draws]
    labels = torch.stack([_logits(teacher, x).argmax(-1) for teacher, x in zip(teachers, inputs, strict=True)])
    params = torch.stack([_initial(generator(study, "initialization", seed)) for seed in seeds])
    return Start(Problem(_network_loss, _network_loss), params, (inputs, labels))


def quadratic(study: str, seeds: Sequence[int]) -> Start:
    """½ (w − c)ᵀ G (w − c) in 40 dimensions; eigenvalues of G from 1/100 to 1, evenly on a logarithmic scale."""
    matrices, centers, params = [], [], []
    for seed in seeds:
        draw = generator(study, "problem", seed)
        basis, _ = torch.linalg.qr(torch.randn(WEIGHTS, WEIGHTS, generator=draw, dtype=torch.float64))
        values = torch.logspace(-math.log10(CONDITION), 0, WEIGHTS, dtype=torch.float64)
        matrices.append(basis * values @ basis.T)
        centers.append(torch.randn(WEIGHTS, generator=draw, dtype=torch.float64))
        params.append(torch.randn(WEIGHTS, generator=generator(study, "initialization", seed), dtype=torch.float64))
    return Start(
        Problem(_quadratic_loss, _quadratic_loss),
        torch.stack(params),
        (torch.stack(matrices), torch.stack(centers)),
    )


def _network_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    inputs, labels = batch
    return cross_entropy(_logits(params, inputs), labels) + 0.5 * DECAY * (params * params).sum()


def _quadratic_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    matrix, center = batch
    offset = params - center
    return 0.5 * torch.dot(offset, torch.mv(matrix, offset))


def _logits(params: Tensor, inputs: Tensor) -> Tensor:
    p = LAYOUT.split(params)
    return linear(torch.tanh(linear(inputs, p["w1"], p["b1"])), p["w2"], p["b2"])


def _initial(draw: torch.Generator) -> Tensor:
    tensors = {
        name: torch.randn(shape, generator=draw, dtype=torch.float64) / math.sqrt(shape[-1])
        for name, shape in LAYOUT.shapes.items()
    }
    return LAYOUT.join(tensors)
