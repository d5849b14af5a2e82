"""A chain and its way back; the method of the task `chains`."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from bilevel.hypergradients.base import STRICT
from bilevel.optimizers import LBFGS, Adam, Fixed, Momentum, Optimizer
from bilevel.settings import Configurable, Positive


@dataclass(frozen=True, config=STRICT)
class Inverted(Configurable):
    """A chain w_0 … w_T of one optimizer in one arithmetic, and the same chain run backwards from its last state.

    optimizer: `momentum` (0.9), `adam` (0.9, 0.999, averages started as in deck 001) or `lbfgs` (10 pairs, fixed step).
    arithmetic: of the whole chain; `fixed_point` is in whole numbers, for momentum and Adam only.
    learning_rate: of the optimizer.
    """

    optimizer: Literal["momentum", "adam", "lbfgs"]
    arithmetic: Literal["float32", "float64", "fixed_point"]
    learning_rate: Positive

    @field_validator("arithmetic")
    @classmethod
    def _has_an_inverse(cls, arithmetic: str, info: ValidationInfo) -> str:
        if arithmetic == "fixed_point" and info.data.get("optimizer") == "lbfgs":
            raise ValueError("steps of lbfgs have no closed inverse, in fixed-point numbers neither; use float64")
        return arithmetic

    def make(self) -> Optimizer:
        """The optimizer itself."""
        if self.optimizer == "momentum":
            return Momentum(learning_rate=self.learning_rate, momentum=0.9)
        if self.optimizer == "adam":
            return Adam(learning_rate=self.learning_rate, bias="first_gradient")
        return LBFGS(step_size=Fixed(learning_rate=self.learning_rate), memory=10)


METHOD = Inverted
