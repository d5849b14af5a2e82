"""Exact reverse mode along the chain run backwards, in fixed-point numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, cotangent_of
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch
from bilevel.reversible_dynamics import FRACTION_BITS, SQUARE_FRACTION_BITS, ReversibleChain


@dataclass(frozen=True, config=STRICT)
class Reversible(Hypergradient):
    """The sum of `unrolled`, with s_{t−1} found from s_t by undoing the step instead of being stored.

    Exact for the chain in fixed-point numbers, which is that of the optimizer up to the resolution: steps are those of
    `bilevel.reversible_dynamics.ReversibleChain`. Holds one state besides the current one, in integers, and
    Σ_γ log₂(1/γ) bits a step and parameter, where γ are the optimizer's factors; one gradient a step on the way back
    serves both the inverse and the products. Heavy-ball `Momentum` and `Adam` only, with factors such as 0.9 that are
    fixed rationals; learning rate and weight decay may be learned, and so may momentum, whose factors are rounded to
    n/2^20 then, each step and each group its own.

    fraction_bits: D, for resolution 2^−D and range 2^(62 − D) of parameters and averages of gradients.
    square_fraction_bits: D of Adam's average of squared gradients; gradients may reach 2^(31 − D/2).

    A seed of which a number leaves the range of fixed-point numbers is NaN in the result, with a warning that says
    which setting would do; the other seeds are as they would be without it.

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
        for index in range(len(batches)):
            params = chain.params()
            # the gradient as on the way back: computed in another way it may be rounded differently
            chain.advance_(params, derivatives.repeatable_gradient(params, batches[index]))
        last = chain.state()
        derivatives.cost.hold(1)
        derivatives.cost.bits = chain.bits
        outer = derivatives.outer_gradient(optimizer.params(last), outer_batch)
        hypergradient = outer.hyper.clone()
        cotangent = cotangent_of(optimizer, last, outer.params)
        for index in reversed(range(len(batches))):
            _pull_back_(chain, derivatives, optimizer, cotangent, hypergradient, batches[index], to_state=index > 0)
        if not chain.is_back_at(state):
            raise RuntimeError(
                "reversible: the way back did not end where the inner optimization started. Some gradient was not the "
                "same, bit for bit, when computed a second time: batches must be the same each time they are asked "
                "for, the loss must draw no random numbers, and on a GPU torch.use_deterministic_algorithms(True) may "
                "be needed"
            )
        return Estimate(last, hypergradient, outer.loss, derivatives.cost)


def _pull_back_(
    chain: ReversibleChain,
    derivatives: Derivatives,
    optimizer: GradientOptimizer,
    cotangent: Tensor,
    to_hyper: Tensor,
    batch: Batch,
    *,
    to_state: bool,
) -> None:
    """The chain goes back one step, and the products with its Jacobians are those of `LinearStep.pull_back_`."""
    chain.retreat_params_()
    params = chain.params()
    inner = derivatives.linearize(params, batch)
    gradient = inner.gradient
    chain.retreat_averages_(params, gradient)
    taped = params.unsqueeze(-2) if optimizer.tape_slots == 1 else chain.state()
    read = gradient if optimizer.adjoint_reads_gradient else None
    vector = optimizer.adjoint_(cotangent, taped, read, derivatives.hyper, to_hyper)
    inner.add_products(vector, optimizer.params(cotangent) if to_state else None, to_hyper)


METHOD = Reversible
