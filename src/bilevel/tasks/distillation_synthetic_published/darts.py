"""The published hypergradient (quirk 3)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Adam, Optimizer
from bilevel.problem import Batch

HALF_WIDTH = 0.01
"""Length of the step to either side."""


@dataclass(frozen=True, config=STRICT)
class PublishedDARTS(Hypergradient):
    """−η (∂L₁/∂λ(w + ε v) − ∂L₁/∂λ(w − ε v)) ε / 2,  v = ∂L₂/∂w(w′),  ε = 0.01 / ‖v‖,  η the step size of the weights.

    w′ is one step of Adam ahead of w on the last batch, a virtual one whose averages are thrown away; its bias
    corrections are those of the number of steps done before it.

    The quotient of DARTS would end in / 2ε; the code's `/ 2.*eps` multiplies. The logs are those of the product: its
    factor ε² = 10⁻⁴ / ‖v‖² makes the hypergradient about as small as the 10⁻⁸ that Adam adds to its denominator, so
    that metaparameters come to rest (T at 0.3582 in the log of e = 10, n = 2, where with the quotient it goes on
    wandering by a percent). The factor −η is the derivative of a step of plain gradient descent, although the step is
    one of Adam.

    Order: the run updates λ at w, then w with the new λ. Here w is advanced first, with the λ of before, and λ is
    updated at the w that this leads to. That is the same alternation, begun half an iteration later: only the run's
    first update of λ, at the first weights, which have no virtual step, is left out.

    The outer loss is that of w′. It has no settings.

    Cost: five gradients for one inner step; no products.

    Memory: no stored state.

    Source: hyperparams.py and notebook simple_exp_splines of the author's repository; Liu et al. 2019, equation 8.
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        assert isinstance(optimizer, Adam)
        rate = optimizer.learning_rate
        assert isinstance(rate, float)
        state = advance(derivatives, optimizer, state, batches, len(batches))
        params, last = optimizer.params(state), batches[len(batches) - 1]
        virtual = state.clone()
        count = optimizer.count(virtual)
        assert count is not None
        count.sub_(1)
        optimizer.advance_(derivatives, virtual, last)
        outer = derivatives.outer_gradient(optimizer.params(virtual), outer_batch)
        width = HALF_WIDTH / outer.params.norm(dim=-1, keepdim=True)
        shift = width * outer.params
        above = derivatives.inner_hyper_gradient(params + shift, last)
        below = derivatives.inner_hyper_gradient(params - shift, last)
        hypergradient = (above - below) * (width * (-rate / 2))
        return Estimate(state, hypergradient, outer.loss, derivatives.cost)


METHOD = PublishedDARTS
