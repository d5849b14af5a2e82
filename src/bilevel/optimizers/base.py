"""What every inner optimizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Optimizer(ABC):
    """s_t = Φ(s_{t−1}, g_t): a step on a state (..., slots, P) whose slot 0 is the parameters.

    g_t is the gradient of the inner loss at the parameters of s_{t−1}.
    """

    slots: ClassVar[int]

    def init(self, params: Tensor) -> Tensor:
        """State (..., slots, P) at parameters (..., P); all other slots are zero."""
        state = params.new_zeros(*params.shape[:-1], self.slots, params.shape[-1])
        state[..., 0, :] = params.detach()
        return state

    def params(self, state: Tensor) -> Tensor:
        """Parameters (..., P) of a state, as a view."""
        return state[..., 0, :]

    def step(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> Tensor:
        """The next state, a new tensor. Settings that are learned are read from `hyper` (..., H)."""
        following = state.clone()
        self.step_(following, gradient, hyper)
        return following

    @abstractmethod
    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """`step` in place, for a state that the caller owns."""

    @abstractmethod
    def adjoint_(self, cotangent: Tensor) -> Tensor:
        """Transposed Jacobians of the step applied to `cotangent` = dL/ds_t (..., slots, P).

        Returns dL/dg_t (..., P), to be multiplied by the Jacobians of the gradient, and leaves in `cotangent` the part
        of dL/ds_{t−1} that does not pass through the gradient.
        """
