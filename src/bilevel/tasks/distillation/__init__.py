"""Distillation of a logistic regression (deck 004), as far as both protocols share it.

Metaparameters are the weights of the two terms of the student's loss and a temperature; they are updated after every
step of the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients.none import NoHypergradient
from bilevel.optimizers import Adam
from bilevel.outer import Adam as OuterAdam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Point
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.distillation.metaparameters import BETAS, TEMPERATURES, inverse, random_values, values
from bilevel.tasks.distillation.search import TPE, DistilledSettings, Searched
from bilevel.teachers.logistic import (
    SETS,
    accuracy,
    cross_entropy,
    cross_entropy_loss,
    first_parameters,
    margin,
    margins,
    signs,
    teacher_features,
)
from bilevel.tracing import traced

if TYPE_CHECKING:
    from bilevel.search import Params, Space

Divergence = Literal["teacher_student", "student_teacher"]

GRID, EDGE, BESIDE = 41, 3.0, 1e-6
"""Decisions are kept at so many values of x₁ and of x₂ between −3 and 3; in the place of 0, where the teacher jumps,
there are two, just beside it."""


class DistillationSettings(DistilledSettings):
    """What all experiments with distillation on synthetic data have; the defaults are those of the published run.

    iterations, prediction, evaluate_every: see `DistilledSettings`.
    learning_rate: of Adam on the student.
    outer_learning_rate: of Adam, with decay rates 0.5 and 0.999, on the metaparameters.
    start: first metaparameters, which methods that do not move them keep: `none`: β of the student 1, no distillation;
        `naive`: both β 0.5, temperature 1; `random`: β uniform on (0, 1) and between 0.01 and 0.99, the temperature
        log-uniform on (0.1, 10); `learned`: r₁, r₂ uniform on (−1, 1) and r₃ on (−2, 0), see `Distillation`.
    """

    iterations: Count = 20_000
    learning_rate: Positive = 1e-3
    outer_learning_rate: Positive = 1e-3
    start: Literal["none", "naive", "random", "learned"] = "learned"
    evaluate_every: Count = 1000


class Labelled(NamedTuple):
    """Samples of all seeds: features (S, n, 4), signs of the labels (S, n)."""

    features: Tensor
    signs: Tensor


class Distilled(NamedTuple):
    """What a student learns from: features (S, n, 4), signs of the labels (S, n), margins of the teacher (S, n)."""

    features: Tensor
    signs: Tensor
    teacher: Tensor


def student_features(points: Tensor) -> Tensor:
    """x₁, x₂, x₁ x₂ and a one for the bias, (..., 4), of points (..., 2)."""
    return torch.cat([points, points.prod(-1, keepdim=True), torch.ones_like(points[..., :1])], dim=-1)


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """Mean of KL(p ‖ q) = σ(a) (a − b) − log(1 + eᵃ) + log(1 + eᵇ), a scalar, where p and q give two classes the
    margins a and b (n,)."""
    each = torch.sigmoid(left) * (left - right) - softplus(left, threshold=40.0) + softplus(right, threshold=40.0)
    return each.mean()


def distillation_loss(direction: Divergence, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """β₁ KL + β₂ CE of one seed, see `Distillation`."""
    beta_distillation, beta_student, temperature = values(hyper)
    student = margin(params, batch.features)
    softened = (batch.teacher / temperature, student / temperature)
    first, second = softened if direction == "teacher_student" else softened[::-1]
    return beta_distillation * divergence(first, second) + beta_student * cross_entropy(student, batch.signs)


class Distillation(Searched):
    """Trains a student, Linear(3, 2) on x₁, x₂ and x₁ x₂, by Adam on all its samples, whose loss

        β₁ · KL of teacher and student, both softened by T, + β₂ · cross-entropy with the labels

    has metaparameters β₁ = σ(r₁), β₂ = σ(r₂), T = 10 σ(r₃), moved by Adam after every step. Both terms are means over
    samples; there is no factor T², as on the slide. The cross-entropy with the teacher's softened labels, which the
    slide has, differs from KL(teacher ‖ student) by what does not depend on the student: its derivatives by w, and by w
    and λ, are the same. The slide's β₁ is the β₂ here and in the code of the published run.

    Methods: `none` keeps the first metaparameters (`start`). With one step at a time `truncated` is the exact greedy
    hypergradient, through Adam's step; `darts` its finite difference. `tpe` searches, see `search.TPE`.

    Trace: `test_accuracy`, `validation_accuracy`, `test_cross_entropy`, `beta_distillation` (β₁), `beta_student` (β₂),
    `temperature`. Summary: the same at the end, and `teacher_accuracy` on the test samples. Points, of seed 0: `train`
    and `test`, labels of the student's and of the test samples; `decision_student` and `decision_teacher`, the
    probability of class 1, on a grid.

    Source: deck 004, slides "Постановка задачи" and "Градиентные методы оптимизации".
    """

    space: ClassVar[Space] = {
        "beta_distillation": (*BETAS, False),
        "beta_student": (*BETAS, False),
        "temperature": (*TEMPERATURES, True),
    }
    tuned_on: Literal["validation", "test"]
    divergence: Divergence
    settings_class: ClassVar[type[Settings]] = DistillationSettings
    teacher_kind = "logistic"
    settings: DistillationSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Everything but the data, which come with the teachers."""
        assert isinstance(settings, DistillationSettings)
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.outer_steps, self.evaluate_every = settings.iterations, settings.evaluate_every
        self.prediction = settings.prediction
        self.optimizer = Adam(learning_rate=settings.learning_rate)
        self.problem = traced(Problem(partial(distillation_loss, self.divergence), cross_entropy_loss))
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def check_method(cls, settings: Settings, method: Any) -> None:
        """See `Searched`; SettingsError also where metaparameters start at infinity and are to be moved."""
        super().check_method(settings, method)
        assert isinstance(settings, DistillationSettings)
        if settings.start == "none" and not isinstance(method, NoHypergradient | TPE):
            raise SettingsError(
                "start: without distillation a weight is 0, which is r = −∞, and gradients cannot move it; give "
                "another start, or the method none"
            )

    def use_teachers(self, teachers: Sequence[Mapping[str, Tensor]]) -> None:
        """Take parameters and samples; SettingsError for teachers of another kind than `logistic`."""
        wanted = {"parameters", *(f"{name}_{part}" for name in SETS for part in ("points", "labels"))}
        self.check_tensors(teachers, wanted)
        stacked = {name: torch.stack([tensors[name] for tensors in teachers]).to(self.device) for name in wanted}
        self._sets = {name: (stacked[f"{name}_points"], stacked[f"{name}_labels"]) for name in SETS}
        self._teacher = stacked["parameters"]
        train, taught = self._labelled("student"), teacher_features(self._sets["student"][0])
        self._batches = [Distilled(*train, margins(self._teacher, taught))]
        self._outer_batch = self._labelled(self.tuned_on)

    def start(self) -> tuple[Tensor, Tensor]:
        """The student's first parameters, the same for all arms, and the first r."""
        params = torch.stack([first_parameters(generator(self.study, "initialization", seed)) for seed in self.seeds])
        hyper = torch.stack([self._first_hyper(seed) for seed in self.seeds])
        return self.optimizer.init(params.to(self.device)), hyper.to(self.device)

    def _first_hyper(self, seed: int) -> Tensor:
        if self.settings.start == "learned":
            draws = torch.rand(3, generator=generator(self.study, "metaparameters", seed), dtype=torch.float64)
            return 2 * draws - torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
        if self.settings.start == "random":
            return inverse(*random_values(generator(self.study, "random metaparameters", seed)))
        return inverse(*{"none": (0.0, 1.0, 1.0), "naive": (0.5, 0.5, 1.0)}[self.settings.start])

    def outer_optimizer(self) -> OuterAdam:
        """Adam with the published decay rates."""
        return OuterAdam(self.settings.outer_learning_rate, betas=(0.5, 0.999))

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """All of the student's samples, and all of those that metaparameters are tuned on."""
        return self._batches, self._outer_batch

    def inner_batches(self, step: int) -> Sequence[Batch]:
        """All of the student's samples."""
        return self._batches

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        params = self.optimizer.params(state)
        found = {
            f"{name}_accuracy": accuracy(params, student_features(self._sets[name][0]), self._sets[name][1])
            for name in ("test", "validation")
        }
        test = self._labelled("test")
        found["test_cross_entropy"] = cross_entropy(margins(params, test.features), test.signs)
        found |= dict(zip(("beta_distillation", "beta_student", "temperature"), values(hyper), strict=True))
        return {metric: numbers.cpu().double() for metric, numbers in found.items()}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        points, labels = self._sets["test"]
        teacher = accuracy(self._teacher, teacher_features(points), labels)
        return {**self.evaluate(state, hyper), "teacher_accuracy": teacher.cpu()}

    def hyper_of(self, params: Sequence[Params]) -> Tensor:
        """r (S, 3)."""
        return torch.stack([inverse(**one) for one in params]).to(self.device)

    def tuned_loss(self, state: Tensor, hyper: Tensor) -> Tensor:
        """The outer loss."""
        return Derivatives(self.problem, hyper).outer_loss(self.optimizer.params(state), self._outer_batch).cpu()

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """See the class; none without seed 0."""
        if 0 not in self.seeds:
            return []
        index = self.seeds.index(0)
        positive = torch.linspace(0, EDGE, GRID // 2 + 1, dtype=torch.float64).clamp_min(BESIDE)
        axis = torch.cat([-positive.flip(0), positive])
        grid = torch.cartesian_prod(axis, axis)
        student, teacher = self.optimizer.params(state)[index].cpu(), self._teacher[index].cpu()
        rows = {
            "train": self._labelled_points("student", index),
            "test": self._labelled_points("test", index),
            "decision_student": (grid, torch.sigmoid(margin(student, student_features(grid)))),
            "decision_teacher": (grid, torch.sigmoid(margin(teacher, teacher_features(grid)))),
        }
        return [
            Point(0, quantity, x, y, value)
            for quantity, (places, found) in rows.items()
            for (x, y), value in zip(places.tolist(), found.double().tolist(), strict=True)
        ]

    def _labelled_points(self, name: str, index: int) -> tuple[Tensor, Tensor]:
        places, labels = self._sets[name]
        return places[index].cpu(), labels[index].cpu()

    def _labelled(self, name: str) -> Labelled:
        points, labels = self._sets[name]
        return Labelled(student_features(points), signs(labels))
