"""Predicted against true validation loss of a model with a regularizer for each class.

Deck 002; Lorraine and Duvenaud 2018, section 4.3: a Gaussian process, a hypernetwork on a fixed set of λ, and one on
new λ in every step. λ has ten entries, uniform between −3 and 3.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.images import check_sizes, counts_of, divide, splits_of
from bilevel.models.hypernetwork import Hypernetwork
from bilevel.optimizers import Adam
from bilevel.problem import Batch, Problem
from bilevel.progress import say
from bilevel.randomness import generator
from bilevel.results import Metrics, Point, Result
from bilevel.runs import blank
from bilevel.settings import Configurable, Count, Positive, Settings, SettingsError
from bilevel.tasks.base import Task
from bilevel.tasks.hypernetwork.best_response import BestResponse
from bilevel.tasks.hypernetwork.linear_model import (
    CLASSES,
    FEATURES,
    SIZE,
    Images,
    Moments,
    Regularizer,
    images_of,
    losses_on_images,
    losses_on_moments,
    moments_of,
    penalty,
)

PLACES = 241
"""Levels between which the loss of a class is interpolated; the mean of all is then wrong by 3e-4 at most."""
CHUNK = 200
"""Candidates whose weights are held at once."""
SHOWN, DRAWN = 25, 300
"""Evaluations of the scatter, where they are among those asked for, and its points a seed."""
DIGITS = 6
"""Of the numbers for figures, after the point."""


class ScatterSettings(Settings):
    """Settings of the experiment.

    train_size, validation_size: numbers of images. regularizer: see `linear_model.penalty`.
    lowest, highest: of every entry of λ.
    evaluations: how many λ a surrogate is given; the published numbers.
    candidates: λ at which losses are predicted; 10,215 were published.
    steps, learning_rate: of Adam on a hypernetwork. batch_size: training images of a step.
    most_samples: λ of a step, at most. initial_scale: deviation of a hypernetwork's first parameters.
    """

    train_size: Count = 2500
    validation_size: Count = 2000
    regularizer: Regularizer = "norm"
    lowest: float = -3.0
    highest: float = 3.0
    evaluations: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)] = [10, 25, 100, 250]  # noqa: RUF012
    candidates: Annotated[int, Field(ge=2)] = 500
    steps: Count = 500
    learning_rate: Positive = 1e-4
    batch_size: Count = 100
    most_samples: Count = 25
    initial_scale: Positive = 1e-5

    @property
    def test_size(self) -> None:
        """All images that are left, which this experiment has no use for."""

    @field_validator("evaluations")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("expected different numbers in ascending order")
        return value


class Inner(NamedTuple):
    """Training images of a step, and its λ (J, 10)."""

    images: Images
    levels: Tensor


class Surrogate(Configurable, ABC):
    """A method of the task `hypernetwork_scatter`."""

    def seen(self, task: HypernetworkScatter, count: int) -> int:
        """How many of `count` evaluations make a difference to what is predicted."""
        return count

    @abstractmethod
    def predict(self, task: HypernetworkScatter, count: int, checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """Validation losses (S, M) at `task.candidates`, from `count` evaluations: hyperparameters whose losses are
        known, or that a training step sees. `checkpoint`: the place for the state of a training."""


class HypernetworkScatter(Task):
    """Surrogates of the validation loss L(λ) of best responses w*(λ), compared at the same candidates.

    The regularizer of a class touches its own weights alone, so that a best response is one of ten problems with one
    level each; L is the mean of ten functions of a number, which `BestResponse` gives at 241 places. The published
    truth was what 1000 steps of Adam led to.

    Trace, at step n for n evaluations: `found_loss`, the true loss of the candidate whose predicted loss is least, and
    `promised_loss`, that prediction; `excess`, the former less the least true loss; `correlation` of predicted and true
    losses; `bias` and `error`, the mean and the root mean square of predicted less true ones.
    Summary: the same with the suffix `_n`, and `best_loss`, the least true loss of all candidates.
    Points: `candidate`, (true, predicted) loss from 25 evaluations, of 300 candidates a seed.
    """

    settings_class = ScatterSettings
    methods = ("gaussian_process", "fixed", "stochastic")

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide the data of every seed; λ that are known and candidates, with their losses."""
        assert isinstance(settings, ScatterSettings)
        assert dataset is not None
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self._read(dataset)
        self.known = self.uniform("known", max(settings.evaluations))
        self.candidates = self.uniform("candidates", settings.candidates)
        curves = [
            _curves(BestResponse(train, settings.regularizer, by_class=True), validation, settings)
            for train, validation in zip(self._moments["train"], self._moments["validation"], strict=True)
        ]
        self.known_losses, self.true_losses = (
            torch.stack([_true(curve, levels) for curve, levels in zip(curves, each, strict=True)])
            for each in (self.known, self.candidates)
        )
        self.hypernetwork = Hypernetwork(CLASSES, SIZE)
        self.problem = Problem(self.inner_loss, self.outer_loss)
        self.optimizer = Adam(learning_rate=settings.learning_rate)

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or λ no range."""
        assert isinstance(settings, ScatterSettings)
        check_sizes(settings, name, counts)
        if settings.batch_size > settings.train_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from train_size {settings.train_size} images"
            )
        if not settings.lowest < settings.highest:
            raise SettingsError(f"lowest: expected a number below highest {settings.highest}, got {settings.lowest}")

    def run(self, method: Surrogate, name: str) -> Result:
        """See `Task`."""
        trace: dict[int, Metrics] = {}
        points: list[Point] = []
        alive = torch.ones(len(self.seeds), dtype=torch.bool)
        begin, counts = time.perf_counter(), self.settings.evaluations
        predicted, seen = torch.empty(0), 0
        for count in counts:
            if method.seen(self, count) != seen:  # otherwise the same run once more
                kept = self.checkpoint.kept(f"{count} evaluations", partial(method.predict, self, count))
                predicted, seen = kept.cpu(), method.seen(self, count)
            alive = alive & torch.isfinite(predicted).all(-1)
            trace[count] = self._compare(predicted)
            if count == (SHOWN if SHOWN in counts else counts[0]):
                points = self._points(predicted)
            say(f"{name}: {count} evaluations, {time.perf_counter() - begin:.1f} s")
        summary = {f"{metric}_{count}": values for count in counts for metric, values in trace[count].items()}
        summary["best_loss"] = self.true_losses.amin(-1)
        trace = {count: blank(metrics, alive) for count, metrics in trace.items()}
        return Result(alive, trace, blank(summary, alive), points=points)

    def inner_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The mean over the λ of a step of training loss and regularizer, at w_φ(λ)."""
        weights = self._weights(params, batch.levels)
        losses = losses_on_images(weights, batch.images).mean(-1)
        return (losses + penalty(weights, batch.levels, self.settings.regularizer)).mean()

    def outer_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The validation loss of w_φ(λ)."""
        return losses_on_moments(self._weights(params, hyper.unsqueeze(0)), batch).mean()

    def train(self, levels: Callable[[int], Tensor], checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """Parameters (S, size) of a hypernetwork that was trained on levels (S, J, 10) of each step."""
        draws = [generator(self.study, "initialization", seed) for seed in self.seeds]
        first = [self.hypernetwork.initial(self.settings.initial_scale, draw) for draw in draws]
        state = self.optimizer.init(torch.stack(first).to(self.device))
        # the inner loss does not see where λ is
        derivatives = Derivatives(self.problem, state.new_zeros(len(self.seeds), CLASSES))
        for step in checkpoint.steps(state, self.settings.steps):
            self.optimizer.advance_(derivatives, state, Inner(self._batch(step), levels(step)))
        return self.optimizer.params(state)

    @torch.no_grad()
    def predicted(self, params: Tensor) -> Tensor:
        """Validation losses (S, M) of w_φ(λ) at the candidates."""
        rows = []
        for row, levels, moments in zip(params, self.candidates, self._moments["validation"], strict=True):
            single = Moments(*(part.float() for part in moments))
            parts = [losses_on_moments(self._weights(row, part), single) for part in levels.split(CHUNK)]
            rows.append(torch.cat(parts).mean(-1).double())
        return torch.stack(rows)

    def uniform(self, purpose: str, count: int, step: int | None = None) -> Tensor:
        """Levels (S, count, 10)."""
        s = self.settings
        draws = [
            torch.rand(count, CLASSES, generator=generator(self.study, purpose, each, step)) for each in self.seeds
        ]
        return (s.lowest + (s.highest - s.lowest) * torch.stack(draws)).to(self.device)

    def _compare(self, predicted: Tensor) -> dict[str, Tensor]:
        promised, chosen = predicted.min(-1)
        found = self.true_losses.gather(1, chosen.unsqueeze(-1)).squeeze(-1)
        difference = predicted - self.true_losses
        return {
            "found_loss": found,
            "promised_loss": promised,
            "excess": found - self.true_losses.amin(-1),
            "correlation": _correlation(predicted, self.true_losses),
            "bias": difference.mean(-1),
            "error": difference.square().mean(-1).sqrt(),
        }

    def _points(self, predicted: Tensor) -> list[Point]:
        return [
            Point(seed, "candidate", round(true, DIGITS), round(guess, DIGITS), 1.0)
            for seed, trues, guesses in zip(self.seeds, self.true_losses, predicted, strict=True)
            for true, guess in zip(trues[:DRAWN].tolist(), guesses[:DRAWN].tolist(), strict=True)
        ]

    def _weights(self, params: Tensor, levels: Tensor) -> Tensor:
        """Weights (J, 10, 785) of one seed at levels (J, 10)."""
        return self.hypernetwork.forward(params, levels).view(-1, CLASSES, FEATURES)

    def _batch(self, step: int) -> Images:
        """Training images of a step, drawn without replacement."""
        size = self.settings.batch_size
        draws = [generator(self.study, "batches", seed, step) for seed in self.seeds]
        ids = [torch.randperm(self.settings.train_size, generator=draw)[:size].to(self.device) for draw in draws]
        taken = [(each.features[i], each.targets[i]) for each, i in zip(self._train, ids, strict=True)]
        return Images(*(torch.stack(part) for part in zip(*taken, strict=True)))

    def _read(self, dataset: Dataset) -> None:
        """Training images, and moments of training and validation images, of every seed."""
        splits = splits_of(dataset)
        self._train: list[Images] = []
        self._moments: dict[str, list[Moments]] = {"train": [], "validation": []}
        for seed in self.seeds:
            ids = divide(dataset, self.settings, self.study, seed)
            sets = {name: images_of(splits[name], ids[name], self.device) for name in self._moments}
            self._train.append(sets["train"])
            for name, images in sets.items():
                self._moments[name].append(moments_of(images))


def _curves(response: BestResponse, validation: Moments, settings: ScatterSettings) -> Sequence[PchipInterpolator]:
    """The validation loss of each class as a function of its level."""
    places = torch.linspace(settings.lowest, settings.highest, PLACES, dtype=torch.float64)
    levels = places.to(validation.targets.device).unsqueeze(-1).expand(-1, CLASSES)
    losses = response.losses(levels, validation).cpu().numpy()
    return [PchipInterpolator(places.numpy(), column) for column in losses.T]


def _true(curves: Sequence[PchipInterpolator], levels: Tensor) -> Tensor:
    """Losses (M,) at levels (M, 10)."""
    columns = [curve(column) for curve, column in zip(curves, levels.cpu().double().numpy().T, strict=True)]
    return torch.from_numpy(np.mean(columns, axis=0))


def _correlation(predicted: Tensor, true: Tensor) -> Tensor:
    """Of each row; 0 where all predictions are equal."""
    left, right = (values - values.mean(-1, keepdim=True) for values in (predicted, true))
    scale = (left.square().sum(-1) * right.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (left * right).sum(-1) / scale, 0.0)


TASK = HypernetworkScatter
