"""An optimizer that is learned: deck 002, "Learning to learn by gradient descent by gradient descent".

A recurrent network (`bilevel.optimizers.LSTM`) optimizes small problems coordinate by coordinate; its weights are the
hyperparameters, moved by Adam along the derivative of the losses that it meets. What is as in the paper: the network
(two layers of 20 units), 10-dimensional quadratic functions of normal numbers, a network of 20 sigmoid units for
digits, 100 steps of which 20 at a time are differentiated, with the state of the recurrent network going on from one
part to the next, gradients that count as given, Adam with step 0.001, the weights with the best validation loss. What
is not: fewer updates, and digits in reduced size; and all that is compared is tested on problems, and on images, that
neither the weights nor the learning rates of other optimizers were chosen on.

Source: Andrychowicz et al. 2016, sections 2 and 3; deck 002.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from bilevel.checkpoint import State
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.images import SETS, Images, check_sizes, divide, pooled, splits_of, standardized
from bilevel.optimizers import LSTM, GradientOptimizer
from bilevel.outer import Adam
from bilevel.problem import Batch
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.runs import OuterLoop, blank, greedy
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.learned_optimizer.problems import Family, Networks, Quadratics
from bilevel.tasks.learned_optimizer.tuned import OPTIMIZERS, SPACE, Tuned

if TYPE_CHECKING:
    from bilevel.search import Params

SIDE, CLASSES = 28, 10


class LearnedOptimizerSettings(Settings):
    """Settings of the experiment.

    problem: `quadratic` or `network`, see `problems`.
    size: dimension of the quadratics, or hidden units. other_size: of problems that are seen in the test alone.
    count: functions that are optimized at once (`quadratic`).
    steps: T, of an optimization. unroll: steps that are differentiated together, which divide T.
    outer_steps: updates of the weights. outer_learning_rate: of Adam on them.
    units, scale, preprocessing: see `bilevel.optimizers.LSTM`.
    runs: optimizations in a row over which validation and test losses are averaged (`network`; of quadratics `count`
        are averaged over anyway).
    evaluate_every: updates between two looks at the validation loss.
    train_size, validation_size, test_size, pool, batch_size, outer_batch_size: images of the sets, the side of the
        squares of pixels whose means are seen, images of a step and of the outer loss (`network`).
    """

    problem: Literal["quadratic", "network"] = "quadratic"
    size: Count = 10
    other_size: Count = 20
    count: Count = 128
    steps: Count = 100
    unroll: Count = 20
    outer_steps: Count = 1000
    outer_learning_rate: Positive = 1e-3
    units: Count = 20
    scale: Positive = 0.1
    preprocessing: Literal["none", "log_sign"] = "none"
    runs: Count = 1
    evaluate_every: Count = 50
    train_size: Count = 3000
    validation_size: Count = 1000
    test_size: Count | None = None
    pool: Literal[1, 2, 4] = 4
    batch_size: Count = 128
    outer_batch_size: Count = 128

    @model_validator(mode="after")
    def _whole_parts(self) -> LearnedOptimizerSettings:
        if self.steps % self.unroll:
            raise ValueError(f"unroll: {self.steps} steps are not a whole number of parts of {self.unroll}")
        return self


class LearnedOptimizer(OuterLoop):
    """See the module.

    Methods: `trajectory` learns the recurrent network; `tuned` is an optimizer designed by hand, its rate chosen on
    validation problems by the same loss, the mean along T steps. All see the same problems. Images of the sets are
    disjoint; networks are trained on those of one set for learning, of another to choose, of the third to test.

    Trace. By update: `validation_loss`, the mean along T steps. By inner step, up to 2 T, on test problems: `loss`, and
    `other_loss` for problems of the other size.
    Summary, on test problems: `loss_mean` along T steps, `loss_last` after T, `loss_twice` after 2 T; the same with
    `other_` for problems of the other size; `lost`, the share of the two sizes, 0, ½ or 1, at which a loss stops being
    finite, whose metrics are empty then; `training_gradients`, gradients of inner losses that learning or tuning took,
    those of functions that are optimized at once counting as one; `best_step`, the update whose weights are tested.
    """

    settings_class: ClassVar[type[Settings]] = LearnedOptimizerSettings
    methods = ("trajectory", "tuned")
    optimizer: LSTM

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Prepare the families of problems."""
        assert isinstance(settings, LearnedOptimizerSettings)
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        if settings.problem == "quadratic":
            made: list[Family] = [
                Quadratics(study, seeds, device, size, settings.count) for size in (settings.size, settings.other_size)
            ]
        else:
            assert dataset is not None
            sources, pixels = self._images(dataset), (SIDE // settings.pool) ** 2
            batches = settings.batch_size, settings.outer_batch_size
            made = [
                Networks(study, seeds, device, (pixels, size, CLASSES), batches, sources)
                for size in (settings.size, settings.other_size)
            ]
        self.family, self.other_family = made
        self.problem = self.family.problem
        self.optimizer = LSTM(units=settings.units, scale=settings.scale, preprocessing=settings.preprocessing)
        self.outer_steps, self.evaluate_every = settings.outer_steps, settings.evaluate_every
        self._parts = settings.steps // settings.unroll
        self._best: tuple[Tensor, Tensor, Tensor] | None = None
        self._evaluated = 0
        self._tested: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where quadratics have data, or networks none that fits."""
        assert isinstance(settings, LearnedOptimizerSettings)
        if settings.problem == "network":
            check_sizes(settings, name, counts)
        elif name is not None:
            raise SettingsError(f"data: quadratics use no data set, got {name!r}; leave it out")

    @property
    def validation_problems(self) -> int:
        """Optimizations of which the validation loss is a mean."""
        return self.settings.runs

    def run(self, method: Hypergradient | Tuned, name: str) -> Result:
        """See `Task`."""
        if isinstance(method, Tuned):
            return _tune(self, method, name)
        self._best, self._evaluated, self._tested = None, 0, {}
        result = greedy(self, method, name)
        steps = sorted({*result.trace, *self._tested})
        trace = {
            step: {**result.trace.get(step, {}), **blank(self._tested.get(step, {}), result.alive)} for step in steps
        }
        return replace(result, trace=trace)

    def start(self) -> tuple[Tensor, Tensor]:
        """A first problem, and weights uniform within 1/√units; those of the output are 0.1 times as large."""
        layout, bound = self.optimizer.weights, self.settings.units**-0.5
        rows = []
        for seed in self.seeds:
            draw = generator(self.study, "weights", seed)
            tensors = {
                name: torch.empty(shape).uniform_(-bound, bound, generator=draw)
                for name, shape in layout.shapes.items()
            }
            for name in ("output", "output_bias"):
                tensors[name] *= 0.1
            rows.append(layout.join(tensors))
        return self.optimizer.init(self.family.start("train", 0)), torch.stack(rows).to(self.device)

    def begin(self, step: int, state: Tensor) -> Tensor:
        """See `OuterLoop`: after all parts of an optimization the next one begins."""
        number, part = divmod(step, self._parts)
        return state if part else self.optimizer.init(self.family.start("train", number))

    def outer_optimizer(self) -> Adam:
        """Adam with its default decay rates."""
        return Adam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """Batches of the steps of a part."""
        number, part = divmod(step, self._parts)
        return self.family.draw("train", number, part * self.settings.unroll, self.settings.unroll)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class; keeps the weights with the least validation loss."""
        losses = self.validation_loss(self.optimizer, hyper)
        step = torch.full_like(losses, float(min(self._evaluated * self.evaluate_every, self.outer_steps)))
        self._evaluated += 1
        if self._best is None:
            self._best = losses, hyper.clone(), step
        else:
            better = losses < self._best[0]
            self._best = (
                torch.where(better, losses, self._best[0]),
                torch.where(better.to(hyper.device).unsqueeze(-1), hyper, self._best[1]),
                torch.where(better, step, self._best[2]),
            )
        return {"validation_loss": losses}

    def to_checkpoint(self) -> State:
        """The best weights so far."""
        return {"best": self._best, "evaluated": self._evaluated}

    def from_checkpoint(self, state: State) -> None:
        """See `OuterLoop`."""
        losses, hyper, step = state["best"]
        self._best, self._evaluated = (losses, hyper, step), state["evaluated"]

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        assert self._best is not None
        self._tested, summary = self.test(self.optimizer, self._best[1])
        gradients = float(self.settings.outer_steps * self.settings.unroll)
        return {
            **summary,
            "best_step": self._best[2],
            "training_gradients": torch.full_like(self._best[0], gradients),
        }

    def validation_loss(self, optimizer: GradientOptimizer, hyper: Tensor) -> Tensor:
        """The mean loss along T steps on validation problems, (S,)."""
        return self._losses(self.family, "validation", optimizer, hyper, self.settings.steps)[1:].mean(0)

    def test(
        self, optimizer: GradientOptimizer, hyper: Tensor
    ) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
        """Trace by inner step and summary, on test problems."""
        trace: dict[int, dict[str, Tensor]] = {}
        summary: dict[str, Tensor] = {}
        steps = self.settings.steps
        for family, prefix in ((self.family, ""), (self.other_family, "other_")):
            losses = self._losses(family, "test", optimizer, hyper, 2 * steps)
            finite = torch.isfinite(losses).all(0)
            losses = torch.where(finite, losses, torch.nan)
            summary["lost"] = summary.get("lost", 0) + (~finite).double() / 2
            summary[f"{prefix}loss_mean"] = losses[1 : steps + 1].mean(0)
            summary[f"{prefix}loss_last"] = losses[steps]
            summary[f"{prefix}loss_twice"] = losses[2 * steps]
            for step in range(0, 2 * steps + 1, max(1, steps // 50)):
                trace.setdefault(step, {})[f"{prefix}loss"] = losses[step]
        return trace, summary

    def _losses(self, family: Family, purpose: str, optimizer: GradientOptimizer, hyper: Tensor, steps: int) -> Tensor:
        """Outer losses after 0, …, `steps` steps, (steps + 1, S), mean over optimizations."""
        derivatives, found = Derivatives(family.problem, hyper), []
        for number in range(self.settings.runs):
            state = optimizer.init(family.start(purpose, number))
            batches, outer_batch = family.draw(purpose, number, 0, steps)
            losses = [derivatives.outer_loss(optimizer.params(state), outer_batch)]
            for index in range(steps):
                optimizer.advance_(derivatives, state, batches[index])
                losses.append(derivatives.outer_loss(optimizer.params(state), outer_batch))
            found.append(torch.stack(losses).cpu().double())
        return torch.stack(found).mean(0)

    def _images(self, dataset: Dataset) -> dict[str, list[Images]]:
        """Images (N, pixels), black 0 and white 1, by purpose, of each seed."""
        splits, found = splits_of(dataset), {name: list[Images]() for name in SETS}
        for seed in self.seeds:
            for name, ids in divide(dataset, self.settings, self.study, seed).items():
                split = splits[name]
                images = pooled(standardized(split.images[ids].to(self.device), 0.0, 1.0), self.settings.pool)
                found[name].append(Images(images.flatten(1), split.labels[ids].to(self.device)))
        return found


def _tune(task: LearnedOptimizer, method: Tuned, name: str) -> Result:
    """All seeds side by side; trace and summary are those of the task, and `learning_rate`."""
    from bilevel.search import grid  # Optuna takes a second to import, which no other arm should wait

    optimizer, progress, done = OPTIMIZERS[method.optimizer], Progress(name, "trial"), 0

    def objective(params: Sequence[Params]) -> list[float]:
        nonlocal done
        rates = torch.tensor([[one["learning_rate"]] for one in params], device=task.device).log()
        losses = task.checkpoint.kept(f"trial {done + 1}", lambda _: task.validation_loss(optimizer, rates))
        done += 1
        progress.report(done, method.trials)
        return [loss if math.isfinite(loss) else math.nan for loss in losses.tolist()]

    found = grid.minimize_each(objective, SPACE, method.trials, task.seeds)
    alive = torch.tensor([one.best is not None for one in found])
    best = [(one.trials[0] if one.best is None else one.best).params["learning_rate"] for one in found]
    rates = torch.tensor(best, dtype=torch.float64)
    trace, summary = task.test(optimizer, rates.to(task.device, torch.float32).log().unsqueeze(-1))
    gradients = torch.full_like(rates, float(method.trials * task.settings.steps * task.validation_problems))
    return Result(alive, trace, blank({**summary, "learning_rate": rates, "training_gradients": gradients}, alive))


TASK = LearnedOptimizer
