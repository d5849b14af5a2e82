"""Learning-rate and momentum schedules learned by gradient through a whole training: RMAD of deck 002.

Maclaurin, Duvenaud and Adams learned a rate and a momentum for each of 100 steps, and for the weights and the biases of
each layer, of a network trained on MNIST, from the exact hypergradient of the last loss, with the training run
backwards instead of being stored. What is as in the paper: the network 784-50-50-50-10, 100 steps, the groups, Adam
with step 0.04 on logarithms of rates and logits of momenta, 50 of its steps. What is not: fewer images, and
smaller ones unless `pool` is 1; momentum in the
convention of `torch.optim.SGD`, m ← μ m + g, where the paper has m ← μ m + (1 − μ) g, so that a rate of 0.1 at momentum
0.9 is the paper's first rate of 1; and the loss, unless `outer_set` says otherwise, is that of validation images.

Source: Maclaurin et al. 2015, section 3.1; deck 002, "RMAD".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel import metrics
from bilevel.checkpoint import State
from bilevel.cost import Cost
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.base import advance
from bilevel.images import Batches, Images, check_sizes, counts_of, flat_share, stacked
from bilevel.models.mlp import MLP
from bilevel.optimizers import Learned, Momentum
from bilevel.outer import Adam
from bilevel.problem import Batch, Problem
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Metrics, Point, Result
from bilevel.runs import OuterLoop, blank, cost_scalars, greedy
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.rmad.grid import Grid
from bilevel.tracing import traced

if TYPE_CHECKING:
    from bilevel.search import Params, Space


SIDE, CLASSES = 28, 10
RATES, MOMENTUM_GAPS = (0.01, 1.0), (0.01, 1.0)
"""Where constant rates and 1 − momentum are searched for, by their logarithms."""
CURVE_POINTS = 20
"""Places at which the loss along a training is kept for figures."""


class RMADSettings(Settings):
    """Settings of the experiment.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    pool: side of the squares of pixels whose means the network sees; 1: all pixels.
    hidden: units of the hidden layers, which are tanh.
    inner_steps: T, steps of a training. batch_size: images of a step.
    schedule: what is learned: a rate and a momentum; those of each step; those of each step for the weights and for the
        biases of each layer.
    learning_rate, momentum: where all of these start.
    outer_steps: trainings that are differentiated. outer_learning_rate: of Adam on logarithms of rates and logits of
        momenta.
    outer_set: whose loss is lowered; `train` is the paper's.
    runs: trainings over which metrics are averaged.
    evaluate_every: outer steps from one row of the trace to the next.
    """

    train_size: Count = 3000
    validation_size: Count = 1000
    test_size: Count | None = None
    pool: Literal[1, 2, 4] = 2
    hidden: list[Count] = Field(default=[50, 50, 50], min_length=1)
    inner_steps: Count = 100
    batch_size: Count = 50
    schedule: Literal["constant", "step", "layer"] = "layer"
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    outer_steps: Count = 50
    outer_learning_rate: Positive = 0.04
    outer_set: Literal["validation", "train"] = "validation"
    runs: Count = 3
    evaluate_every: Count = 5


class RMAD(OuterLoop):
    """See the module.

    Every outer step is a training of its own, from parameters and batches drawn anew, so that a schedule cannot fit one
    draw; all methods and schedules share the draws, and the images, which are divided anew for every seed. Metrics are
    means over `runs` further trainings with the hyperparameters of the moment, from draws of their own, the same ones
    throughout. Training loss is taken on as many training images as there are validation images, at most.

    Methods: those that differentiate a training, `none`, which stays at the start, and `grid`, which searches for the
    best constant rate and momentum.

    Trace, by outer step: `validation_loss`, `training_loss`, `test_loss`, `test_error` of such trainings. By inner
    step, at the end: `inner_validation_loss` along one of them, `inner_learning_rate` and `inner_momentum`, geometric
    means over groups.
    Summary: the metrics at the end, and `learning_rate_mean`, `momentum_mean` over steps and groups.
    Points, of a schedule by layer: `learning_rate:weight1` and so on, and `momentum:weight1`; x is the inner step, y
    the number of the group, from 1.
    """

    settings_class: ClassVar[type[Settings]] = RMADSettings
    methods = ("none", "unrolled", "checkpointed", "reversible", "drmad", "truncated", "grid")
    space: ClassVar[Space] = {"learning_rate": (*RATES, True), "momentum_gap": (*MOMENTUM_GAPS, True)}

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide and standardize the data of every seed."""
        assert isinstance(settings, RMADSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.shares = [flat_share(dataset, settings, study, seed, device, pool=settings.pool) for seed in self.seeds]
        self.outer_steps, self.evaluate_every = settings.outer_steps, settings.evaluate_every
        self.network = MLP([(SIDE // settings.pool) ** 2, *settings.hidden, CLASSES])
        self.problem = traced(Problem(self.network.loss, self.network.loss))
        self.optimizer = optimizer(settings, self.network)
        self._along: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or a batch the training images."""
        assert isinstance(settings, RMADSettings)
        check_sizes(settings, name, counts)
        if settings.batch_size > settings.train_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from {settings.train_size} training images "
                "(train_size)"
            )

    def run(self, method: Hypergradient | Grid, name: str) -> Result:
        """See `Task`."""
        result = _search(self, method, name) if isinstance(method, Grid) else greedy(self, method, name)
        return replace(result, trace=_joined(result.trace, self._along, result.alive))

    def start(self) -> tuple[Tensor, Tensor]:
        """First parameters of the first training, and the same rate and momentum everywhere."""
        hyper = self.hyper_of(
            [{"learning_rate": self.settings.learning_rate, "momentum_gap": 1 - self.settings.momentum}]
        )
        return self._begin("training", 0), hyper.repeat(len(self.seeds), 1)

    def begin(self, step: int, state: Tensor) -> Tensor:
        """See `OuterLoop`: a training begins."""
        return self._begin("training", step)

    def outer_optimizer(self) -> Adam:
        """Adam with its default decay rates."""
        return Adam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """The batches of a training, and all images of the outer set."""
        outer = [
            self._head(share.validation if self.settings.outer_set == "validation" else share.train)
            for share in self.shares
        ]
        return self._batches("training", step), stacked(outer)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return self.metrics(hyper)

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        settings, self._along = self.values(hyper), self.along(hyper)
        return {
            **{name: trace[-1][name] for name in ("validation_loss", "training_loss", "test_loss", "test_error")},
            **{f"{name}_mean": values.mean((1, 2)) for name, values in settings.items()},
        }

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """See the class."""
        if self.settings.schedule != "layer":
            return []
        return [
            Point(seed, f"{name}:{group}", float(step), float(number), float(f"{value:.6g}"))
            for name, values in self.values(hyper).items()
            for seed, of_seed in zip(self.seeds, values.tolist(), strict=True)
            for step, of_step in enumerate(of_seed)
            for number, (group, value) in enumerate(zip(self.network.layout.shapes, of_step, strict=True), start=1)
        ]

    def along(self, hyper: Tensor) -> dict[int, dict[str, Tensor]]:
        """The part of the trace by inner step, of a training with these hyperparameters."""
        values = {name: one.log().mean(-1).exp() for name, one in self.values(hyper).items()}
        trace: dict[int, dict[str, Tensor]] = {}
        for step, loss in self._curve(hyper).items():
            place = min(step, values["momentum"].shape[1] - 1)
            settings = {f"inner_{name}": one[:, place] for name, one in values.items()}
            trace[step] = {"inner_validation_loss": loss, **settings}
        return trace

    def hyper_of(self, params: Sequence[Params]) -> Tensor:
        """Hyperparameters (N, H) with one rate and one momentum for all steps and groups, for each of these."""
        rates = torch.tensor([[one["learning_rate"]] for one in params], device=self.device).log()
        momenta = torch.tensor([[1 - one["momentum_gap"]] for one in params], device=self.device).logit(1e-6)
        count = self._entries()
        return torch.cat([rates.expand(-1, count), momenta.expand(-1, count)], -1)

    def values(self, hyper: Tensor) -> dict[str, Tensor]:
        """Rates and momenta, (S, T, groups) each, in double precision; T is 1 for a constant."""
        shape = (len(hyper), -1, len(self.network.layout.shapes) if self.settings.schedule == "layer" else 1)
        rates, momenta = hyper.cpu().double().chunk(2, -1)
        return {"learning_rate": rates.exp().view(shape), "momentum": momenta.sigmoid().view(shape)}

    def metrics(self, hyper: Tensor) -> dict[str, Tensor]:
        """Means over trainings with these hyperparameters, (S,) each."""
        found = [self._metrics(self.train(hyper, run)) for run in range(self.settings.runs)]
        return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}

    def train(self, hyper: Tensor, run: int) -> Tensor:
        """Parameters (S, P) at the end of a training that nothing else sees."""
        derivatives, batches = Derivatives(self.problem, hyper), self._batches("evaluation", run)
        state = advance(derivatives, self.optimizer, self._begin("evaluation", run), batches, len(batches))
        return self.optimizer.params(state)

    def trial(self, hyper: Tensor) -> tuple[Tensor, Cost]:
        """The outer loss at the end of the first training, (S,), without its derivatives, and what it cost."""
        derivatives, (batches, outer_batch) = Derivatives(self.problem, hyper), self.draw(0)
        state = advance(derivatives, self.optimizer, self._begin("training", 0), batches, len(batches))
        return derivatives.outer_loss(self.optimizer.params(state), outer_batch).cpu(), derivatives.cost

    def _curve(self, hyper: Tensor) -> dict[int, Tensor]:
        """Validation loss along the first of these trainings, (S,) by inner step."""
        state, derivatives = self._begin("evaluation", 0), Derivatives(self.problem, hyper)
        batches, steps = self._batches("evaluation", 0), self.settings.inner_steps
        shown = {round(place * steps / CURVE_POINTS) for place in range(CURVE_POINTS + 1)}
        found = {}
        for step in range(steps + 1):
            if step in shown:
                found[step] = self._metrics(self.optimizer.params(state))["validation_loss"]
            if step < steps:
                self.optimizer.advance_(derivatives, state, batches[step])
        return found

    def _metrics(self, params: Tensor) -> dict[str, Tensor]:
        rows = []
        for row, share in zip(params, self.shares, strict=True):
            training, validation, test = (self._logits(row, part) for part in (self._head(share.train), *share[1:]))
            rows.append(
                {
                    "validation_loss": metrics.cross_entropy(*validation),
                    "training_loss": metrics.cross_entropy(*training),
                    "test_loss": metrics.cross_entropy(*test),
                    "test_error": metrics.error(*test),
                }
            )
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def _logits(self, params: Tensor, images: Images) -> tuple[Tensor, Tensor]:
        """(N, 10), and labels."""
        with torch.no_grad():
            return self.network.logits(params, images.images), images.labels

    def _head(self, images: Images) -> Images:
        """The first images of a set, as many as there are validation images: their order is random."""
        count = self.settings.validation_size
        return Images(images.images[:count], images.labels[:count])

    def _begin(self, purpose: str, step: int) -> Tensor:
        draws = [generator(self.study, f"{purpose} initialization", seed, step) for seed in self.seeds]
        return self.optimizer.init(torch.stack([self.network.initial(draw) for draw in draws]).to(self.device))

    def _batches(self, purpose: str, step: int) -> Batches:
        """Batches of passes over the training images in random order, T of them."""
        s = self.settings
        a_pass = s.train_size // s.batch_size
        orders = []
        for seed in self.seeds:
            draw = generator(self.study, f"{purpose} batches", seed, step)
            passes = [
                torch.randperm(s.train_size, generator=draw)[: a_pass * s.batch_size].view(-1, s.batch_size)
                for _ in range(math.ceil(s.inner_steps / a_pass))
            ]
            orders.append(torch.cat(passes)[: s.inner_steps])
        return Batches([share.train for share in self.shares], torch.stack(orders, dim=1).to(self.device))

    def _entries(self) -> int:
        """Numbers of rates, and of momenta."""
        steps = 1 if self.settings.schedule == "constant" else self.settings.inner_steps
        return steps * (len(self.network.layout.shapes) if self.settings.schedule == "layer" else 1)


def optimizer(settings: RMADSettings, network: MLP) -> Momentum:
    """Momentum with all rates and, after them, all momenta read from the hyperparameters."""
    steps = 1 if settings.schedule == "constant" else settings.inner_steps
    sizes = tuple(network.layout.sizes) if settings.schedule == "layer" else None
    rate = Learned(0, steps=steps, scale="log", sizes=sizes)
    return Momentum(learning_rate=rate, momentum=Learned(steps * rate.groups, steps=steps, scale="logit", sizes=sizes))


def _search(task: RMAD, method: Grid, name: str) -> Result:
    """All seeds side by side.

    Trace: the metrics of the task, at 0 those of its first rate and momentum, at the number of trials those of the
    best. Summary: those of the best, its `learning_rate_mean` and `momentum_mean`; costs a trial.
    """
    from bilevel.search import grid  # Optuna takes a second to import, which no other arm should wait

    trials, cost = len(grid.points(task.space, method.trials)), Cost()
    progress, done = Progress(name, "trial"), 0

    def trial(params: Sequence[Params]) -> State:
        losses, spent = task.trial(task.hyper_of(params))
        return losses, vars(spent)

    def objective(params: Sequence[Params]) -> list[float]:
        nonlocal done, cost
        losses, spent = task.checkpoint.kept(f"trial {done + 1}", lambda _: trial(params))
        cost, done = cost + Cost(**spent), done + 1
        progress.report(done, trials)
        return [loss if math.isfinite(loss) else math.nan for loss in losses.tolist()]

    found = grid.minimize_each(objective, task.space, method.trials, task.seeds)
    alive = torch.tensor([one.best is not None for one in found])
    first = task.start()[1]
    best = [one.trials[0] if one.best is None else one.best for one in found]
    hyper = task.hyper_of([trial.params for trial in best])
    trace = {0: task.metrics(first), trials: task.metrics(hyper)}
    summary = task.summarize(first, hyper, list(trace.values()))
    return Result(
        alive,
        trace,
        {**blank(summary, alive), **cost_scalars(cost, trials, alive)},
        points=task.points(first, hyper),
    )


def _joined(trace: Mapping[int, Metrics], other: Mapping[int, Metrics], alive: Tensor) -> dict[int, dict[str, Tensor]]:
    """Both traces in one; the other one without seeds that diverged."""
    steps = sorted({*trace, *other})
    return {step: {**trace.get(step, {}), **blank(other.get(step, {}), alive)} for step in steps}


TASK = RMAD
