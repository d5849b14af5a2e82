"""Exact reverse mode along the chain run backwards, in fixed-point numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives, Linearization, Replayed
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, cotangent_of
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch
from bilevel.reversible_dynamics import FRACTION_BITS, SQUARE_FRACTION_BITS, ReversibleChain


@dataclass(frozen=True, config=STRICT)
class Reversible(Hypergradient):
    """The sum of `unrolled`, with s_{t−1} found from s_t by undoing the step instead of being stored.

    Exact for the chain in fixed-point numbers, which is that of the optimizer up to the resolution: steps are those of
    `bilevel.reversible_dynamics.ReversibleChain`. Heavy-ball `Momentum` and `Adam` only, with factors such as 0.9 that
    are fixed rationals; learning rate and weight decay may be learned, and so may momentum, whose factors are rounded
    to n/2^20 then, each step and each group its own.

    fraction_bits: D, for resolution 2^−D and range 2^(62 − D) of parameters and averages of gradients.
    square_fraction_bits: D of Adam's average of squared gradients; gradients may reach 2^(31 − D/2).

    A seed of which a number leaves the range of fixed-point numbers is NaN in the result, with a warning that says
    which setting would do; the other seeds are as they would be without it.

    Cost: 2T − 1 products, as `unrolled`, and 2T − 1 gradients: one a step on the way back serves both the inverse and
    the products, and the last step on the way there is the first on the way back.

    Memory: one state besides the current one, in integers, and Σ_γ log₂(1/γ) bits a step and parameter, where γ are the
    optimizer's factors.

    Raises ValueError for an optimizer whose steps cannot be undone, and RuntimeError where the way back does not end at
    the very bits it started from, since a gradient was not the same when computed a second time.

    Source: Maclaurin et al. 2015, algorithms 2 and 3; deck 001.
    """

    fraction_bits: Annotated[int, Field(ge=8, le=60)] = FRACTION_BITS
    square_fraction_bits: Annotated[int, Field(ge=8, le=60)] = SQUARE_FRACTION_BITS

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        chain = ReversibleChain(optimizer, derivatives.hyper, state, self.fraction_bits, self.square_fraction_bits)
        assert isinstance(optimizer, GradientOptimizer)  # a chain is made of no other
        turn = _advance_(chain, derivatives, batches)
        last = chain.state()
        derivatives.cost.hold(1)
        derivatives.cost.bits = chain.bits
        outer = derivatives.outer_gradient(optimizer.params(last), outer_batch)
        hypergradient = outer.hyper.clone()
        cotangent = cotangent_of(optimizer, last, outer.params)
        for index in reversed(range(len(batches))):
            chain.retreat_params_()
            params = chain.params()
            inner, turn = turn or derivatives.linearize(params, batches[index]), None
            chain.retreat_averages_(params, inner.gradient)
            taped = params.unsqueeze(-2) if optimizer.tape_slots == 1 else chain.borrowed_state()
            read = inner.gradient if optimizer.adjoint_reads_gradient else None
            vector = optimizer.adjoint_(cotangent, taped, read, derivatives.hyper, hypergradient)
            inner.add_products(vector, optimizer.params(cotangent) if index > 0 else None, hypergradient)
        if not chain.is_back_at(state):
            raise RuntimeError(
                "reversible: the way back did not end where the inner optimization started. Some gradient was not the "
                "same, bit for bit, when computed a second time: batches must be the same each time they are asked "
                "for, the loss must draw no random numbers, and on a GPU torch.use_deterministic_algorithms(True) may "
                "be needed"
            )
        return Estimate(last, hypergradient, outer.loss, derivatives.cost)


def _advance_(
    chain: ReversibleChain, derivatives: Derivatives, batches: Sequence[Batch]
) -> Linearization | Replayed | None:
    """All steps; what the last of them was linearized to, since it is the first on the way back."""
    inner = None
    for index in range(len(batches)):
        params = chain.params()
        if index + 1 < len(batches):
            # the gradient as on the way back: computed in another way it may be rounded differently
            gradient = derivatives.repeatable_gradient(params, batches[index])
        else:
            inner = derivatives.linearize(params, batches[index])
            gradient = inner.gradient
        chain.advance_(params, gradient)
    return inner


METHOD = Reversible
