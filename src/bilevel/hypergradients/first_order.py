"""The direct part of the hypergradient alone, as in the first-order variant of DARTS."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class FirstOrder(Hypergradient):
    """∂L₂/∂λ at w_T: the parameters are taken not to depend on λ.

    Zero where the outer loss does not see the hyperparameters. Of use where it does, as with structural parameters. It
    has no settings.

    Cost: one outer gradient; no products.

    Memory: no stored state.

    Source: Liu et al. 2019, section 2.3, "First-order approximation".
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state = advance(derivatives, optimizer, state, batches, len(batches))
        outer = derivatives.outer_gradient(optimizer.params(state), outer_batch)
        return Estimate(state, outer.hyper, outer.loss, derivatives.cost)


METHOD = FirstOrder
