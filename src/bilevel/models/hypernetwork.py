"""Hypernetworks: networks whose outputs are the weights of another network, and whose input are hyperparameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from bilevel.parameters import Layout


class Hypernetwork:
    """w_φ(λ) = A λ + b, or, with hidden units, A max(0, U λ + v) + b, where φ is all of A, b, U, v.

    inputs: H, the number of hyperparameters. outputs: P, the number of weights. hidden: of ReLU units; 0: none.

    Source: Ha, Dai and Le 2016; Lorraine and Duvenaud 2018, section 2.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 0) -> None:
        self.hidden = hidden
        first = {"hidden.weight": (hidden, inputs), "hidden.bias": (hidden,)} if hidden else {}
        last = {"output.weight": (outputs, hidden or inputs), "output.bias": (outputs,)}
        self.layout = Layout({**first, **last})

    def forward(self, params: Tensor, levels: Tensor) -> Tensor:
        """Weights (..., P) at hyperparameters (..., H), for parameters φ (size,)."""
        p = self.layout.split(params)
        values = relu(linear(levels, p["hidden.weight"], p["hidden.bias"])) if self.hidden else levels
        return linear(values, p["output.weight"], p["output.bias"])

    def initial(self, scale: float, generator: torch.Generator) -> Tensor:
        """Parameters (size,), weights and biases alike normal with this standard deviation, as they were published."""
        return scale * torch.randn(self.layout.size, generator=generator)
