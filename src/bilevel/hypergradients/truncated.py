"""Truncated reverse mode: the last steps only. One step is T1–T2."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, linear_step_
from bilevel.hypergradients.reverse import estimate_back, train
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Count


@dataclass(frozen=True, config=STRICT)
class Truncated(Hypergradient):
    """∂L₂/∂λ + Σ_{t > T−K} B_t A_{t+1} … A_T ∂L₂/∂w_T.

    steps: K. With 1 the graph of the last training step itself is used. K ≥ T is exact.

    Cost: 2K − 1 products: K mixed ones and K − 1 with the Hessian.

    Memory: K states; none with K = 1.

    Source: Luketina et al. 2016 (T1–T2, K = 1); Shaban et al. 2019 (any K).
    """

    steps: Count = 1

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        kept = min(self.steps, len(batches))
        state = advance(derivatives, optimizer, state, batches, len(batches) - kept)
        if kept == 1:
            return _last_step(derivatives, optimizer, state, batches[len(batches) - 1], outer_batch)
        last = [batches[index] for index in range(len(batches) - kept, len(batches))]
        state, trajectory = train(derivatives, optimizer, state, last)
        return estimate_back(derivatives, optimizer, state, trajectory, last, outer_batch)


def _last_step(
    derivatives: Derivatives, optimizer: Optimizer, state: Tensor, batch: Batch, outer_batch: Batch
) -> Estimate:
    step, outer, cotangent = linear_step_(derivatives, optimizer, state, batch, outer_batch)
    hypergradient = outer.hyper.clone()
    step.pull_back_(cotangent, hypergradient, to_state=False)
    return Estimate(state, hypergradient, outer.loss, derivatives.cost)


METHOD = Truncated
