"""Kernel logistic regression whose kernel and λ are learned, on synthetic two-dimensional data.

Deck 001, "Неявное дифференцирование" and "Пример": the inner problem is solved, and the hypergradient is implicit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel import hypergradients
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.metrics import auc
from bilevel.optimizers import LBFGS, SGD, Fixed, Until
from bilevel.outer import Adam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Point, Result
from bilevel.runs import HonestLoop, greedy, honest, solve
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.kernel_logistic.data import Samples, draw
from bilevel.tasks.kernel_logistic.kernel import KERNELS, Pairs, pairs_of, scale_of
from bilevel.tasks.kernel_logistic.objective import (
    Objective,
    Train,
    Validation,
    cross_entropy,
    validation_loss,
)

Size = Annotated[int, Field(ge=20)]

LEVELS = tuple(exponent * math.log(10) for exponent in range(-6, 1))
"""Values of log λ of which the first one is chosen."""

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
    outer_steps: Count = 100
    outer_learning_rate: Positive = 0.3
    outer_tolerance: Positive | None = 1e-3
    inner_tolerance: Positive = 1e-8
    most_steps: Count = 500


class KernelLogistic(HonestLoop):
    """Chooses kernel and λ by the cross-entropy of validation points; see `Objective` for the inner problem.

    The solver is L-BFGS with unit steps: in these coordinates a line search needs as many, and more time for each.
    What it does not solve in `most_steps` is counted (`unsolved`, `solved`). Every step sees all data, so that inner
    batches are empty; training, validation and test sets of a seed are the same for all kernels.

    The first λ is that of `LEVELS` whose solution has the least validation loss, by seed and for every kernel alike:
    from a λ that is far too large the hypergradient leads on to larger ones, to a decision function that is constant.

    Trace, after k updates: `test_cross_entropy`, `test_auc`, `validation_cross_entropy`, `log_lambda`. In the honest
    loop these are of the inner problem solved at the hyperparameters of that moment; in the greedy loop of the
    parameters as the steps have left them.
    Summary, of solved inner problems in both loops, on test data: `cross_entropy`, `auc`, `error`; besides,
    `validation_cross_entropy` and `log_lambda`; the same with `_start` at the first hyperparameters. `solved` is 1
    where both were solved to `inner_tolerance`; `start_inner_steps` are those of the solver for the choice of the first
    λ. For `mixture`, of each part: `weight_…` p_j, `share_…`, its part
    p_j aᵀ K_j a / aᵀ K a in the squared norm of the decision function, and `width_…` of RBFs, in units of the data;
    `rbf_1` is the narrowest in the end, `rbf_3` the widest.
    Points, of the smallest seed of the job: `train`, labels; on a grid over the training data, before and after
    (`_start`, `_end`), `decision`, the probability of class 1, and `kernel`, that of K with the shares s_j in the place
    of the weights, Σ_j s_j K_j(x₀, x) / Σ_j s_j K_j(x₀, x₀); `center` is x₀.
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
        """No decision function at all, the first λ, equal weights."""
        state, hyper, _ = self._started
        return state.clone(), hyper.clone()

    @cached_property
    def _started(self) -> tuple[Tensor, Tensor, Tensor]:
        """First state and hyperparameters, and the solver's steps for their choice, (S,)."""
        zeros = self.train.points.new_zeros(len(self.seeds), self.settings.train_size + 1)
        state, losses, steps = self.optimizer.init(zeros), [], torch.zeros(len(self.seeds), dtype=torch.float64)
        tried = torch.stack([zeros.new_tensor(self.kernel.start(level)).repeat(len(zeros), 1) for level in LEVELS])
        for hyper in tried:
            found = solve(self, state, hyper, 0)
            loss = Derivatives(self.problem, hyper).outer_loss(self.optimizer.params(found.state), self._outer_batch)
            losses.append(torch.where(found.metrics["solved"].to(loss.device) > 0, loss, torch.inf))
            steps += found.metrics["inner_steps"]
        best = torch.stack(losses).nan_to_num(math.inf).argmin(0)
        return state, tried[best, torch.arange(len(zeros), device=best.device)], steps

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
            "start_inner_steps": self._started[2],
            **(self._parts(self.optimizer.params(after), hyper) if self.kernel.learned else {}),
        }

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """See the class."""
        before, hyper_before = self.start()
        seed, index = min((seed, index) for index, seed in enumerate(self.seeds))
        places = self._grid(index)
        center = places.new_tensor([CENTER])
        rows = _points(seed, "train", self.train.points[index], self.train.labels[index])
        rows += _points(seed, "center", center, center.new_ones(1))
        for when, where, chosen in (("start", before, hyper_before), ("end", state, hyper)):
            params = self.optimizer.params(self._solved(where, chosen)[0])
            (decided,) = self._decision(params, chosen, self._pairs(places))
            rows += _points(seed, f"decision_{when}", places, decided[index].sigmoid())
            shares = self._shares(params, chosen)[index]
            across, itself = (
                sum(
                    share * part[index, :, 0]
                    for share, part in zip(
                        shares, self.kernel.parts(chosen, pairs_of(left, center, self._scale)), strict=True
                    )
                )
                for left in (places, center)
            )
            rows += _points(seed, f"kernel_{when}", places, across / itself)
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
            "log_lambda": hyper[:, 0],
        }
        return {metric: values.cpu().double() for metric, values in found.items()}

    @torch.no_grad()
    def _shares(self, params: Tensor, hyper: Tensor) -> Tensor:
        """Part of each K_j in the squared norm of the decision function, (S, parts)."""
        expansion = self._objective.at(hyper).coordinates.coefficients(params)[0].unsqueeze(-1)
        parts = torch.stack(self.kernel.parts(hyper, self._outer_batch.train), dim=1)
        norms = self.kernel.weights(hyper) * (expansion.mT.unsqueeze(1) @ parts @ expansion.unsqueeze(1)).flatten(1)
        return norms / norms.sum(-1, keepdim=True)

    @torch.no_grad()
    def _parts(self, params: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """Weight, share and width of each part of the kernel."""
        widths = self.kernel.relative_widths(hyper) * self._scale.distance.squeeze(-1).sqrt()
        widths, order = widths.sort(dim=-1)
        found = {f"width_{name}": values for name, values in zip(self.kernel.names, widths.unbind(-1), strict=False)}
        for kind, values in (("weight", self.kernel.weights(hyper)), ("share", self._shares(params, hyper))):
            radial = values[:, : order.shape[-1]].gather(-1, order)
            ordered = torch.cat([radial, values[:, order.shape[-1] :]], -1)
            found |= {f"{kind}_{name}": part for name, part in zip(self.kernel.names, ordered.unbind(-1), strict=True)}
        return {metric: values.cpu().double() for metric, values in found.items()}

    def _grid(self, index: int) -> Tensor:
        """`GRID` by `GRID` points over the range of a seed's training points, (GRID², 2)."""
        points = self.train.points[index]
        axes = [torch.linspace(float(axis.min()), float(axis.max()), GRID) for axis in points.T]
        return torch.cartesian_prod(*axes).to(points)


def _nothing(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """The inner loss is all in `Objective`."""
    return params.new_zeros(())


def _points(seed: int, quantity: str, places: Tensor, values: Tensor) -> list[Point]:
    """Rounded: places (n, 2), values (n,)."""
    rows = torch.cat([places, values.unsqueeze(-1)], dim=-1).tolist()
    return [Point(seed, quantity, *(round(number, DIGITS) for number in row)) for row in rows]


TASK = KernelLogistic
