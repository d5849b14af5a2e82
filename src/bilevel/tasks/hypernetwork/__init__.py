"""Hyper-training: a hypernetwork learns what weights answer to λ, and λ descends the validation loss of its answers.

Deck 002, "Stochastic Hyperparameter Optimization through Hypernetworks". The parameters of the bilevel problem are φ,
those of the hypernetwork; its inner loss is the training loss of the weights w_φ(λ), and its outer loss, the validation
loss of w_φ(λ), sees λ through the hypernetwork. The hypergradient is then the direct one, ∂L₂(w_φ(λ))/∂λ.

The model is linear and λ, the logarithm of its regularizer's coefficient, is a number, so that true best responses,
and the true λ*, are known up to rounding (`best_response`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bilevel.data import Dataset
from bilevel.images import check_sizes, counts_of, divide, splits_of
from bilevel.models.hypernetwork import Hypernetwork
from bilevel.outer import Adam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Point
from bilevel.runs import OuterLoop
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.hypernetwork.best_response import BestResponse
from bilevel.tasks.hypernetwork.linear_model import (
    CLASSES,
    FEATURES,
    Images,
    Moments,
    Regularizer,
    images_of,
    losses_on_images,
    losses_on_moments,
    moments_of,
    penalty,
)

Level = Annotated[float, Field(ge=-20, le=20)]

LOWEST, HIGHEST, SEARCHED = -4.0, 8.0, 1201
"""Where λ* is searched for, and at how many places."""
SHOWN = (-3.5, 4.0, 76)
"""Ends and number of places of response curves."""
DIGITS = 6
"""Of the numbers for figures, after the point."""


class HypernetworkSettings(Settings):
    """Settings of both experiments.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    regularizer: exp(λ) ‖w‖, which the published code has, or exp(λ) ‖w‖², which the slide and the paper's text say.
    samples: hyperparameters on which the expected training loss of a step is taken.
    learning_rate: of the hypernetwork's optimizer. initial_scale: deviation of its first parameters.
    initial_level: λ at the start.
    outer_steps, outer_learning_rate: of Adam on λ. evaluate_every: outer steps between two rows of the trace.
    """

    train_size: Count = 10
    validation_size: Count = 2500
    test_size: Count | None = None
    regularizer: Regularizer = "norm"
    samples: Count
    learning_rate: Positive
    initial_scale: Positive = 0.01
    initial_level: Level
    outer_steps: Count
    outer_learning_rate: Positive
    evaluate_every: Count


class Inner(NamedTuple):
    """Training images, and what the hyperparameters of a step are drawn by: deviations or levels, (J, 1)."""

    images: Images
    draws: Tensor


class Share(NamedTuple):
    """What one seed's curves need: validation and test moments in double precision, and the best responses."""

    validation: Moments
    test: Moments
    response: BestResponse


