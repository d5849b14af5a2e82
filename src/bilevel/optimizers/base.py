"""What every inner optimizer offers: steps, and products with the transposed Jacobians of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.problem import Batch
from bilevel.settings import STRICT as STRICT

Adjoint = Callable[[Tensor, Tensor | None], Tensor]
"""`GradientOptimizer.adjoint_` of a step that is known: of cotangent (S, slots, P) and `to_hyper`."""


class LinearStep(ABC):
    """One inner step s_t = Φ(s_{t−1}, λ) at a known s_{t−1}, ready for products with A_t = ∂s_t/∂s_{t−1} and
    B_t = ∂s_t/∂λ."""

    @abstractmethod
    def advance_(self, state: Tensor) -> None:
        """s_{t−1} becomes s_t, in place."""

    @abstractmethod
    def pull_back_(self, cotangent: Tensor, to_hyper: Tensor | None, *, to_state: bool = True) -> None:
        """cotangent = dL/ds_t (S, slots, P) becomes A_tᵀ cotangent, and to_hyper (S, H) += B_tᵀ cotangent.

        to_hyper: None where the product with B_t is not wanted.
        to_state: False where the one with A_t is not; `cotangent` is then left without meaning.
        """

    def settle(self) -> None:  # noqa: B027  # there need not be anything
        """Let go of what only `advance_` needs; it is not called again."""


class Optimizer(ABC):
    """s_t = Φ(s_{t−1}, λ; batch) on a state (S, slots, P) whose slot 0 is the parameters.

    A setting that is `Learned` is read from the hyperparameters.
    """

    @property
    @abstractmethod
    def slots(self) -> int:
        """Number of vectors that make up a state."""

    @property
    def tape_slots(self) -> int:
        """How many slots of s_{t−1}, from the first, `linearize` reads; what exact reverse mode has to keep."""
        return self.slots

    def init(self, params: Tensor) -> Tensor:
        """State (..., slots, P) at parameters (..., P); all other slots are zero."""
        state = params.new_zeros(*params.shape[:-1], self.slots, params.shape[-1])
        state[..., 0, :] = params.detach()
        return state

    def params(self, state: Tensor) -> Tensor:
        """Parameters (..., P) of a state, as a view."""
        return state[..., 0, :]

    @abstractmethod
    def advance_(self, derivatives: Derivatives, state: Tensor, batch: Batch) -> None:
        """s_{t−1} becomes s_t, in place."""

    @abstractmethod
    def linearize(self, derivatives: Derivatives, taped: Tensor, batch: Batch) -> LinearStep:
        """The step from `taped` (S, tape_slots or more, P), the leading slots of s_{t−1}.

        `taped` is not copied: it must stay as it is for as long as products are asked for.
        """


class GradientOptimizer(Optimizer):
    """An optimizer that looks at one gradient a step, g_t = ∂L₁/∂w at the parameters of s_{t−1}.

    A subclass gives the update as a function of state and gradient, and the adjoint of that function in closed form;
    what the gradient itself depends on is added here.
    """

    vectors: ClassVar[int]
    """Number of slots without the count of steps."""

    @property
    @abstractmethod
    def counts(self) -> bool:
        """Whether steps are counted, in the first entry of one more slot, the last one."""

    @property
    def slots(self) -> int:
        """Vectors of the state, and a slot for the count where steps are counted."""
        return self.vectors + self.counts

    def count(self, state: Tensor) -> Tensor | None:
        """Number of steps done, (..., 1), a view; None where they are not counted."""
        return state[..., -1, :1] if self.counts else None

    @property
    def adjoint_reads_gradient(self) -> bool:
        """Whether `adjoint_` needs the gradient's value."""
        return True

    def is_sensitive(self, taped: Tensor, gradient: Tensor) -> bool:
        """Whether rounding of the gradient g_t, in its own precision, would be seen in the adjoint."""
        return False

    def step(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> Tensor:
        """The next state, a new tensor; all shapes with or all without the seed axis."""
        following = state.clone()
        self.step_(following, gradient, hyper)
        return following

    @abstractmethod
    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """`step` in place, for a state that the caller owns."""

    def step_with_adjoint_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> Adjoint:
        """`step_` with its adjoint; an optimizer whose adjoint would compute much of a step again keeps it instead."""
        taped, read = state.narrow(-2, 0, self.tape_slots).clone(), gradient if self.adjoint_reads_gradient else None
        self.step_(state, gradient, hyper)
        return lambda cotangent, to_hyper: self.adjoint_(cotangent, taped, read, hyper, to_hyper)

    @abstractmethod
    def adjoint_(
        self,
        cotangent: Tensor,
        taped: Tensor,
        gradient: Tensor | None,
        hyper: Tensor,
        to_hyper: Tensor | None,
    ) -> Tensor:
        """Transposed Jacobians of `step_` applied to `cotangent` = dL/ds_t (S, slots, P).

        Returns dL/dg_t (S, P), to be multiplied by the Jacobians of the gradient; leaves in `cotangent` the part of
        dL/ds_{t−1} that does not pass through the gradient, and adds to `to_hyper` (S, H) that of learned settings.

        taped: leading slots of s_{t−1}; gradient: g_t, None where `adjoint_reads_gradient` is False, in double
            precision where `is_sensitive` said so.
        """

    def advance_(self, derivatives: Derivatives, state: Tensor, batch: Batch) -> None:
        """See `Optimizer`."""
        self.step_(state, derivatives.borrowed_gradient(self.params(state), batch), derivatives.hyper)

    def linearize(self, derivatives: Derivatives, taped: Tensor, batch: Batch) -> GradientStep:
        """See `Optimizer`."""
        return GradientStep(self, derivatives, taped, batch)


class GradientStep(LinearStep):
    """One step of a `GradientOptimizer`."""

    def __init__(self, optimizer: GradientOptimizer, derivatives: Derivatives, taped: Tensor, batch: Batch) -> None:
        self._optimizer, self._derivatives, self._taped, self._batch = optimizer, derivatives, taped, batch
        self.inner = derivatives.linearize(optimizer.params(taped), batch)

    def advance_(self, state: Tensor) -> None:
        """See `LinearStep`."""
        self._optimizer.step_(state, self.inner.gradient, self._derivatives.hyper)

    def settle(self) -> None:
        """See `LinearStep`."""
        if not self._optimizer.adjoint_reads_gradient:
            self.inner.forget_gradient()

    def pull_back_(self, cotangent: Tensor, to_hyper: Tensor | None, *, to_state: bool = True) -> None:
        """See `LinearStep`."""
        optimizer, hyper = self._optimizer, self._derivatives.hyper
        vector = optimizer.adjoint_(cotangent, self._taped, self._gradient(), hyper, to_hyper)
        self.inner.add_products(vector, optimizer.params(cotangent) if to_state else None, to_hyper)

    def _gradient(self) -> Tensor | None:
        if not self._optimizer.adjoint_reads_gradient:
            return None
        gradient = self.inner.gradient
        if not self._optimizer.is_sensitive(self._taped, gradient):
            return gradient
        return self._derivatives.precise_gradient(self._optimizer.params(self._taped), self._batch)
