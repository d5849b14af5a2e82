"""What an algorithm of this study offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor

from bilevel.settings import STRICT as STRICT
from bilevel.settings import Configurable

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Algorithm(Configurable, ABC):
    """A program from one number x to one number, which takes one of several exits.

    low, high: range of x.
    """

    low: float
    high: float

    @abstractmethod
    def pieces(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For inputs (X,): c(x), the number of the exit taken, whole; value; derivative of the piece; each (X,)."""