class HyperTraining(OuterLoop):
    """What both experiments share.

    Training, validation and test images are disjoint and, as first parameters and draws of λ, anew for every seed; all
    methods share them. Losses are mean negative log-likelihoods, see `linear_model`.

    Trace: `level`, λ; `predicted_loss`, the validation loss of w_φ(λ), `true_loss`, that of w*(λ), and `gap`, the size
    of their difference; `excess`, the true loss less the least there is, that of w*(λ*); `distance`, |λ − λ*|.
    Summary: the same at the end; `optimal_level`, λ*, the best of 1201 places from −4 to 8, and `optimal_loss`;
    `predicted_level`, where the hypernetwork's own curve is least on the places of the figure, and `predicted_distance`
    of that from λ*; `response_error`, the mean over these places of |predicted − true loss|; `slope` and `true_slope`,
    the derivatives of predicted and true loss by λ at the end; `test_loss` of w_φ(λ), `true_test_loss` of w*(λ) and
    `optimal_test_loss` of w*(λ*).
    Points, (λ, loss): `predicted` and `true`, the response curves; `found`, the last λ with its predicted loss;
    `optimal`, λ* with its loss.
    """

    hypernetwork: Hypernetwork
    settings: HypernetworkSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide the data of every seed, and find λ*."""
        assert isinstance(settings, HypernetworkSettings)
        assert dataset is not None
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.outer_steps, self.evaluate_every = settings.outer_steps, settings.evaluate_every
        self._read(dataset)
        places = torch.linspace(LOWEST, HIGHEST, SEARCHED, dtype=torch.float64, device=device).unsqueeze(-1)
        curves = torch.stack([_true(share, places, share.validation) for share in self.shares])
        least, chosen = curves.min(dim=-1)
        self.optimal_level, self.optimal_loss = places[chosen, 0], least
        self.problem = Problem(self.inner_loss, self.outer_loss)

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data."""
        assert isinstance(settings, HypernetworkSettings)
        check_sizes(settings, name, counts)

    @abstractmethod
    def levels(self, hyper: Tensor, draws: Tensor) -> Tensor:
        """Hyperparameters (J, 1) of a step of one seed, from the current ones (1,) and draws (J, 1)."""

    def inner_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The mean over the λ of a step of training loss and regularizer, at w_φ(λ)."""
        levels = self.levels(hyper, batch.draws)
        weights = self._weights(params, levels)
        losses = losses_on_images(weights, batch.images).mean(-1)
        return (losses + penalty(weights, levels, self.settings.regularizer)).mean()

    def outer_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The validation loss of w_φ(λ)."""
        return losses_on_moments(self._weights(params, hyper.unsqueeze(0)), batch).mean()

    def outer_optimizer(self) -> Adam:
        """Adam with its default decay rates."""
        return Adam(self.settings.outer_learning_rate)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        levels = hyper.double()
        found = {
            "level": levels[:, 0],
            "predicted_loss": self._of_each(self._predicted(state, levels.unsqueeze(1), test=False)),
            "true_loss": self._of_each(self._responses(levels.unsqueeze(1), test=False)),
            "distance": (levels[:, 0] - self.optimal_level).abs(),
        }
        found["gap"] = (found["predicted_loss"] - found["true_loss"]).abs()
        found["excess"] = found["true_loss"] - self.optimal_loss
        return {metric: values.cpu() for metric, values in found.items()}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        places, predicted, true = self._curves(state)
        chosen = places[predicted.argmin(-1), 0]
        here, best = hyper.double().unsqueeze(1), self.optimal_level.view(-1, 1, 1)
        width = 1e-3
        around = here + torch.tensor([[-width], [width]], dtype=torch.float64, device=self.device)
        own = {
            "optimal_level": self.optimal_level,
            "optimal_loss": self.optimal_loss,
            "predicted_level": chosen,
            "predicted_distance": (chosen - self.optimal_level).abs(),
            "response_error": (predicted - true).abs().mean(-1),
            "slope": self._predicted(state, around, test=False).diff(dim=-1)[:, 0] / (2 * width),
            "true_slope": self._responses(around, test=False).diff(dim=-1)[:, 0] / (2 * width),
            "test_loss": self._of_each(self._predicted(state, here, test=True)),
            "true_test_loss": self._of_each(self._responses(here, test=True)),
            "optimal_test_loss": self._of_each(self._responses(best, test=True)),
        }
        return {**self.evaluate(state, hyper), **{metric: values.cpu() for metric, values in own.items()}}

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """See the class."""
        places, predicted, true = (values.cpu() for values in self._curves(state))
        ends = {
            "found": (hyper[:, 0], self._of_each(self._predicted(state, hyper.double().unsqueeze(1), test=False))),
            "optimal": (self.optimal_level, self.optimal_loss),
        }
        rows = []
        for index, seed in enumerate(self.seeds):
            for quantity, curve in (("predicted", predicted), ("true", true)):
                rows += [
                    _point(seed, quantity, *pair)
                    for pair in zip(places[:, 0].tolist(), curve[index].tolist(), strict=True)
                ]
            rows += [_point(seed, name, float(x[index]), float(y[index])) for name, (x, y) in ends.items()]
        return rows

    def first_params(self) -> Tensor:
        """φ of every seed, (S, size)."""
        scale = self.settings.initial_scale
        draws = [generator(self.study, "initialization", seed) for seed in self.seeds]
        return torch.stack([self.hypernetwork.initial(scale, draw) for draw in draws]).to(self.device)

    def first_hyper(self) -> Tensor:
        """λ of every seed, (S, 1)."""
        return torch.full((len(self.seeds), 1), self.settings.initial_level, device=self.device)

    def inner(self, first: int, count: int) -> list[Batch]:
        """Batches of `count` steps of the hypernetwork, from step `first` on."""
        draws = torch.stack([self._normal(seed, range(first, first + count)) for seed in self.seeds], dim=1).to(
            self.device
        )
        return [Inner(self._train, step) for step in draws]

    @property
    def outer_batch(self) -> Batch:
        """Moments of all validation images."""
        return self._validation

    def _normal(self, seed: int, steps: range) -> Tensor:
        """Standard normal draws (T, J, 1)."""
        shape = (self.settings.samples, 1)
        return torch.stack([torch.randn(shape, generator=generator(self.study, "levels", seed, t)) for t in steps])

    def _read(self, dataset: Dataset) -> None:
        """Images and moments of every seed."""
        splits = splits_of(dataset)
        train, validation, self.shares = [], [], list[Share]()
        for seed in self.seeds:
            ids = divide(dataset, self.settings, self.study, seed)
            sets = {name: images_of(splits[name], ids[name], self.device) for name in ids}
            moments = {name: moments_of(images) for name, images in sets.items()}
            response = BestResponse(moments["train"], self.settings.regularizer, by_class=False)
            self.shares.append(Share(moments["validation"], moments["test"], response))
            train.append(sets["train"])
            validation.append(moments["validation"])
        self._train = Images(*(torch.stack(part) for part in zip(*train, strict=True)))
        self._validation = Moments(*(torch.stack(part).float() for part in zip(*validation, strict=True)))

    def _weights(self, params: Tensor, levels: Tensor) -> Tensor:
        """Weights (J, 10, 785) of one seed at levels (J, 1)."""
        return self.hypernetwork.forward(params, levels).view(-1, CLASSES, FEATURES)

    @torch.no_grad()
    def _predicted(self, state: Tensor, levels: Tensor, *, test: bool) -> Tensor:
        """Losses (S, J) of the hypernetwork's weights at levels (S, J, 1)."""
        params = self.optimizer.params(state).double()
        rows = [
            losses_on_moments(self._weights(row, each), share.test if test else share.validation).mean(-1)
            for row, each, share in zip(params, levels, self.shares, strict=True)
        ]
        return torch.stack(rows)

    def _responses(self, levels: Tensor, *, test: bool) -> Tensor:
        """Losses (S, J) of the best responses at levels (S, J, 1)."""
        return torch.stack(
            [
                _true(share, each, share.test if test else share.validation)
                for each, share in zip(levels, self.shares, strict=True)
            ]
        )

    def _curves(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places (J, 1) of the figure, and predicted and true losses there, (S, J)."""
        places = torch.linspace(*SHOWN, dtype=torch.float64, device=self.device).unsqueeze(-1)
        levels = places.expand(len(self.seeds), *places.shape)
        return places, self._predicted(state, levels, test=False), self._responses(levels, test=False)

    @staticmethod
    def _of_each(losses: Tensor) -> Tensor:
        """(S,) of losses (S, 1)."""
        return losses.squeeze(-1)


def _true(share: Share, levels: Tensor, moments: Moments) -> Tensor:
    return share.response.losses(levels, moments).mean(-1)


def _point(seed: int, quantity: str, x: float, y: float) -> Point:
    return Point(seed, quantity, round(x, DIGITS), round(y, DIGITS), 1.0)
