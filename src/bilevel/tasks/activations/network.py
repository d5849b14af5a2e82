"""Networks whose activation functions and priors are mixtures of several kinds, with weights to be learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bilevel.models.mlp import MLP
from bilevel.parameters import Layout
from bilevel.problem import Batch

Activation = Literal["mixture", "equal", "tanh", "relu", "sigmoid", "identity", "sine"]
Prior = Literal["mixture", "l2", "l1", "none"]

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda values: values,
    "sine": torch.sin,
}
ROUND = 0.01
"""ε of the smoothed absolute value √(w² + ε²) − ε."""
KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda weights: weights.square().sum() / 2,
    "l1": lambda weights: ((weights.square() + ROUND**2).sqrt() - ROUND).sum(),
    "none": lambda weights: weights.new_zeros(()),
}
"""Minus the logarithm of a prior of unit strength, up to a constant: normal, Laplace with its tip rounded, flat."""


class MixedNetwork:
    """A network sizes[0] – sizes[1] – … – sizes[−1] with, after hidden layer l, the activation Σ_j p_lj f_j,
    p_l = softmax(θ_l), and the penalty Σ_l exp(ρ_l) Σ_k q_lk R_k(W_l), q_l = softmax(φ_l), on weights without biases.

    activation: `mixture`: θ are hyperparameters; `equal`: p_lj = 1/5; otherwise one function everywhere.
    prior: `mixture`: ρ and φ are hyperparameters; `l2` or `l1`: ρ are; `none`: there is no penalty.

    `layout` has weight1 (sizes[1], sizes[0]), bias1, …; `hyper_layout` has, where these are hyperparameters,
    `activations` θ (hidden layers, 5), `levels` ρ (layers,), `kinds` φ (layers, 3).

    A mixture of penalties stands for a product of powers of the priors' densities, not for a mixture of these.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation, prior: Prior) -> None:
        self.layers, self._activation, self._prior = len(sizes) - 1, activation, prior
        self._plain = MLP(sizes)  # whose weights these are too
        self.layout = self._plain.layout
        learned: dict[str, tuple[int, ...]] = {}
        if activation == "mixture":
            learned["activations"] = (self.layers - 1, len(FUNCTIONS))
        if prior != "none":
            learned["levels"] = (self.layers,)
        if prior == "mixture":
            learned["kinds"] = (self.layers, len(KINDS))
        self.hyper_layout = Layout(learned)

    def logits(self, params: Tensor, hyper: Tensor, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, sizes[0]) at parameters (P,) and hyperparameters (H,)."""
        p, values = self.layout.split(params), images
        shares = self._activation_shares(hyper)
        for layer in range(1, self.layers + 1):
            values = linear(values, p[f"weight{layer}"], p[f"bias{layer}"])
            if layer < self.layers:
                values = _mixed(shares[layer - 1], FUNCTIONS, values)
        return values

    def loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over a batch (images, labels)."""
        images, labels = batch
        return cross_entropy(self.logits(params, hyper, images), labels)

    def penalized_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """`loss` with the penalty."""
        loss = self.loss(params, hyper, batch)
        if self._prior == "none":
            return loss
        p, levels, shares = (
            self.layout.split(params),
            self.hyper_layout.split(hyper)["levels"],
            self._kind_shares(hyper),
        )
        for layer in range(self.layers):
            loss = loss + levels[layer].exp() * _mixed(shares[layer], KINDS, p[f"weight{layer + 1}"])
        return loss

    def initial(self, generator: torch.Generator) -> Tensor:
        """Parameters (P,): weights normal with variance 1 / fan_in, biases zero."""
        return self._plain.initial(generator)

    def first_hyper(self, level: float) -> Tensor:
        """Hyperparameters (H,): all kinds alike, and this ρ for every layer."""
        starts = {"activations": 0.0, "levels": level, "kinds": 0.0}
        parts = [torch.full((math.prod(shape),), starts[name]) for name, shape in self.hyper_layout.shapes.items()]
        return torch.cat([torch.zeros(0), *parts])

    def clamped(self, hyper: Tensor, low: float, high: float) -> Tensor:
        """Hyperparameters (S, H) with every ρ between these."""
        names = list(self.hyper_layout.shapes)
        if "levels" not in names:
            return hyper
        place, clamped = names.index("levels"), hyper.clone()
        first, size = sum(self.hyper_layout.sizes[:place]), self.hyper_layout.sizes[place]
        clamped.narrow(-1, first, size).clamp_(low, high)
        return clamped

    def weights(self, hyper: Tensor) -> dict[str, Tensor]:
        """Of hyperparameters (S, H), whichever are there: `weight_<function or kind>_<layer>` and `level_<layer>`, each
        (S,)."""
        found: dict[str, Tensor] = {}
        learned = self._learned(hyper)
        for part, kinds in (("activations", FUNCTIONS), ("kinds", KINDS)):
            if part in learned:
                shares = learned[part].softmax(-1)
                for layer in range(shares.shape[1]):
                    found |= {f"weight_{kind}_{layer + 1}": shares[:, layer, j] for j, kind in enumerate(kinds)}
        if "levels" in learned:
            found |= {f"level_{layer + 1}": learned["levels"][:, layer] for layer in range(self.layers)}
        return found

    def _learned(self, hyper: Tensor) -> dict[str, Tensor]:
        return self.hyper_layout.split(hyper) if self.hyper_layout.size else {}

    def _activation_shares(self, hyper: Tensor) -> Sequence[Mapping[str, Tensor | float]]:
        """What each function counts for, by hidden layer."""
        if self._activation == "mixture":
            rows = self.hyper_layout.split(hyper)["activations"].softmax(-1)
            return [dict(zip(FUNCTIONS, row.unbind(-1), strict=True)) for row in rows.unbind(-2)]
        kinds = FUNCTIONS if self._activation == "equal" else [self._activation]
        return [dict.fromkeys(kinds, 1 / len(kinds))] * (self.layers - 1)

    def _kind_shares(self, hyper: Tensor) -> Sequence[Mapping[str, Tensor | float]]:
        """What each kind of prior counts for, by layer."""
        if self._prior == "mixture":
            rows = self.hyper_layout.split(hyper)["kinds"].softmax(-1)
            return [dict(zip(KINDS, row.unbind(-1), strict=True)) for row in rows.unbind(-2)]
        return [{self._prior: 1.0}] * self.layers


def _mixed(
    shares: Mapping[str, Tensor | float], functions: Mapping[str, Callable[[Tensor], Tensor]], values: Tensor
) -> Tensor:
    """Σ_j p_j f_j(values)."""
    parts = [
        functions[name](values) if isinstance(share, float) and share == 1 else share * functions[name](values)
        for name, share in shares.items()
    ]
    return sum(parts[1:], parts[0])
