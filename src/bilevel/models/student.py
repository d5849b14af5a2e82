"""A small convolutional network for students of distillation: 8, 16 and 32 channels, then one linear layer.

A 4×4 convolution of stride 2 and two 2×2 convolutions of stride 2, each with ReLU (34-16-8-4, images of 28 pixels
padded by 3, of 32 by 1), the mean over 2×2 cells, and linear 128-10: 4034 parameters for gray images, 4290 in color, no
normalization. It has the channels of the student in Gorpinich, Bakhteev and Strijov 2022, whose kernels are 3×3 with
2×2 maxima after them and whose layers are normalized.

A kernel that is as large as its stride sees every value once. With pixels in the order of `patches` all layers are
matrix products of what lies in memory already, and with a seed axis they are batched ones.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, relu

from bilevel.parameters import Layout

PADDED = 34  # pixels of a side


@cache
def layout(channels: int) -> Layout:
    """Parameters for images of so many channels.

    Kernels are kept as (height, width, in, out) with the first three in one, in the first layer as (in, height, width,
    out); the inputs of the linear layer as (row, column, channel).
    """
    return Layout(
        {
            "conv1.weight": (16 * channels, 8),
            "conv1.bias": (8,),
            "conv2.weight": (32, 16),
            "conv2.bias": (16,),
            "conv3.weight": (64, 32),
            "conv3.bias": (32,),
            "linear.weight": (10, 128),
            "linear.bias": (10,),
        }
    )


def patches(images: Tensor) -> Tensor:
    """What `forward` takes: of images (N, C, 28, 28) or (N, C, 32, 32), padded with zeros, the 4×4 surroundings of 2×2
    cells.

    (N, 256, 16 C), in which each 4 places, each 4 such groups, and so on, are the cells of a square, row by row.
    """
    count, channels, side, _ = images.shape
    cells = pad(images, ((PADDED - side) // 2,) * 4).unfold(2, 4, 2).unfold(3, 4, 2)
    squares = cells.reshape(count, channels, 2, 2, 2, 2, 2, 2, 2, 2, 16)
    return squares.permute(0, 2, 6, 3, 7, 4, 8, 5, 9, 1, 10).reshape(count, 256, 16 * channels)


def forward(params: Tensor, patches: Tensor) -> Tensor:
    """Logits (N, 10) of `patches` (N, 256, 16 C) at parameters of `layout(C)`."""
    taken = patches.shape[-1]
    p = layout(taken // 16).split(params)
    values = patches
    for layer, inputs in (("conv1", taken), ("conv2", 32), ("conv3", 64)):
        values = relu(torch.addmm(p[f"{layer}.bias"], values.reshape(-1, inputs), p[f"{layer}.weight"]))
    means = values.view(-1, 4, 4, 32).sum(2) / 4
    return linear(means.view(-1, 128), p["linear.weight"], p["linear.bias"])


def initial(generator: torch.Generator, channels: int = 1) -> Tensor:
    """Parameters of `layout(channels)`: kernels normal with variance 2 / fan_in (He et al. 2015), the linear
    layer's weights with 1 / fan_in, biases zero."""
    tensors, shapes = {}, layout(channels)
    for name, shape in shapes.shapes.items():
        tensors[name] = torch.zeros(shape)
        if name.endswith("weight"):
            variance = 1 / shape[1] if name.startswith("linear") else 2 / shape[0]
            tensors[name].normal_(0, math.sqrt(variance), generator=generator)
    return shapes.join(tensors)
