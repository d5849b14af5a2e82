"""DrMAD as published (quirk 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, advance
from bilevel.hypergradients.drmad import DrMAD, Line
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.tasks.cleaning_published.products import PlainProducts, credit


@dataclass(frozen=True, config=STRICT)
class PublishedDrMAD(DrMAD):
    """The backward recursion along the line, with the published products.

    Quirk 1: contributions are listed from the last step to the first and read from the first step to the last, so that
    those of step t reach the samples of step T + 1 − t. It has no settings.

    Cost: 2T − 1 products, as `drmad`.

    Memory: two states, the first and the last.

    Source: code of the author's repository for deck 000.
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        products = PlainProducts(derivatives, optimizer.learning_rate)  # type: ignore[attr-defined]
        first, steps = optimizer.params(state), len(batches)
        state = advance(derivatives, optimizer, state, batches, steps)
        derivatives.cost.hold(2)
        line = Line(first, optimizer.params(state), steps)
        outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
        total, vector = torch.zeros_like(derivatives.hyper), outer.params
        for index in reversed(range(steps)):
            contributions = products.b(line[index], batches[index], vector)
            mirrored_ids = batches[steps - 1 - index][2]
            credit(total, mirrored_ids, contributions)
            if index > 0:
                vector = products.a(line[index], batches[index], vector)
        return Estimate(state, total, outer.loss, derivatives.cost)


METHOD = PublishedDrMAD
