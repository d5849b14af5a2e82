"""Deck 004's teacher: logistic regression on two coordinates and their quadrant, and the data of its students."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.optimizers import Adam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.settings import Count, Positive, Settings
from bilevel.teachers.base import Teacher, Trained
from bilevel.tracing import traced

NOISE = 0.5
"""Standard deviation of what is added to x₁ x₂ before its sign is taken."""

INPUTS = 3
SIZE = 2 * (INPUTS + 1)
"""Parameters of a logistic regression: for each of two classes three weights and a bias."""

SETS = ("teacher", "student", "validation", "test")
"""Samples are handed out in this order."""

PUBLISHED_SIZES = (200, 15, 15, 200)
"""How many each of them had."""


class LogisticSettings(Settings):
    """Settings of the teacher; the defaults are those of the published run.

    draws: `published`: the very samples of April 2021 and one teacher, the same for every seed; `anew`: samples of the
        same law for each seed.
    teacher_size, student_size, validation_size, test_size: numbers of samples.
    steps, learning_rate: of Adam, on all of the teacher's samples at once.
    """

    draws: Literal["published", "anew"] = "anew"
    teacher_size: Count = PUBLISHED_SIZES[0]
    student_size: Count = PUBLISHED_SIZES[1]
    validation_size: Count = PUBLISHED_SIZES[2]
    test_size: Count = PUBLISHED_SIZES[3]
    steps: Count = 10_000
    learning_rate: Positive = 1e-3

    @property
    def sizes(self) -> list[int]:
        """In the order of `SETS`."""
        return [self.teacher_size, self.student_size, self.validation_size, self.test_size]


class Logistic(Teacher):
    """Logistic regression on x₁, x₂ and x₃ = [sign x₁ + sign x₂ > 0.1], trained by Adam.

    Samples: x₁, x₂ ~ N(0, 1), y = [x₁ x₂ + δ > 0], δ ~ N(0, 1/4). The slide has x₃ with > 0, which is the same.

    Tensors: `parameters` (8,), see `margin`; `<set>_points` (n, 2) and `<set>_labels` (n,) of `SETS`, which students
    learn from. Metrics: `train_accuracy`, `test_accuracy`.

    Source: deck 004, "Вычислительный эксперимент"; notebook simple_exp_splines of the author's repository, April 2021.
    """

    settings_class: ClassVar[type[Settings]] = LogisticSettings

    def __init__(self, name: str, settings: Settings, dataset: Dataset | None, device: torch.device) -> None:
        assert isinstance(settings, LogisticSettings)
        self._name, self._settings, self._device = name, settings, device

    def train(self, seed: int) -> Trained:
        """See `Teacher`."""
        published, sizes = self._settings.draws == "published", self._settings.sizes
        draws = published_samples(sum(sizes)) if published else new_samples(self._name, seed, sum(sizes))
        sets = dict(zip(SETS, zip(*(torch.split(part, sizes) for part in draws), strict=True), strict=True))
        start = first_parameters(generator(self._name, "initialization", 0 if published else seed))
        points, labels = sets["teacher"]
        parameters = self._fit(start, points, labels)
        metrics = {
            name: float(accuracy(parameters, teacher_features(sets[of][0]), sets[of][1]))
            for name, of in (("train_accuracy", "teacher"), ("test_accuracy", "test"))
        }
        tensors = {"parameters": parameters}
        for name, (points, labels) in sets.items():
            tensors |= {f"{name}_points": points.clone(), f"{name}_labels": labels.clone()}
        return Trained(tensors, metrics)

    def _fit(self, start: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        batch = tuple(part.unsqueeze(0).to(self._device) for part in (teacher_features(points), signs(labels)))
        optimizer = Adam(learning_rate=self._settings.learning_rate)
        problem = traced(Problem(cross_entropy_loss, cross_entropy_loss))
        state = optimizer.init(start.unsqueeze(0).to(self._device))
        derivatives = Derivatives(problem, state.new_zeros(1, 0))
        for _ in self.checkpoint.steps(state, self._settings.steps):
            optimizer.advance_(derivatives, state, batch)
        return optimizer.params(state)[0].cpu().clone()


def published_samples(count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and labels (count,) of the published run, whose `count` is 430."""
    draws = np.random.RandomState(42)
    points = torch.from_numpy(draws.randn(count, 2))
    return points, _labels(points, torch.from_numpy(draws.randn(count)))


def new_samples(name: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and labels (count,) of one seed."""
    draws = generator(name, "samples", seed)
    points = torch.randn(count, 2, generator=draws, dtype=torch.float64)
    return points, _labels(points, torch.randn(count, generator=draws, dtype=torch.float64))


def _labels(points: Tensor, noise: Tensor) -> Tensor:
    return (points.prod(-1) + NOISE * noise > 0).long()


def first_parameters(draws: torch.Generator) -> Tensor:
    """Parameters (8,) as `torch.nn.Linear(3, 2)` has them at first: uniform, |w| < 1/√3."""
    return (2 * torch.rand(SIZE, generator=draws, dtype=torch.float64) - 1) / math.sqrt(INPUTS)


def teacher_features(points: Tensor) -> Tensor:
    """x₁, x₂, x₃ and a one for the bias, (..., 4), of points (..., 2)."""
    quadrant = points.sign().sum(-1, keepdim=True) > 0.1
    return torch.cat([points, quadrant.to(points.dtype), torch.ones_like(points[..., :1])], dim=-1)


def signs(labels: Tensor) -> Tensor:
    """−1 and 1 of labels 0 and 1, in double precision."""
    return 2.0 * labels.double() - 1.0


def margin(params: Tensor, features: Tensor) -> Tensor:
    """Logit of class 1 less that of class 0, (n,), from the parameters (8,) of one seed and features (n, 4).

    The parameters are weights and bias of class 0, then those of class 1. Everything that depends on two logits is a
    function of their difference.
    """
    first, second = params.view(2, INPUTS + 1).unbind()
    return features @ (second - first)


def cross_entropy(found: Tensor, sign: Tensor) -> Tensor:
    """Mean cross-entropy: log(1 + exp(−m)) of margins m times signs, (..., n) -> (...)."""
    # PyTorch takes x for the softplus of x > 20, in single precision and in double alike
    return softplus(-(found * sign), threshold=40.0).mean(-1)


def cross_entropy_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed on (features, signs); no hyperparameters."""
    features, sign = batch
    return cross_entropy(margin(params, features), sign)


def margins(params: Tensor, features: Tensor) -> Tensor:
    """`margin` of any number of models, each on features of its own: (..., 8), (..., n, 4) -> (..., n)."""
    first, second = params.reshape(*params.shape[:-1], 2, INPUTS + 1).unbind(-2)
    return (features @ (second - first).unsqueeze(-1)).squeeze(-1)


def accuracy(params: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose class has the larger logit: (..., 8), (..., n, 4), (..., n) -> (...)."""
    right: Tensor = (margins(params, features) > 0) == labels.bool()
    return right.double().mean(-1)


TEACHER = Logistic
