"""Kernel logistic regression whose kernel and λ are learned, on synthetic two-dimensional data.

Deck 001, "Неявное дифференцирование" and "Пример": the inner problem is solved, and the hypergradient is implicit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel import hypergradients
from bilevel.data import Dataset
from bilevel.hypergradients import Hypergradient
from bilevel.metrics import auc
from bilevel.optimizers import LBFGS, SGD, Fixed, Until
from bilevel.outer import Adam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Point, Result
from bilevel.runs import greedy, honest, solve
from bilevel.settings import Settings, SettingsError
from bilevel.tasks.base import HonestLoop
from bilevel.tasks.kernel_logistic.data import Samples, draw
from bilevel.tasks.kernel_logistic.kernel import KERNELS, Pairs, pairs_of, scale_of
from bilevel.tasks.kernel_logistic.objective import (
    Objective,
    Train,
    Validation,
    cross_entropy,
    validation_loss,
)

Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=20)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

INITIAL_LEVEL = -4.6
"""First log λ: λ = 0.01."""

LEARNING_RATE = 1.0
"""Of the differentiated inner steps: the inverse of the bound on the Hessian, see `Objective`."""

GRID = 41
"""Points of the plane along each axis, for figures."""

CENTER = (1.0, 0.0)
"""x₀, on the minority's ring: figures show K(x₀, x)."""

DIGITS = 6
"""Of the numbers for figures, after the point."""


class KernelLogisticSettings(Settings):
    """kernel: `linear`, or `rbf` with the median distance of training points as its width: only λ is learned; `mixture`
        of three RBFs, the linear and a quadratic kernel: weights, widths and λ are. See `kernel.Kernel`.
    train_size, validation_size, test_size: numbers of samples.
    loop: `honest`, which solves the inner problem before each update, or `greedy`. See `bilevel.runs`.
    inner_steps: differentiated steps of gradient descent between two updates: after the solution, or, in the greedy
        loop, all there are.
    outer_steps: updates of the hyperparameters, at most. outer_learning_rate: of Adam on them.
    outer_tolerance: norm of the hypergradient at which a seed is done; None: after `outer_steps`.
    inner_tolerance: norm of the inner gradient at which the inner problem is solved.
    most_steps: of L-BFGS for one solution.
    """

    kernel: Literal["linear", "rbf", "mixture"] = "mixture"
    train_size: Size = 200
    validation_size: Size = 200
    test_size: Size = 1000
    loop: Literal["honest", "greedy"] = "honest"
    inner_steps: Count = 1
    outer_steps: Count = 40
    outer_learning_rate: Positive = 0.3
    outer_tolerance: Positive | None = 1e-4
    inner_tolerance: Positive = 1e-8
    most_steps: Count = 500


