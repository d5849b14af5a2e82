"""A linear hypernetwork that is trained near the current λ, which moves at the same time.

Deck 002; Lorraine and Duvenaud 2018, algorithm 3 ("joint optimization of hypernetwork and hyperparameters").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bilevel.data import Dataset
from bilevel.models.hypernetwork import Hypernetwork
from bilevel.optimizers import SGD, Adam
from bilevel.problem import Batch
from bilevel.settings import Count, NotNegative, Positive, Settings
from bilevel.tasks.hypernetwork import HypernetworkSettings, HyperTraining, Level
from bilevel.tasks.hypernetwork.linear_model import SIZE
from bilevel.tracing import traced


class LocalSettings(HypernetworkSettings):
    """spread: σ of the λ on which the hypernetwork is trained, normal about the current one. The paper has σ² = 1e-5,
        its code σ = 0.
    inner_steps: of the hypernetwork between two updates of λ; ten in the paper, one in its code.
    optimizer: of the hypernetwork; `adam` in the paper, `sgd` in its code, both with learning_rate 1e-4.
    """

    samples: Count = 2
    spread: NotNegative = 0.5
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    inner_steps: Count = 3
    initial_level: Level = -3.5
    outer_steps: Count = 1500
    outer_learning_rate: Positive = 0.04
    evaluate_every: Count = 60


class HypernetworkLocal(HyperTraining):
    """w_φ(λ) = a λ + b by SGD on the mean loss of λ_j = λ + σ ε_j, and λ by Adam; see `HyperTraining`.

    With `first_order` this is hyper-training. `truncated` and `unrolled` add what λ does to φ in the inner steps.
    """

    settings_class = LocalSettings
    methods = ("none", "first_order", "truncated", "unrolled")
    settings: LocalSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """See `HyperTraining`."""
        assert isinstance(settings, LocalSettings)
        self.hypernetwork = Hypernetwork(1, SIZE)
        self.optimizer = (Adam if settings.optimizer == "adam" else SGD)(learning_rate=settings.learning_rate)
        super().__init__(study, settings, dataset, seeds, device)
        self.problem = traced(self.problem)

    def levels(self, hyper: Tensor, draws: Tensor) -> Tensor:
        """λ + σ ε."""
        return hyper + self.settings.spread * draws

    def start(self) -> tuple[Tensor, Tensor]:
        """Parameters and λ as they were initialized."""
        return self.optimizer.init(self.first_params()), self.first_hyper()

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """The next steps of the hypernetwork; all validation images."""
        count = self.settings.inner_steps
        return self.inner(step * count, count), self.outer_batch


TASK = HypernetworkLocal
