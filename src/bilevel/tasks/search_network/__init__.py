"""Searches and hypergradients for the regularization of a network, with more and more hyperparameters.

Deck 002, "Базовые методы оптимизации гиперпараметров", on a real problem: a small network for few digits, whose L2
coefficients are one for all weights, one for the weights of each ring of pixels, …, one for every weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bilevel import metrics
from bilevel.checkpoint import Checkpoint, State
from bilevel.cost import Cost
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.images import (
    MNIST_DEVIATION,
    MNIST_MEAN,
    SETS,
    Images,
    check_sizes,
    counts_of,
    divide,
    splits_of,
    standardized,
)
from bilevel.models import perceptron
from bilevel.optimizers import Momentum
from bilevel.outer import Adam
from bilevel.penalties import L2
from bilevel.problem import Problem
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Result
from bilevel.runs import blank, cost_scalars
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.base import Task
from bilevel.tasks.search_function.base import Search, best_so_far, check_affordable, run
from bilevel.tasks.search_function.random import first_points
from bilevel.tracing import traced

PRODUCT = 2
"""Gradients that a product with the Hessian counts for."""


class SearchNetworkSettings(Settings):
    """Settings of the experiment.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    hyperparameters: numbers n of coefficients, rising, see `group_sizes`.
    evaluations: whole trainings that a method has for each n.
    inner_steps: T, steps of a training, each on all training images.
    learning_rate, momentum: of these.
    outer_learning_rate: of the Adam that moves logarithms of coefficients along hypergradients.
    lowest, highest: bounds of the coefficients.
    start: where hypergradients begin: at the first random draw, where searches begin too, or in the `middle` of the
        bounds, which is more than a search knows.
    """

    train_size: Count = 100
    validation_size: Count = 500
    test_size: Count | None = 2000
    hyperparameters: list[Count] = Field(default=[1, 2, 10, 50, 197, 3322], min_length=1)
    evaluations: Count = 25
    inner_steps: Count = 60
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    outer_learning_rate: Positive = 0.8
    lowest: Positive = 1e-4
    highest: Positive = 10.0
    start: Literal["random", "middle"] = "random"

    @model_validator(mode="after")
    def _fits(self) -> SearchNetworkSettings:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} should be below highest {self.highest}")
        if sorted(set(self.hyperparameters)) != self.hyperparameters:
            raise ValueError(f"hyperparameters: expected rising numbers, got {self.hyperparameters}")
        for count in self.hyperparameters:
            group_sizes(count)
        return self


class Evaluations(NamedTuple):
    """Trainings one after the other, N of them.

    validation, test, error: cross-entropies, and the fraction of wrong classes on test images, each (N, S).
    gradients: evaluations of a gradient so far, (N,), a product with the Hessian counted as two.
    """

    validation: Tensor
    test: Tensor
    error: Tensor
    gradients: Tensor


class SearchNetwork(Task):
    """Best validation loss of a method against trainings, and against gradients, with n hyperparameters.

    L₁ = mean cross-entropy on few images + ½ Σᵢ exp(λ_k(i)) wᵢ², L₂ = cross-entropy on validation images. A training is
    T steps of momentum from the seed's first weights; methods differ in the λ that they train with next. Images,
    weights and first draws of λ depend on the seed alone: all but the grid begin with the same λ, uniform between the
    bounds; TPE and the Gaussian process make their first ten trials at random. Searches of all seeds go on side by
    side. There is no grid where 2ⁿ is more than the evaluations: its metrics are left out.

    Gradients are those in `Cost`: T a training, and what a hypergradient takes besides. A product with ∂²L₁/∂w∂w counts
    as two gradients, one with ∂²L₁/∂λ∂w, which is that of the penalty, elementwise, not at all. `equal_cost` is after
    the trainings that fit into as many gradients as a search takes in all, N T for N evaluations.

    Two axes share the trace. Step k: after k trainings, `best_<n>` (validation loss), `test_<n>` (test loss where
    validation is best) and `gradients_<n>` (so far). Step n: with n hyperparameters at the end, `validation_loss`,
    `test_loss`, `test_error`, and the same with `_equal_cost`.
    Summary: `validation_loss_<n>`, …, `test_error_equal_cost_<n>`; `validation_gain_<n>` and `test_gain_<n>`, by how
    much the losses at equal cost are below those with the fewest hyperparameters; counts a training.

    Source: Bergstra and Bengio 2012; deck 002.
    """

    settings_class = SearchNetworkSettings
    methods = (
        "grid",
        "random",
        "sobol",
        "tpe",
        "gaussian_process",
        "unrolled",
        "truncated",
        "conjugate_gradient",
        "neumann",
        "aggregated",
    )

    @classmethod
    def check_method(cls, settings: Settings, method: Any) -> None:
        """SettingsError for a search that is possible with none of the numbers of hyperparameters."""
        assert isinstance(settings, SearchNetworkSettings)
        if isinstance(method, Search):
            check_affordable(method, "hyperparameters", settings.hyperparameters, settings.evaluations)

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Draw the images and the first weights of every seed."""
        assert isinstance(settings, SearchNetworkSettings)
        assert dataset is not None
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.settings, self.seeds, self.device = settings, list(seeds), device
        shares = [_share(dataset, settings, study, seed) for seed in seeds]
        self.sets = {name: _stacked([share[name] for share in shares], device) for name in SETS}
        self.optimizer = Momentum(learning_rate=settings.learning_rate, momentum=settings.momentum)
        first = [perceptron.initial(generator(study, "initialization", seed)) for seed in seeds]
        self.start = self.optimizer.init(torch.stack(first).to(device))
        self.search_seeds = [generator(study, "search", seed).initial_seed() % 2**32 for seed in seeds]
        self.bounds = math.log(settings.lowest), math.log(settings.highest)

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data."""
        assert isinstance(settings, SearchNetworkSettings)
        check_sizes(settings, name, counts)

    def run(self, method: Search | Hypergradient, name: str) -> Result:
        """See `Task`."""
        counts, cost, progress = self.settings.hyperparameters, Cost(), Progress(name, "number of hyperparameters")
        found: dict[int, Evaluations] = {}
        for index, count in enumerate(counts):
            if isinstance(method, Hypergradient) or method.affords(count, self.settings.evaluations):
                kept = self.checkpoint.kept(f"{count} hyperparameters", partial(self._evaluated, method, count))
                found[count], cost = Evaluations(*kept["evaluations"]), cost + Cost(**kept["cost"])
            progress.report(index + 1, len(counts))
        alive = torch.stack([_alive(evaluations.validation, method) for evaluations in found.values()]).all(0)
        most = self.settings.evaluations * self.settings.inner_steps
        at_end = {count: _at_end(evaluations, most) for count, evaluations in found.items()}
        trainings = sum(len(evaluations.validation) for evaluations in found.values())
        summary = {**blank(_summary(at_end), alive), **cost_scalars(cost, trainings, alive)}
        return Result(alive, _trace(found, at_end), summary)

    def problem(self, count: int) -> Problem:
        """With so many hyperparameters."""
        return replace(_PROBLEM, inner_penalty=L2(group_sizes(count)))

    def _evaluated(self, method: Search | Hypergradient, count: int, checkpoint: Checkpoint) -> State:
        """Trainings with so many hyperparameters, and what they cost."""
        if isinstance(method, Hypergradient):
            rows, cost = self._descend(method, count, checkpoint)
        else:
            rows, cost = self._search(method, count, checkpoint)
        return {"evaluations": _evaluations(rows), "cost": vars(cost)}

    def _search(self, method: Search, count: int, checkpoint: Checkpoint) -> tuple[list[list[Tensor]], Cost]:
        problem, cost, rows = self.problem(count), Cost(), list[list[Tensor]]()

        def trial(points: Tensor) -> State:
            derivatives = Derivatives(problem, points.to(self.start))
            state = self.start.clone()
            for _ in range(self.settings.inner_steps):
                self.optimizer.advance_(derivatives, state, self.sets["train"])
            validation = derivatives.outer_loss(self.optimizer.params(state), self.sets["validation"])
            return {"row": [validation, *self._test(state)], "cost": vars(derivatives.cost)}

        def objective(points: Tensor) -> Tensor:
            nonlocal cost
            found = checkpoint.kept(f"training {len(rows) + 1}", lambda _: trial(points))
            cost = cost + Cost(**found["cost"])
            rows.append([*found["row"], _gradients(cost)])
            return rows[-1][0]

        run(method, objective, count, self.bounds, self.settings.evaluations, self.search_seeds)
        return rows, cost

    def _descend(self, method: Hypergradient, count: int, checkpoint: Checkpoint) -> tuple[list[list[Tensor]], Cost]:
        problem, cost, rows = self.problem(count), Cost(), list[list[Tensor]]()
        outer = Adam(self.settings.outer_learning_rate)
        hyper = self._first(count)
        if (found := checkpoint.found) is not None:
            rows, hyper, cost = found["rows"], found["hyper"], Cost(**found["cost"])
            outer.restore(found["outer"])
        batches = [self.sets["train"]] * self.settings.inner_steps
        while len(rows) < self.settings.evaluations:
            estimate = method(problem, self.optimizer, self.start, hyper, batches, self.sets["validation"])
            cost = cost + estimate.cost
            rows.append([estimate.outer_loss, *self._test(estimate.state), _gradients(cost)])
            hyper = outer.step(hyper, estimate.hypergradient).clamp(*self.bounds)
            checkpoint.keep({"rows": rows, "hyper": hyper, "cost": vars(cost), "outer": outer.state()})
        return rows, cost

    def _first(self, count: int) -> Tensor:
        """Hyperparameters (S, H) that descent begins with."""
        if self.settings.start == "middle":
            return self.start.new_full((len(self.seeds), count), sum(self.bounds) / 2)
        return first_points(count, self.bounds, self.search_seeds).to(self.start)

    def _test(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and error on test images, (S,)."""
        rows = []
        for params, images, labels in zip(self.optimizer.params(state), *self.sets["test"], strict=True):
            logits = perceptron.forward(params, images)
            rows.append((metrics.cross_entropy(logits, labels), metrics.error(logits, labels)))
        loss, error = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        return loss, error