class KernelLogistic(HonestLoop):
    """Chooses kernel and λ by the cross-entropy of validation points; see `Objective` for the inner problem.

    The solver is L-BFGS with unit steps: in these coordinates a line search needs as many, and more time for each.
    What it does not solve in `most_steps` is counted (`unsolved`, `solved`). Every step sees all data, so that inner
    batches are empty; training, validation and test sets of a seed are the same for all kernels.

    Trace, after k updates: `test_cross_entropy`, `test_auc`, `validation_cross_entropy`, `log_lambda`. In the honest
    loop these are of the inner problem solved at the hyperparameters of that moment; in the greedy loop of the
    parameters as the steps have left them.
    Summary, of solved inner problems in both loops, on test data: `cross_entropy`, `auc`, `error`; besides,
    `validation_cross_entropy` and `lambda`; the same with `_start` at the first hyperparameters. `solved` is 1 where
    both were solved to `inner_tolerance`. For `mixture`, of each part: `weight_…` p_j, `share_…`, its part
    p_j aᵀ K_j a / aᵀ K a in the squared norm of the decision function, and `width_…` of RBFs, in units of the data.
    Points, of seed 0: `train`, labels; on a grid over the training data, before and after (`_start`, `_end`),
    `decision`, the probability of class 1, and `kernel`, K(x₀, x) / K(x₀, x₀); `center` is x₀.
    """

    settings_class = KernelLogisticSettings
    # there is no complex Cholesky factorization that is analytic, and nothing that undoes a step of gradient descent
    methods = tuple(name for name in hypergradients.names() if name not in ("complex_step", "reversible"))

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Draw the data of every seed; SettingsError where a set has no sample of one class."""
        assert isinstance(settings, KernelLogisticSettings)
        self.settings, self.seeds, self.device = settings, list(seeds), device
        self.outer_steps, self.outer_tolerance = settings.outer_steps, settings.outer_tolerance
        self.solver = Until(LBFGS(step_size=Fixed(1.0)), gradient_norm=settings.inner_tolerance)
        self.most_steps = settings.most_steps
        self.optimizer = SGD(learning_rate=LEARNING_RATE)
        self.kernel = KERNELS[settings.kernel]
        self.train, self.validation, self.test = self._draw(study)
        self._scale = scale_of(self.train.points)
        inner = Train(self._pairs(self.train.points), self.train.labels)
        self._outer_batch = Validation(inner.pairs, self._pairs(self.validation.points), self.validation.labels)
        self._test_pairs = self._pairs(self.test.points)
        self._objective = Objective(self.kernel, inner)
        self.problem = Problem(_nothing, partial(validation_loss, self.kernel), self._objective)

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        loop = honest if self.settings.loop == "honest" else greedy
        return loop(self, method, name)

    def start(self) -> tuple[Tensor, Tensor]:
        """No decision function at all, λ = 0.01, equal weights."""
        first = torch.tensor(self.kernel.start(INITIAL_LEVEL), dtype=torch.float64, device=self.device)
        params = first.new_zeros(len(self.seeds), self.settings.train_size + 1)
        return self.optimizer.init(params), first.repeat(len(self.seeds), 1)

    def outer_optimizer(self) -> Adam:
        """Adam with its default decay rates."""
        return Adam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """Nothing for the inner steps, which see all training data; all validation data."""
        return [None] * self.settings.inner_steps, self._outer_batch

    def inner_batch(self, step: int) -> Batch:
        """Nothing: see `draw`."""
        return None

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        if self.settings.loop == "honest":
            state = self._solved(state, hyper)[0]
        metrics = self._metrics(self.optimizer.params(state), hyper)
        return {
            "test_cross_entropy": metrics["cross_entropy"],
            "test_auc": metrics["auc"],
            "validation_cross_entropy": metrics["validation_cross_entropy"],
            "log_lambda": hyper[:, 0].cpu().double(),
        }

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        before, hyper_before = self.start()
        before, solved_before = self._solved(before, hyper_before)
        after, solved = self._solved(state, hyper)
        started = self._metrics(self.optimizer.params(before), hyper_before)
        return {
            **self._metrics(self.optimizer.params(after), hyper),
            **{f"{metric}_start": values for metric, values in started.items()},
            "solved": solved * solved_before,
            **(self._parts(self.optimizer.params(after), hyper) if self.kernel.learned else {}),
        }

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """See the class; none without seed 0."""
        if self.seeds[0] != 0:
            return []
        before, hyper_before = self.start()
        places = self._grid()
        center = places.new_tensor([CENTER])
        rows = _points("train", self.train.points[0], self.train.labels[0])
        rows += _points("center", center, center.new_ones(1))
        for when, where, chosen in (("start", before, hyper_before), ("end", state, hyper)):
            params = self.optimizer.params(self._solved(where, chosen)[0])
            (decided,) = self._decision(params, chosen, self._pairs(places))
            rows += _points(f"decision_{when}", places, decided[0].sigmoid())
            across, itself = (
                self.kernel.matrix(chosen, pairs_of(left, center, self._scale))[0, :, 0] for left in (places, center)
            )
            rows += _points(f"kernel_{when}", places, across / itself)
        return rows

    def _draw(self, study: str) -> list[Samples]:
        """Training, validation and test samples, each with the seed axis, drawn in this order."""
        s = self.settings
        draws, sets = [generator(study, "data", seed) for seed in self.seeds], []
        for name, size in (("train", s.train_size), ("validation", s.validation_size), ("test", s.test_size)):
            samples = [draw(size, each) for each in draws]
            for seed, sample in zip(self.seeds, samples, strict=True):
                if not 0 < int(sample.labels.sum()) < size:
                    raise SettingsError(f"{name}_size: all {size} samples of seed {seed} are of one class; take more")
            sets.append(Samples(*(torch.stack(part).to(self.device) for part in zip(*samples, strict=True))))
        return sets

    def _pairs(self, points: Tensor) -> Pairs:
        """Points (..., n, 2) with the training points."""
        return pairs_of(points, self.train.points, self._scale)

    def _solved(self, state: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """The state at the solution of the inner problem, from `state` on, and which seeds have arrived, (S,)."""
        found = solve(self, state, hyper, 0)
        return found.state, found.metrics["solved"]

    @torch.no_grad()
    def _decision(self, params: Tensor, hyper: Tensor, *pairs: Pairs) -> list[Tensor]:
        """The decision function at points, (S, m) for each of `pairs`."""
        found = self._objective.at(hyper).coordinates
        return [found.decision(params, self.kernel.matrix(hyper, each)) for each in pairs]

    def _metrics(self, params: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        validation, test = self._decision(params, hyper, self._outer_batch.pairs, self._test_pairs)
        classes = self.test.labels == 1
        areas = [auc(scores, positive) for scores, positive in zip(test, classes, strict=True)]
        found = {
            "cross_entropy": cross_entropy(test, self.test.labels),
            "auc": torch.tensor(areas, dtype=torch.float64),
            "error": ((test > 0) != classes).double().mean(-1),
            "validation_cross_entropy": cross_entropy(validation, self.validation.labels),
            "lambda": hyper[:, 0].exp(),
        }
        return {metric: values.cpu().double() for metric, values in found.items()}

    @torch.no_grad()
    def _parts(self, params: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """Weight, share and width of each part of the kernel."""
        train = self._outer_batch.train
        expansion = self._objective.at(hyper).coordinates.coefficients(params)[0].unsqueeze(-1)
        weights = self.kernel.weights(hyper).unbind(-1)
        parts = self.kernel.parts(hyper, train)
        norms = torch.stack(
            [w * (expansion.mT @ part @ expansion).flatten() for w, part in zip(weights, parts, strict=True)]
        )
        widths = self.kernel.relative_widths(hyper) * self._scale.distance.squeeze(-1).sqrt()
        names = self.kernel.names
        found = {
            **{f"weight_{name}": values for name, values in zip(names, weights, strict=True)},
            **{f"share_{name}": values for name, values in zip(names, norms / norms.sum(0), strict=True)},
            **{f"width_{name}": values for name, values in zip(names, widths.unbind(-1), strict=False)},
        }
        return {metric: values.cpu().double() for metric, values in found.items()}

    def _grid(self) -> Tensor:
        """`GRID` by `GRID` points over the range of seed 0's training points, (GRID², 2)."""
        points = self.train.points[0]
        axes = [torch.linspace(float(axis.min()), float(axis.max()), GRID) for axis in points.T]
        return torch.cartesian_prod(*axes).to(points)


def _nothing(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """The inner loss is all in `Objective`."""
    return params.new_zeros(())


def _points(quantity: str, places: Tensor, values: Tensor) -> list[Point]:
    """Of seed 0, rounded: places (n, 2), values (n,)."""
    rows = torch.cat([places, values.unsqueeze(-1)], dim=-1).tolist()
    return [Point(0, quantity, *(round(number, DIGITS) for number in row)) for row in rows]


TASK = KernelLogistic
