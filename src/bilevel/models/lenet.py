"""LeNet-5 in its smooth form: 6 and 16 channels, 5×5 convolutions, tanh, 2×2 average pooling, then 120-84-10.

Deck 001 names LeNet on MNIST and does not say which variant. This one has second derivatives everywhere: images of
32×32, smaller ones padded to that, every map of the second convolution sees all of the first, tanh throughout, logits
from a linear layer; 61,706 parameters for gray images, 62,006 for images in color.

Everything is a matrix product. A kernel is set into a larger matrix that takes the surroundings of a whole block of
outputs at once (4×4 of the first convolution, 2×2 of the second), which takes less copying than a row of `im2col` for
every output, and puts the places that pooling adds up next to each other. On one thread and 64 images, with
`bilevel.traced`, gradients and Hessian-vector products take about 0.9 of the time of `conv2d` and `avg_pool2d` with
channels last, the faster of the plain ways. The numbers are the same up to rounding, which a test holds.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad

from bilevel.parameters import Layout
from bilevel.problem import Batch

CHUNK = 50  # images whose activations stay in a core's cache

PADDED = 32  # pixels of a side


@cache
def layout(channels: int) -> Layout:
    """Parameters for images of so many channels.

    Convolution kernels are kept as (height, width, in, out), the inputs of linear1 as (height, width, channel).
    """
    return Layout(
        {
            "conv1.weight": (5, 5, channels, 6),
            "conv1.bias": (6,),
            "conv2.weight": (5, 5, 6, 16),
            "conv2.bias": (16,),
            "linear1.weight": (120, 400),
            "linear1.bias": (120,),
            "linear2.weight": (84, 120),
            "linear2.bias": (84,),
            "linear3.weight": (10, 84),
            "linear3.bias": (10,),
        }
    )


LAYOUT = layout(1)


def forward(params: Tensor, images: Tensor) -> Tensor:
    """Logits (N, 10) of images (N, C, 28, 28) or (N, C, 32, 32) at parameters of `layout(C)`."""
    p = layout(images.shape[1]).split(params)
    values = _first_block(p["conv1.weight"], p["conv1.bias"], images)
    values = _second_block(p["conv2.weight"], p["conv2.bias"], values)
    values = torch.tanh(linear(values, p["linear1.weight"], p["linear1.bias"]))
    values = torch.tanh(linear(values, p["linear2.weight"], p["linear2.bias"]))
    return linear(values, p["linear3.weight"], p["linear3.bias"])


def loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed over a batch (images, labels); no hyperparameters."""
    images, labels = batch
    return cross_entropy(forward(params, images), labels)


@torch.no_grad()
def logits(params: Tensor, images: Tensor) -> Tensor:
    """`forward` of any number of images, a few at a time."""
    return torch.cat([forward(params, part) for part in torch.split(images, CHUNK)])


def initial(generator: torch.Generator, channels: int = 1) -> Tensor:
    """Parameters of `layout(channels)`: weights uniform within √(6 / (fan_in + fan_out)), biases zero (Glorot and
    Bengio 2010)."""
    tensors, shapes = {}, layout(channels)
    for name, shape in shapes.shapes.items():
        tensors[name] = torch.zeros(shape)
        if name.endswith("weight"):
            bound = math.sqrt(6 / sum(_fans(shape)))
            tensors[name].uniform_(-bound, bound, generator=generator)
    return shapes.join(tensors)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Numbers of inputs of an output and of outputs of an input."""
    if len(shape) == 2:
        return shape[1], shape[0]
    height, width, inputs, outputs = shape
    return height * width * inputs, height * width * outputs


def _first_block(kernel: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    """Convolution, tanh and pooling: (N, 7, 7, 24), in which a cell has 2×2 places of 6 channels.

    A row of the product is the 8×8 surroundings of 4×4 outputs, that is of 2×2 pooled ones, of each channel.
    """
    channels, side = images.shape[1:3]
    cells = pad(images, ((PADDED - side) // 2,) * 4).unfold(2, 8, 4).unfold(3, 8, 4)
    surroundings = cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * 64)
    # outputs (pooled, place) and inputs of columns, of rows
    weights = _blocks(kernel, 8, 4).view(2, 2, 8, 2, 2, 8, channels, 6)
    weights = weights.permute(6, 5, 2, 4, 1, 3, 0, 7).reshape(channels * 64, 96)
    values = torch.addmm(bias.repeat(16), surroundings, weights)
    return _mean(values.view(-1, 4, 24)).view(-1, 7, 7, 24)


def _second_block(kernel: Tensor, bias: Tensor, cells: Tensor) -> Tensor:
    """Convolution, tanh and pooling of (N, 7, 7, 24): (N, 400), 5×5 places of 16 channels.

    A row of the product is the 3×3 cells around 2×2 outputs, that is around one pooled output.
    """
    surroundings = torch.cat([cells[:, :, column : column + 5] for column in range(3)], -1)
    surroundings = torch.cat([surroundings[:, row : row + 5] for row in range(3)], -1)
    weights = _blocks(kernel, 6, 2).view(2, 3, 2, 2, 3, 2, 6, 16)  # outputs and inputs (cell, place), columns then rows
    weights = weights.permute(4, 1, 5, 2, 6, 3, 0, 7).reshape(216, 64)
    values = torch.addmm(bias.repeat(4), surroundings.view(-1, 216), weights)
    return _mean(values.view(-1, 4, 16)).view(-1, 400)


def _mean(values: Tensor) -> Tensor:
    """tanh, and its mean over the places that pooling puts together: (M, 4, C) -> (M, C)."""
    return torch.tanh(values).sum(1) / 4


def _blocks(kernel: Tensor, inputs: int, outputs: int) -> Tensor:
    """A kernel (5, 5, in, out) as weights of `outputs`² places, each looking at 5×5 of the same `inputs`² pixels.

    (output column, input column, output row, input row, in, out).
    """
    by_row = _shifted(kernel, inputs, outputs)
    return _shifted(by_row.permute(2, 0, 1, 3, 4), inputs, outputs)


def _shifted(kernel: Tensor, inputs: int, outputs: int) -> Tensor:
    """(5, …) -> (outputs, inputs, …): in row i the five entries at places i to i + 4, zeros elsewhere.

    Laid end to end, rows that are one longer move on by one from row to row.
    """
    row = torch.cat([kernel, kernel.new_zeros(inputs - 4, *kernel.shape[1:])])
    rows = row.repeat(outputs, *(1 for _ in kernel.shape[1:]))
    return rows[: outputs * inputs].view(outputs, inputs, *kernel.shape[1:])
