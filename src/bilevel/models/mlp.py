"""Networks of linear layers with one smooth activation function between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bilevel.parameters import Layout
from bilevel.problem import Batch

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


class MLP:
    """A network sizes[0] – sizes[1] – … – sizes[−1], its logits those of the last layer.

    `layout` has weight1 (sizes[1], sizes[0]), bias1, weight2, ….
    """

    def __init__(self, sizes: Sequence[int], activation: Literal["tanh", "sigmoid"] = "tanh") -> None:
        self._layers = len(sizes) - 1
        self._activation = ACTIVATIONS[activation]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(1, len(sizes)):
            shapes[f"weight{layer}"] = (sizes[layer], sizes[layer - 1])
            shapes[f"bias{layer}"] = (sizes[layer],)
        self.layout = Layout(shapes)

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, sizes[0]) at parameters (P,)."""
        p, values = self.layout.split(params), images
        for layer in range(1, self._layers + 1):
            values = linear(values, p[f"weight{layer}"], p[f"bias{layer}"])
            if layer < self._layers:
                values = self._activation(values)
        return values

    def loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of one seed over a batch (images, labels); no hyperparameters."""
        images, labels = batch
        return cross_entropy(self.logits(params, images), labels)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Parameters (P,): weights normal with variance 1 / fan_in, biases zero."""
        tensors = {}
        for name, shape in self.layout.shapes.items():
            tensors[name] = torch.zeros(shape)
            if name.startswith("weight"):
                tensors[name].normal_(0, 1 / math.sqrt(shape[1]), generator=generator)
        return self.layout.join(tensors)
