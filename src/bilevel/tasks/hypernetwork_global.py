"""A hypernetwork that is trained on all λ there may be, and a λ that descends afterwards.

Deck 002; Lorraine and Duvenaud 2018, algorithm 2 ("optimization of hypernetwork, then hyperparameters").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.models.hypernetwork import Hypernetwork
from bilevel.optimizers import Adam
from bilevel.problem import Batch
from bilevel.progress import Progress
from bilevel.results import Result
from bilevel.runs import greedy
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.hypernetwork import HypernetworkSettings, HyperTraining, Level
from bilevel.tasks.hypernetwork.linear_model import SIZE

CHUNK = 100
"""Steps whose draws are made at once."""


class GlobalSettings(HypernetworkSettings):
    """hidden: ReLU units of the hypernetwork. steps: of Adam on it, before λ moves.
    mean, spread, highest: of the normal distribution that λ is drawn from, and where draws are cut off from above.
        These are the code's; the paper's text says N(0, 1.5), two draws a step.
    """

    hidden: Count = 50
    steps: Count = 700
    mean: Level = 1.0
    spread: Positive = 3.0
    highest: Annotated[float, Field(le=20)] = 4.0
    samples: Count = 10
    learning_rate: Positive = 1e-3
    initial_level: Level = 1.0
    outer_steps: Count = 200
    outer_learning_rate: Positive = 0.05
    evaluate_every: Count = 10


class HypernetworkGlobal(HyperTraining):
    """w_φ(λ) with one hidden layer by Adam on the mean loss of λ_j ~ p(λ), then λ by Adam at fixed φ.

    See `HyperTraining`. No inner step is made while λ moves, so that all hypergradient methods would be the same.
    """

    settings_class = GlobalSettings
    methods = ("first_order",)
    settings: GlobalSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """See `HyperTraining`."""
        assert isinstance(settings, GlobalSettings)
        self.hypernetwork = Hypernetwork(1, SIZE, settings.hidden)
        self.optimizer = Adam(learning_rate=settings.learning_rate)
        self._name = "run"
        super().__init__(study, settings, dataset, seeds, device)

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        self._name = name
        return greedy(self, method, name)

    def levels(self, hyper: Tensor, draws: Tensor) -> Tensor:
        """Draws from p(λ), wherever the current λ is."""
        s = self.settings
        return (s.mean + s.spread * draws).clamp(max=s.highest)

    def start(self) -> tuple[Tensor, Tensor]:
        """The trained hypernetwork, and λ as it was."""
        state, hyper = self.optimizer.init(self.first_params()), self.first_hyper()
        checkpoint, done, steps = self.checkpoint.part("hypernetwork"), 0, self.settings.steps
        if checkpoint.found is not None:
            done, state = checkpoint.found["steps"], checkpoint.found["state"]
        derivatives, progress = Derivatives(self.problem, hyper), Progress(self._name, "step of the hypernetwork", done)
        while done < steps:
            batches = self.inner(done, min(CHUNK, steps - done))
            for batch in batches:
                self.optimizer.advance_(derivatives, state, batch)
            done += len(batches)
            progress.report(done, steps)
            checkpoint.keep({"steps": done, "state": state})
        return state, hyper

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """No inner step; all validation images."""
        return [], self.outer_batch


TASK = HypernetworkGlobal