def group_sizes(count: int) -> list[int] | None:
    """Numbers of consecutive weights that share a coefficient, n groups.

    One: all weights and biases. Up to 197: one for everything behind the hidden layer's weights, and the others for the
    weights of n − 1 rings of pixels, about as many in each. As many as parameters: every one by itself, None.

    Raises ValueError for another number.
    """
    rings, size = count - 1, perceptron.LAYOUT.size
    if count == size:
        return None
    if rings > perceptron.PIXELS:
        raise ValueError(
            f"hyperparameters: expected at most {perceptron.PIXELS + 1}, or {size}, one for every weight; got {count}"
        )
    parts = torch.arange(perceptron.PIXELS).tensor_split(rings) if rings else ()
    inputs = [len(part) * perceptron.HIDDEN for part in parts]
    return [*inputs, size - sum(inputs)]


def _share(dataset: Dataset, settings: SearchNetworkSettings, study: str, seed: int) -> dict[str, Images]:
    ids, splits = divide(dataset, settings, study, seed), splits_of(dataset)
    return {
        name: Images(
            perceptron.pixels(standardized(splits[name].images[ids[name]], MNIST_MEAN, MNIST_DEVIATION)),
            splits[name].labels[ids[name]],
        )
        for name in SETS
    }


def _stacked(shares: Sequence[Images], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels (S, N, 196) and labels (S, N)."""
    images, labels = zip(*shares, strict=True)
    return torch.stack(images).to(device), torch.stack(labels).to(device)


def _gradients(cost: Cost) -> Tensor:
    return torch.tensor(cost.gradients + PRODUCT * cost.hessian_products, dtype=torch.float64)


def _evaluations(rows: Sequence[Sequence[Tensor]]) -> Evaluations:
    return Evaluations(*(torch.stack(list(column)).cpu().double() for column in zip(*rows, strict=True)))


def _alive(validation: Tensor, method: Search | Hypergradient) -> Tensor:
    """A search passes over trainings that fail, descent does not: what follows them means nothing."""
    finite = torch.isfinite(validation)
    return finite.all(0) if isinstance(method, Hypergradient) else finite.any(0)


def _at_end(evaluations: Evaluations, most: int) -> dict[str, Tensor]:
    """Metrics of what validation chose, of all trainings and of those within `most` gradients; NaN where none is."""
    affordable = int((evaluations.gradients <= most).sum())
    return {
        f"{metric}{suffix}": values
        for suffix, count in (("", len(evaluations.validation)), ("_equal_cost", affordable))
        for metric, values in _chosen(evaluations, count).items()
    }


def _chosen(evaluations: Evaluations, count: int) -> dict[str, Tensor]:
    """Metrics of the training that is best on validation images among the first `count`, each (S,)."""
    if count == 0:
        none = torch.full_like(evaluations.validation[0], math.nan)
        return {"validation_loss": none, "test_loss": none, "test_error": none}
    least, places = best_so_far(evaluations.validation)
    best = places[count - 1 : count]
    return {
        "validation_loss": least[count - 1],
        "test_loss": evaluations.test.gather(0, best).squeeze(0),
        "test_error": evaluations.error.gather(0, best).squeeze(0),
    }


def _trace(
    found: Mapping[int, Evaluations], at_end: Mapping[int, Mapping[str, Tensor]]
) -> dict[int, dict[str, Tensor]]:
    trace: dict[int, dict[str, Tensor]] = {}
    for count, evaluations in found.items():
        least, places = best_so_far(evaluations.validation)
        tests = evaluations.test.gather(0, places)
        for index, gradients in enumerate(evaluations.gradients):
            own = {"best": least[index], "test": tests[index], "gradients": gradients.expand_as(least[index])}
            trace.setdefault(index + 1, {}).update({f"{metric}_{count}": values for metric, values in own.items()})
        trace.setdefault(count, {}).update(at_end[count])
    return dict(sorted(trace.items()))


def _summary(at_end: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    fewest = at_end[min(at_end)]
    summary = {f"{metric}_{count}": values for count, own in at_end.items() for metric, values in own.items()}
    for kind in ("validation", "test"):
        metric = f"{kind}_loss_equal_cost"
        summary |= {f"{kind}_gain_{count}": fewest[metric] - own[metric] for count, own in at_end.items()}
    return summary


_PROBLEM = traced(Problem(perceptron.loss, perceptron.loss))
"""Here, so that all tasks of a process share its recordings."""

TASK = SearchNetwork
