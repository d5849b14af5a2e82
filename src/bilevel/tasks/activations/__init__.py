"""Activation functions and kinds of prior as metaparameters: deck 002, "Что можно считать метапараметрами".

The lecture names both in its list and has no experiment with them. Here the activation after each hidden layer of
a small network is a mixture of five functions, and the penalty on the weights of each layer a mixture of what a
normal, a Laplace and a flat prior stand for; weights of mixtures and strengths of penalties are hyperparameters,
optimized by the hypergradient of the validation loss at the end of a training, against every fixed choice. The
strengths are optimized with a fixed choice too, so that the choice is all that differs.

Source: deck 002. The problem is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel import metrics
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import advance
from bilevel.images import MNIST_DEVIATION, MNIST_MEAN, SETS, check_sizes, counts_of, flat_share, stacked
from bilevel.optimizers import Adam
from bilevel.outer import Adam as OuterAdam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics
from bilevel.runs import OuterLoop
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.activations.network import Activation, MixedNetwork, Prior
from bilevel.tracing import traced

SIDE, CLASSES = 28, 10
METRICS = ("validation_loss", "training_loss", "test_loss", "test_error")
LEVELS = (-14.0, 2.0)
"""Between which the logarithms of strengths stay."""


class ActivationsSettings(Settings):
    """Settings of the experiment.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    pool: side of the squares of pixels whose means the network sees; 1: all pixels.
    hidden: units of the hidden layers.
    activation: what follows each hidden layer: a mixture with learned weights, one with equal weights, or one function.
    prior: kind of penalty on the weights of each layer: a mixture with learned weights, one kind, or none.
    level: ρ, the logarithm of a penalty's strength, at the start.
    inner_steps: T, steps of a training, each on all training images. learning_rate: of its Adam.
    outer_steps: trainings that are differentiated. outer_learning_rate: of the Adam that moves the hyperparameters.
    runs: trainings over which metrics are averaged.
    evaluate_every: outer steps from one row of the trace to the next.
    """

    train_size: Count = 200
    validation_size: Count = 500
    test_size: Count | None = 2000
    pool: Literal[1, 2, 4] = 4
    hidden: list[Count] = Field(default=[16, 16], min_length=1)
    activation: Activation = "mixture"
    prior: Prior = "l2"
    level: Annotated[float, Field(ge=LEVELS[0], le=LEVELS[1])] = -6.0
    inner_steps: Count = 40
    learning_rate: Positive = 0.03
    outer_steps: Count = 12
    outer_learning_rate: Positive = 0.2
    runs: Count = 3
    evaluate_every: Count = 3


class Activations(OuterLoop):
    """See the module.

    Every outer step is a training of its own, from parameters drawn anew; the images are divided anew for every seed.
    All arms see the same images and, as all have as many parameters, start at the same ones. Metrics are means over
    `runs` further trainings with the hyperparameters of the moment, from parameters of their own, the same ones
    throughout.

    Trace and summary: `validation_loss`, `training_loss` (without the penalty), `test_loss`, `test_error`; where they
    are hyperparameters, `weight_tanh_1` and so on, what a function counts for after hidden layer 1, `weight_l2_1` and
    so on, what a kind of prior counts for in layer 1, and `level_1`, ρ.
    """

    settings_class: ClassVar[type[Settings]] = ActivationsSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide and standardize the data of every seed."""
        assert isinstance(settings, ActivationsSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.shares = [
            flat_share(
                dataset, settings, study, seed, device, pool=settings.pool, mean=MNIST_MEAN, deviation=MNIST_DEVIATION
            )
            for seed in self.seeds
        ]
        self.sets = {name: stacked([getattr(share, name) for share in self.shares]) for name in SETS}
        self.outer_steps, self.evaluate_every = settings.outer_steps, settings.evaluate_every
        sizes = [(SIDE // settings.pool) ** 2, *settings.hidden, CLASSES]
        self.network = MixedNetwork(sizes, settings.activation, settings.prior)
        self.problem = traced(Problem(self.network.penalized_loss, self.network.loss))
        self.optimizer = Adam(learning_rate=settings.learning_rate)

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data."""
        assert isinstance(settings, ActivationsSettings)
        check_sizes(settings, name, counts)

    def start(self) -> tuple[Tensor, Tensor]:
        """First parameters of the first training; all functions and all kinds count alike."""
        hyper = self.network.first_hyper(self.settings.level).to(self.device)
        return self._begin("training", 0), hyper.repeat(len(self.seeds), 1)

    def begin(self, step: int, state: Tensor) -> Tensor:
        """See `OuterLoop`: a training begins."""
        return self._begin("training", step)

    def outer_optimizer(self) -> OuterAdam:
        """Adam with its default decay rates."""
        return OuterAdam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """All training images T times, and all validation images."""
        return [self.sets["train"]] * self.settings.inner_steps, self.sets["validation"]

    def project(self, hyper: Tensor) -> Tensor:
        """Strengths within `LEVELS`."""
        return self.network.clamped(hyper, *LEVELS)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        found = [self._metrics(self._train(hyper, run), hyper) for run in range(self.settings.runs)]
        means = {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
        return {**means, **{name: values.cpu().double() for name, values in self.network.weights(hyper).items()}}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        return {name: trace[-1][name] for name in (*METRICS, *self.network.weights(hyper))}

    def _train(self, hyper: Tensor, run: int) -> Tensor:
        """Parameters (S, P) at the end of a training that nothing else sees."""
        derivatives, batches = Derivatives(self.problem, hyper), self.draw(0)[0]
        state = advance(derivatives, self.optimizer, self._begin("evaluation", run), batches, len(batches))
        return self.optimizer.params(state)

    @torch.no_grad()
    def _metrics(self, params: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        rows = []
        for row, own, share in zip(params, hyper, self.shares, strict=True):
            logits = {name: self.network.logits(row, own, getattr(share, name).images) for name in SETS}
            losses = {name: metrics.cross_entropy(logits[name], getattr(share, name).labels) for name in SETS}
            error = metrics.error(logits["test"], share.test.labels)
            rows.append([losses["validation"], losses["train"], losses["test"], error])
        columns = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        return dict(zip(METRICS, columns, strict=True))

    def _begin(self, purpose: str, step: int) -> Tensor:
        draws = [generator(self.study, f"{purpose} initialization", seed, step) for seed in self.seeds]
        return self.optimizer.init(torch.stack([self.network.initial(draw) for draw in draws]).to(self.device))


TASK = Activations
