"""The deck's program: add or subtract one until the number is in [0, 1)."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import SGD
from bilevel.problem import Problem
from bilevel.tasks.algorithms.base import STRICT, Algorithm, Finite


@dataclass(frozen=True, config=STRICT)
class Mod1(Algorithm):
    """mod1(x) = mod1_k(x) = x + k with k = c(x), the number of ones added less that of ones subtracted.

    As an inner optimization: w_0 = 0 is what was added so far, each round of the loop is a descent step with η = 1 on
    L₁ = −s w, s = ±1 the sign of the round, and L₂ = x + w.

    low, high: range of x.

    Source: deck 001, slide "Алгоритм".
    """

    low: Finite = -2.5
    high: Finite = 2.5

    def pieces(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Algorithm`."""
        left, added = inputs.clone(), torch.zeros_like(inputs)
        while bool((more := self._sign(left)).any()):
            left, added = left + more, added + more
        value, derivative = inputs.clone(), torch.zeros_like(inputs)
        for piece in sorted(set(added.tolist())):
            on = added == piece
            value[on], derivative[on] = self._piece(inputs[on], round(piece))
        return added.round().long(), value, derivative

    @staticmethod
    def _sign(number: Tensor) -> Tensor:
        """What the next round adds; 0 where the loop ends."""
        return (number < 0).double() - (number >= 1).double()

    @staticmethod
    def _piece(inputs: Tensor, added: int) -> tuple[Tensor, Tensor]:
        sign = 1.0 if added > 0 else -1.0
        problem = Problem(lambda w, x, batch: -sign * w.sum(), lambda w, x, batch: (x + w).sum())
        optimizer, hyper = SGD(learning_rate=1.0), inputs.unsqueeze(-1)
        start = optimizer.init(torch.zeros_like(hyper))
        estimate = Unrolled()(problem, optimizer, start, hyper, [None] * abs(added), None)
        return estimate.outer_loss, estimate.hypergradient.squeeze(-1)


METHOD = Mod1
