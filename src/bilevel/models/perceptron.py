"""A network with one hidden layer of 16 units for digits of half their size: 196 pixels, tanh, 10 classes.

3322 parameters. Pixels are in the order of their distance from the middle, so that consecutive weights are those of a
ring: what penalties group (`bilevel.penalties.L2`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from bilevel.parameters import Layout
from bilevel.problem import Batch

SIDE = 14
PIXELS = SIDE * SIDE
HIDDEN = 16

LAYOUT = Layout(
    {
        "hidden.weight": (PIXELS, HIDDEN),
        "hidden.bias": (HIDDEN,),
        "output.weight": (HIDDEN, 10),
        "output.bias": (10,),
    }
)


def pixels(images: Tensor) -> Tensor:
    """What `forward` takes: of images (N, 1, 28, 28) the means of 2×2 pixels, (N, 196), from the middle outwards."""
    halved = avg_pool2d(images, 2).flatten(1)
    return halved[:, _outwards().to(images.device)]


def forward(params: Tensor, pixels: Tensor) -> Tensor:
    """Logits (N, 10) of `pixels` (N, 196) at parameters (3322,)."""
    p = LAYOUT.split(params)
    hidden = torch.tanh(torch.addmm(p["hidden.bias"], pixels, p["hidden.weight"]))
    return torch.addmm(p["output.bias"], hidden, p["output.weight"])


def loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed over a batch (pixels, labels); no hyperparameters."""
    images, labels = batch
    return cross_entropy(forward(params, images), labels)


def initial(generator: torch.Generator) -> Tensor:
    """Parameters (3322,): weights normal with variance 1 / fan_in, biases zero (LeCun et al. 1998)."""
    tensors = {}
    for name, shape in LAYOUT.shapes.items():
        tensors[name] = torch.zeros(shape)
        if name.endswith("weight"):
            tensors[name].normal_(0, 1 / math.sqrt(shape[0]), generator=generator)
    return LAYOUT.join(tensors)


def _outwards() -> Tensor:
    """Places of the pixels by their distance from the middle; of equal distances the first one first."""
    along = torch.arange(SIDE) * 2 - (SIDE - 1)
    return (along.unsqueeze(0) ** 2 + along.unsqueeze(1) ** 2).flatten().argsort(stable=True)
