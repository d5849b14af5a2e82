"""What every kind of teacher offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.data import Corpus, Dataset
from bilevel.settings import OnData, Settings


@dataclass(frozen=True)
class Trained:
    """What training leaves: tensors by name (parameters, what a student has to know of the data), and metrics."""

    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, float]


class Teacher(OnData, ABC):
    """A kind of teacher."""

    checkpoint: Checkpoint = NOWHERE
    """Where training keeps its state; set before `train`."""

    @abstractmethod
    def __init__(self, name: str, settings: Settings, dataset: Dataset | Corpus | None, device: torch.device) -> None:
        """`name` is what the configuration calls it; random numbers depend on it, on the purpose and on the seed."""

    @abstractmethod
    def train(self, seed: int) -> Trained:
        """The trained teacher of one seed, its tensors on the CPU."""
