"""Losses of a supernet on batches of domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.architecture import Space, contrastive
from bilevel.tasks.rotated_mnist.images import Batch


@dataclass(frozen=True)
class Losses:
    """Losses `(params (P,), hyper (H,), batch) -> scalar` of one seed, for `Problem`.

    forward: of a `Supernet`, as `functional` gives it. models: M, structures that there are; hyper are their
    structural parameters, one after another. divergence: the structural regularizer of (M, size).
    """

    forward: Callable[..., Any]
    space: Space
    models: int
    beta_struct: float
    beta_contr: float
    margin: float
    divergence: Callable[[Tensor], Tensor]

    def single(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the first of K batches, and, where there is a second one, β_contr times the contrastive
        loss of the first with respect to the second."""
        logits, hidden = self._outputs(params, hyper, batch, 0)
        loss = cross_entropy(logits, batch.labels[0])
        if batch.labels.shape[0] == 1:
            return loss
        _, other = self._outputs(params, hyper, batch, 1)
        return loss + self.beta_contr * contrastive(hidden, batch.labels[0], other, batch.labels[1], self.margin)

    def single_outer(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """`single` and β_struct times the divergence."""
        return self.single(params, hyper, batch) + self._structural(hyper)

    def joint_outer(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The mean cross-entropy of all K batches, β_contr times the mean contrastive loss of all K² pairs of them, and
        β_struct times the divergence."""
        count = batch.labels.shape[0]
        found = [self._outputs(params, hyper, batch, index) for index in range(count)]
        losses = [cross_entropy(logits, labels) for (logits, _), labels in zip(found, batch.labels, strict=True)]
        loss = torch.stack(losses).mean() + self._structural(hyper)
        if self.beta_contr == 0:
            return loss
        pairs = [
            contrastive(found[a][1], batch.labels[a], found[b][1], batch.labels[b], self.margin)
            for a, b in product(range(count), repeat=2)
        ]
        return loss + self.beta_contr * torch.stack(pairs).mean()

    def _outputs(self, params: Tensor, hyper: Tensor, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Logits (B, 10) and hidden representations (B, F) of one of the batches."""
        domain = batch.domains[index]
        structure = hyper.view(self.models, -1).index_select(0, domain.view(1))[0]
        logits, hidden = self.forward(params, batch.images[index], domain, self.space.mixture(structure))
        return logits, hidden.flatten(0, 1).t()

    def _structural(self, hyper: Tensor) -> Tensor:
        if self.beta_struct == 0:
            return hyper.new_zeros(())
        return self.beta_struct * self.divergence(hyper.view(self.models, -1))
