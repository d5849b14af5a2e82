"""The small convolutional network of deck 000's hyper-cleaning experiment."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, linear, relu

from bilevel.parameters import Layout

# convolution kernels: (out, height, width, in)
LAYOUT = Layout(
    {
        "conv1.weight": (8, 3, 3, 1),
        "conv1.bias": (8,),
        "conv2.weight": (16, 3, 3, 8),
        "conv2.bias": (16,),
        "conv3.weight": (8, 3, 3, 16),
        "conv3.bias": (8,),
        "linear1.weight": (32, 72),
        "linear1.bias": (32,),
        "linear2.weight": (10, 32),
        "linear2.bias": (10,),
    }
)


def forward(params: Tensor, images: Tensor) -> Tensor:
    """Logits (N, 10) of images (N, 1, 28, 28) at parameters (5074,).

    Three blocks of 3×3 convolution (8, 16, 8 channels, same padding), ReLU and 2×2 average pooling (28-14-7-3), then
    linear 72-32, ReLU, linear 32-10.
    """
    p = LAYOUT.split(params)
    values = images
    for block in ("conv1", "conv2", "conv3"):
        # kernels are kept with their channels last, which is a third faster on the CPU, forwards and backwards
        kernel = p[f"{block}.weight"].movedim(-1, 1)
        values = avg_pool2d(relu(conv2d(values, kernel, p[f"{block}.bias"], padding=1)), 2)
    values = relu(linear(values.flatten(1), p["linear1.weight"], p["linear1.bias"]))
    return linear(values, p["linear2.weight"], p["linear2.bias"])


def initial(generator: torch.Generator) -> Tensor:
    """Parameters (5074,): normal with deviation 1/√fan_in cut off at two deviations, biases zero (haiku's default)."""
    tensors = {}
    for name, shape in LAYOUT.shapes.items():
        tensor = torch.zeros(shape)
        if name.endswith("weight"):
            deviation = 1 / math.sqrt(math.prod(shape[1:]))
            torch.nn.init.trunc_normal_(
                tensor, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
            )
        tensors[name] = tensor
    return LAYOUT.join(tensors)
