"""Locally linear prediction of a trajectory: hypergradients of some outer steps, and a line in place of the others."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bilevel.checkpoint import State


class LocallyLinear(BaseModel):
    """When outer steps are optimized and when they are predicted, and what a line is fitted to.

    Outer steps come in mini-epochs of `length` steps. Every `every`-th of them, the first included, is optimized as
    usual, so that at most one hypergradient in `every` is evaluated; in the others the hyperparameters follow the
    least-squares line through what was recorded in the last optimized one, for each seed and each hyperparameter by
    itself. See `Prediction`.

    length: e, the number of steps that a line is fitted to.
    every: n, one mini-epoch of so many is optimized.
    of: what is recorded and predicted. `gradients`: hypergradients, and the predicted ones go to the same outer
        optimizer. `values`: the hyperparameters after each update, and the predicted ones take their place; the outer
        optimizer stands still meanwhile.

    Source: deck 004, the hypothesis that the trajectory is locally linear (`gradients` is what was run for the deck);
    Gorpinich, Bakhteev and Strijov 2022 (`values`, e₁ = e and e₂ = (n − 1) e).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    length: Annotated[int, Field(ge=2)]
    every: Annotated[int, Field(ge=2)]
    of: Literal["gradients", "values"] = "gradients"


class Prediction:
    """The line y(i) = ȳ + b (i − m) by least squares through y_0, …, y_{e−1}, continued at i = e, e + 1, …

    m = (e − 1) / 2,  ȳ = Σ y_i / e,  b = Σ (i − m) y_i / (e (e² − 1) / 12): both sums are kept in double precision, so
    that memory is that of two vectors whatever e is. The index i is 0 at the first step of an optimized mini-epoch and
    goes on over the predicted ones until the next optimized one.
    """

    def __init__(self, settings: LocallyLinear) -> None:
        self.settings = settings
        self._recorded = 0
        self._sum = self._moment = torch.empty(0)
        self._dtype = torch.float64

    def optimizes(self, step: int) -> bool:
        """Whether outer step `step`, counted from 0, belongs to an optimized mini-epoch."""
        return self._index(step) < self.settings.length

    def record(self, step: int, values: Tensor) -> None:
        """Take down the values (S, H) of an optimized step.

        Raises ValueError for a predicted step, and where a step of its mini-epoch was left out before.
        """
        index = self._index(step)
        if index == 0:
            self._sum = torch.zeros_like(values, dtype=torch.float64)
            self._moment = torch.zeros_like(self._sum)
            self._recorded, self._dtype = 0, values.dtype
        if not self.optimizes(step) or index != self._recorded:
            raise ValueError(
                f"outer step {step} cannot be recorded: expected the optimized steps of a mini-epoch one after the "
                f"other, {self.settings}, and {self._recorded} of this one are recorded"
            )
        values = values.detach().double()
        self._sum.add_(values)
        self._moment.add_(values, alpha=index - self._center)
        self._recorded += 1

    def predict(self, step: int) -> Tensor:
        """Values (S, H) of the line at a step, in the type of those recorded.

        Raises ValueError where the optimized mini-epoch before it was not recorded to its end.
        """
        length = self.settings.length
        if self._recorded != length:
            raise ValueError(
                f"outer step {step} cannot be predicted: expected {length} recorded steps, found {self._recorded}; "
                "record every optimized step"
            )
        weight = (self._index(step) - self._center) / (length * (length**2 - 1) / 12)
        return torch.add(self._sum / length, self._moment, alpha=weight).to(self._dtype)

    def state(self) -> State:
        """What `restore` takes, for a checkpoint."""
        # an empty tensor says the type of what was recorded
        like = torch.empty(0, dtype=self._dtype)
        return {"recorded": self._recorded, "sum": self._sum, "moment": self._moment, "like": like}

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        self._recorded, self._sum, self._moment = state["recorded"], state["sum"], state["moment"]
        self._dtype = state["like"].dtype

    @property
    def _center(self) -> float:
        return (self.settings.length - 1) / 2

    def _index(self, step: int) -> int:
        return step % (self.settings.length * self.settings.every)
