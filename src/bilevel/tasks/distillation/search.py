"""Metaparameters by search: a whole training with fixed metaparameters for every trial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint, State
from bilevel.cost import Cost
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.none import NoHypergradient
from bilevel.problem import Batch
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.runs import OuterLoop, blank, cost_scalars, greedy
from bilevel.settings import STRICT, Configurable, Count, Settings, SettingsError
from bilevel.trajectory import LocallyLinear

if TYPE_CHECKING:
    from bilevel.search import Params, Space


@dataclass(frozen=True, config=STRICT)
class TPE(Configurable):
    """Tree-structured Parzen estimator: trains with fixed metaparameters, several times, and keeps the best.

    What is lowered is the loss that metaparameters are tuned on, after the last iteration.

    trials: number of trainings. The published hypergradient takes five gradients an iteration (the step itself, a
        virtual one, the outer loss, two differences), a training one: five trials cost as much as that run. The exact
        greedy hypergradient takes two gradients and a mixed product, which is two gradients' work: four trials.
    random_trials: those at the start that are drawn at random; the estimator proposes the others. With the defaults of
        Optuna (10) and of hyperopt (20), which the paper used, five trials are a random search.

    Source: Gorpinich, Bakhteev and Strijov 2022 (five trials).
    """

    trials: Count = 5
    random_trials: Count = 2


class DistilledSettings(Settings):
    """What all experiments with a student have.

    iterations: steps of the student, and updates of its metaparameters.
    prediction: iterations in which the metaparameters follow a line; see `bilevel.trajectory`.
    evaluate_every: iterations from one row of the trace to the next.
    """

    iterations: Count
    prediction: LocallyLinear | None = None
    evaluate_every: Count

    @model_validator(mode="after")
    def _predicts(self) -> Self:
        if self.prediction is not None and self.prediction.length >= self.iterations:
            raise ValueError(
                f"prediction: the first mini-epoch is optimized, and its {self.prediction.length} iterations are the "
                f"whole run of {self.iterations}; give a smaller length or more iterations"
            )
        return self


class Searched(OuterLoop):
    """An experiment with a student, whose hyperparameters can be searched for.

    space: where; names of its parameters are those of `hyper_of`.
    """

    counts_hypergradients = True
    methods = ("none", "darts", "truncated", "tpe")
    study: str
    settings: DistilledSettings
    seeds: list[int]
    space: ClassVar[Space]

    @classmethod
    def check_method(cls, settings: Settings, method: Any) -> None:
        """SettingsError for a prediction where nothing is optimized."""
        assert isinstance(settings, DistilledSettings)
        if isinstance(method, NoHypergradient | TPE) and settings.prediction is not None:
            raise SettingsError(
                "prediction: there are no gradients to predict without a method that finds some; leave it out, or "
                "choose another method"
            )

    def run(self, method: Hypergradient | TPE, name: str) -> Result:
        """See `Task`; SettingsError as `check_method`."""
        self.check_method(self.settings, method)
        if isinstance(method, TPE):
            return search(self, method, name)
        return fixed(self, name) if isinstance(method, NoHypergradient) else greedy(self, method, name)

    def check_tensors(self, teachers: Sequence[Mapping[str, Tensor]], wanted: Collection[str]) -> None:
        """SettingsError where these are not teachers of the task's kind, which have the tensors `wanted`."""
        for seed, tensors in zip(self.seeds, teachers, strict=True):
            if set(tensors) != set(wanted):
                raise SettingsError(
                    f"teacher: {self.study} distills teachers of the kind {self.teacher_kind!r}, with the tensors "
                    f"{', '.join(sorted(wanted))}; that of seed {seed} has {', '.join(sorted(tensors)) or 'none'}"
                )

    @abstractmethod
    def inner_batches(self, step: int) -> Sequence[Batch]:
        """Those of `draw`, without the outer batch."""

    @abstractmethod
    def hyper_of(self, params: Sequence[Params]) -> Tensor:
        """Hyperparameters (S, H) at a point of the space for each seed."""

    @abstractmethod
    def tuned_loss(self, state: Tensor, hyper: Tensor) -> Tensor:
        """What a search lowers, (S,), on the CPU."""


class Training(NamedTuple):
    """A training of all seeds: the last state (S, slots, P), the hyperparameters (S, H), metrics by iteration, the loss
    that metaparameters are tuned on, after the last one, (S,), and the work."""

    state: Tensor
    hyper: Tensor
    trace: Mapping[int, Metrics]
    loss: Tensor
    cost: Cost


