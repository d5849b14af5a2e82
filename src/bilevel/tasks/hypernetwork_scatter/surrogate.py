"""What predicts validation losses at λ: a Gaussian process, or a hypernetwork on fixed λ or on ever new ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import ConfigDict
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.settings import Configurable

if TYPE_CHECKING:
    from bilevel.tasks.hypernetwork_scatter import HypernetworkScatter

STRICT = ConfigDict(strict=True, extra="forbid")


class Surrogate(Configurable, ABC):
    """A method of the task `hypernetwork_scatter`."""

    def seen(self, task: HypernetworkScatter, count: int) -> int:
        """How many of `count` evaluations make a difference to what is predicted."""
        return count

    @abstractmethod
    def predict(self, task: HypernetworkScatter, count: int, checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """Validation losses (S, M) at `task.candidates`, from `count` evaluations: hyperparameters whose losses are
        known, or that a training step sees. `checkpoint`: the place for the state of a training."""
