"""Optimizers that were designed by hand, with the best of several learning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from bilevel.optimizers import SGD, Adam, GradientOptimizer, Learned, Momentum
from bilevel.settings import STRICT, Configurable

if TYPE_CHECKING:
    from bilevel.search import Space

RATE = Learned(0)
OPTIMIZERS: dict[str, GradientOptimizer] = {
    "sgd": SGD(learning_rate=RATE),
    "momentum": Momentum(learning_rate=RATE, momentum=0.9),
    "rmsprop": Adam(learning_rate=RATE, beta1=0.0, beta2=0.99, bias="uncorrected"),
    "adam": Adam(learning_rate=RATE),
}
"""RMSprop is Adam without an average of gradients and without correction of bias."""

SPACE: Space = {"learning_rate": (1e-3, 10.0, True)}


@dataclass(frozen=True, config=STRICT)
class Tuned(Configurable):
    """The rate with the least mean loss along the optimization of validation problems, of a grid from 0.001 to 10.

    optimizer: SGD, momentum (0.9), RMSprop (0.99) or Adam (0.9, 0.999). trials: rates of the grid.
    """

    optimizer: Literal["sgd", "momentum", "rmsprop", "adam"]
    trials: Annotated[int, Field(ge=2)] = 13


METHOD = Tuned