def search(task: Searched, method: TPE, name: str) -> Result:
    """Trials of all seeds go on side by side; each seed has a search of its own.

    Trace: that of each seed's best trial. Summary: that of the best trial; `best_trial`, counted
    from 1; costs of all trials, an iteration of a run.
    """
    from bilevel.search.tpe import minimize_each  # Optuna takes a second to import, which no other arm should wait

    trials: list[Training] = []

    def trial(params: Sequence[Params], number: int, checkpoint: Checkpoint) -> State:
        found = train(task, task.hyper_of(params), f"{name}, trial {number}/{method.trials}", checkpoint)
        return {**found._asdict(), "cost": vars(found.cost)}

    def objective(params: Sequence[Params]) -> Sequence[float]:
        number = len(trials) + 1
        found = task.checkpoint.kept(f"trial {number}", partial(trial, params, number))
        trials.append(Training(**{**found, "cost": Cost(**found["cost"])}))
        losses: list[float] = trials[-1].loss.tolist()
        return losses

    seeds = [generator(task.study, "search", seed).initial_seed() % 2**32 for seed in task.seeds]
    minimize_each(objective, task.space, method.trials, seeds, method.random_trials)
    losses = torch.stack([one.loss for one in trials])
    alive = torch.isfinite(losses).any(0)
    best = losses.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(0)
    state, hyper = (_of_best([getattr(one, part) for one in trials], best) for part in ("state", "hyper"))
    trace = {
        step: {metric: _of_best([one.trace[step][metric] for one in trials], best) for metric in metrics}
        for step, metrics in trials[0].trace.items()
    }
    cost = sum((one.cost for one in trials), Cost())
    summary = {**task.summarize(state, hyper, list(trace.values())), "best_trial": best.double() + 1}
    summary = {**blank(summary, alive), **cost_scalars(cost, task.outer_steps, alive)}
    summary["hypergradients"] = torch.zeros_like(losses[0])
    return Result(alive, trace, summary, points=task.points(state, hyper))


def fixed(task: Searched, name: str) -> Result:
    """One training of all seeds with their first hyperparameters.

    The same numbers as from `runs.greedy` with the method `none`, without the outer loss and the outer optimizer of
    every iteration, which change nothing. A seed whose parameters or loss are not finite in the end has diverged.
    """
    training = train(task, task.start()[1], name, task.checkpoint.part("training"))
    alive = torch.isfinite(training.loss) & torch.isfinite(training.state).flatten(1).all(-1).cpu()
    own = task.summarize(training.state, training.hyper, list(training.trace.values()))
    summary = {**blank(own, alive), **cost_scalars(training.cost, task.outer_steps, alive)}
    summary |= blank({"hypergradients": torch.zeros_like(training.loss)}, alive)
    return Result(alive, training.trace, summary, points=task.points(training.state, training.hyper))


def train(task: Searched, hyper: Tensor, name: str, checkpoint: Checkpoint = NOWHERE) -> Training:
    """The student with hyperparameters `hyper` (S, H) throughout.

    The last row of the trace also has `outer_loss`, what metaparameters are tuned on.
    """
    state, _ = task.start()
    derivatives, steps, done = Derivatives(task.problem, hyper), task.outer_steps, 0
    trace: dict[int, Metrics] = {}
    if checkpoint.found is None:
        trace[0] = task.evaluate(state, hyper)
    else:
        done, state, trace = (checkpoint.found[part] for part in ("steps", "state", "trace"))
        derivatives.cost = Cost(**checkpoint.found["cost"])
    progress = Progress(name, "iteration", done)
    for step in range(done + 1, steps + 1):
        for batch in task.inner_batches(step - 1):
            task.optimizer.advance_(derivatives, state, batch)
        if step % task.evaluate_every == 0 or step == steps:
            trace[step] = task.evaluate(state, hyper)
        progress.report(step, steps)
        checkpoint.keep({"steps": step, "state": state, "trace": trace, "cost": vars(derivatives.cost)})
    loss = task.tuned_loss(state, hyper)
    trace[steps] = {**trace[steps], "outer_loss": loss}
    return Training(state, hyper, trace, loss, derivatives.cost)


def _of_best(tensors: Sequence[Tensor], best: Tensor) -> Tensor:
    """Of each seed the row of its best trial, (S, ...), from tensors (S, ...) of the trials; best (S,)."""
    return torch.stack(list(tensors))[best.to(tensors[0].device), torch.arange(len(best))]
