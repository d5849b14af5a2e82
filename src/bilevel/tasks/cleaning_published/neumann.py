"""IFT(N, K) as published (quirk 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, advance
from bilevel.hypergradients.neumann import Neumann
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.tasks.cleaning_published.products import PlainProducts, credit


@dataclass(frozen=True, config=STRICT)
class PublishedNeumann(Neumann):
    """N + 1 Neumann terms after each of the last K steps, with the published products.

    Quirk 2: products are taken on the last of all T batches, whichever step they follow, so that they belong to the
    places of that batch. The list of K contributions is then repeated T/K times and read along all T steps: step t's
    samples receive contribution number t mod K.

    terms: N. last_steps: K. step_size: not used by the published code; leave it out.

    Cost: (N + 1) K products.

    Memory: no stored state.

    Source: code of the author's repository for deck 000.
    """

    step_size: None = None  # the published products are those of plain descent already

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        products = PlainProducts(derivatives, optimizer.learning_rate)  # type: ignore[attr-defined]
        count = min(self.last_steps, len(batches))
        state = advance(derivatives, optimizer, state, batches, len(batches) - count)
        last, contributions = batches[len(batches) - 1], []
        for index in range(len(batches) - count, len(batches)):
            optimizer.advance_(derivatives, state, batches[index])
            outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
            term = series = outer.params
            for _ in range(self.terms):
                term = products.a(optimizer.params(state), last, term)
                series = series + term
            contributions.append(products.b(optimizer.params(state), last, series))
        total = torch.zeros_like(derivatives.hyper)
        for index in range(len(batches)):
            credit(total, batches[index][2], contributions[index % count])
        return Estimate(state, total, outer.loss, derivatives.cost)


METHOD = PublishedNeumann
