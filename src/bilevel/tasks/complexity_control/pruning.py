"""Pruning of the weights that a network can do without, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel.metrics import error
from bilevel.models.complexity import LAYOUT, divided, logits, means_of

SHARES = tuple(range(0, 100, 10))
"""Percent of each layer's weights that are zeroed."""
CHUNK = 1000  # images at once


def relevance(learned: Tensor, variational: bool) -> Tensor:
    """What weights are ranked by: μ²/σ² of those with a distribution (Graves 2011), else w²; (L, 39760)."""
    if not variational:
        return learned.square()
    means, log_deviations = divided(learned)
    return (means / log_deviations.exp()).square()


class Pruning:
    """Networks (L, 39760) at their means, and the order in which each layer's weights go.

    learned: means or, if `variational`, means and ρ.
    """

    def __init__(self, learned: Tensor, variational: bool) -> None:
        self._networks = means_of(learned)
        ranked = LAYOUT.split(relevance(learned, variational))
        self._ranked = {name: ranked[name].flatten(1) for name in ranked if name.endswith("weight")}
        self._order = {name: values.argsort(dim=1, stable=True) for name, values in self._ranked.items()}

    def at(self, percent: int, one_more: bool = False) -> Tensor:
        """The networks without this share of each layer's weights, the least relevant; biases stay.

        Of n weights round(n · percent / 100) are zero.

        one_more: so many and the next one, with all that are no more relevant than it: at 0 % a weight of each layer is
            zero. This is how it was published.
        """
        tensors = {name: part.flatten(1) for name, part in LAYOUT.split(self._networks).items()}
        for name, order in self._order.items():
            count, ranked = round(order.shape[1] * percent / 100), self._ranked[name]
            if one_more:
                zeroed = ranked <= ranked.gather(1, order[:, count : count + 1])
            else:
                zeroed = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order[:, :count], True)
            tensors[name] = tensors[name].masked_fill(zeroed, 0.0)
        return torch.cat([*tensors.values()], dim=1)


def accuracies(
    learned: Tensor, variational: bool, images: Tensor, labels: Tensor, one_more: bool = False
) -> dict[int, list[float]]:
    """Percent of weights pruned -> for each network its accuracy on images (N, 784)."""
    found, pruning = {}, Pruning(learned, variational)
    for percent in SHARES:
        networks = pruning.at(percent, one_more)
        outputs = torch.cat([logits(networks, part) for part in torch.split(images, CHUNK)], dim=1)
        found[percent] = [1 - error(rows, labels) for rows in outputs]
    return found


def accuracy_metrics(curves: Sequence[dict[int, list[float]]], names: Sequence[str], percent: int) -> dict[str, Tensor]:
    """Metric -> values (S,) at a share pruned, from the `accuracies` of each seed: one a network, and their mean.

    names: of the networks.
    """
    values = torch.tensor([curve[percent] for curve in curves], dtype=torch.float64)
    return {
        **{f"accuracy_{name}": column for name, column in zip(names, values.unbind(1), strict=True)},
        "accuracy_mean": values.mean(1),
    }
