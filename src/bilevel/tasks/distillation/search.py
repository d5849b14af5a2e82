"""Metaparameters by search: a whole training with fixed metaparameters for every trial."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.cost import Cost
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.none import NoHypergradient
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.runs import blank, cost_scalars, greedy
from bilevel.settings import Configurable, SettingsError
from bilevel.tasks.base import OuterLoop

if TYPE_CHECKING:
    from bilevel.search import Params, Space


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class TPE(Configurable):
    """Tree-structured Parzen estimator: trains with fixed metaparameters, several times, and keeps the best.

    What is lowered is the loss that metaparameters are tuned on, after the last iteration.

    trials: number of trainings. The published hypergradient takes five gradients an iteration (the step itself, a
        virtual one, the outer loss, two differences), a training one: five trials cost as much as that run. The exact
        greedy hypergradient takes two gradients and a mixed product, which is two gradients' work: four trials.

    Source: Gorpinich, Bakhteev and Strijov 2022 (five trials).
    """

    trials: Annotated[int, Field(ge=1)] = 5


class Searched(OuterLoop):
    """An experiment with a student, whose hyperparameters can be searched for.

    space: where; names of its parameters are those of `hyper_of`.
    """

    needs_teacher = True
    counts_hypergradients = True
    methods = ("none", "darts", "truncated", "tpe")
    study: str
    seeds: list[int]
    space: ClassVar[Space]

    def run(self, method: Hypergradient | TPE, name: str) -> Result:
        """See `Task`; SettingsError for a prediction where nothing is optimized."""
        if isinstance(method, NoHypergradient | TPE) and self.prediction is not None:
            raise SettingsError(
                "prediction: there are no gradients to predict without a method that finds some; leave it out, or "
                "choose another method"
            )
        return search(self, method, name) if isinstance(method, TPE) else greedy(self, method, name)

    def check_teachers(self, teachers: Sequence[Mapping[str, Tensor]], kind: str, wanted: Collection[str]) -> None:
        """SettingsError where these are not teachers of this kind, which have the tensors `wanted`."""
        for seed, tensors in zip(self.seeds, teachers, strict=True):
            if set(tensors) != set(wanted):
                raise SettingsError(
                    f"teacher: {self.study} distills teachers of the kind {kind!r}, with the tensors "
                    f"{', '.join(sorted(wanted))}; that of seed {seed} has {', '.join(sorted(tensors)) or 'none'}"
                )

    @abstractmethod
    def hyper_of(self, params: Sequence[Params]) -> Tensor:
        """Hyperparameters (S, H) at a point of the space for each seed."""

    @abstractmethod
    def tuned_loss(self, state: Tensor, hyper: Tensor) -> Tensor:
        """What a search lowers, (S,), on the CPU."""


class Training(NamedTuple):
    """A training of all seeds: the last state (S, slots, P), the hyperparameters (S, H), metrics by iteration, and
    the loss that metaparameters are tuned on, after the last one, (S,)."""

    state: Tensor
    hyper: Tensor
    trace: Mapping[int, Metrics]
    loss: Tensor


def search(task: Searched, method: TPE, name: str) -> Result:
    """Trials of all seeds go on side by side; each seed has a search of its own.

    Trace: that of each seed's best trial, and `outer_loss`. Summary: that of the best trial; `best_trial`, counted
    from 1; costs of all trials, an iteration of a run.
    """
    from bilevel.search.tpe import minimize_each  # Optuna takes a second to import, which no other arm should wait

    trials: list[Training] = []
    cost = Cost()

    def objective(params: Sequence[Params]) -> Sequence[float]:
        trials.append(train(task, task.hyper_of(params), cost))
        print(f"{name}: trial {len(trials)}/{method.trials}", file=sys.stderr, flush=True)
        losses: list[float] = trials[-1].loss.tolist()
        return losses

    seeds = [generator(task.study, "search", seed).initial_seed() % 2**32 for seed in task.seeds]
    minimize_each(objective, task.space, method.trials, seeds)
    losses = torch.stack([trial.loss for trial in trials])
    alive = torch.isfinite(losses).any(0)
    best = losses.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(0)
    state, hyper = (_of_best([getattr(trial, part) for trial in trials], best) for part in ("state", "hyper"))
    trace = {
        step: {metric: _of_best([trial.trace[step][metric] for trial in trials], best) for metric in metrics}
        for step, metrics in trials[0].trace.items()
    }
    summary = {**task.summarize(state, hyper, list(trace.values())), "best_trial": best.double() + 1}
    summary = {**blank(summary, alive), **cost_scalars(cost, task.outer_steps, alive)}
    summary["hypergradients"] = torch.zeros_like(losses[0])
    return Result(alive, trace, summary, points=task.points(state, hyper))


def train(task: Searched, hyper: Tensor, cost: Cost) -> Training:
    """The student with hyperparameters `hyper` (S, H) throughout; its work is added to `cost`."""
    state, _ = task.start()
    derivatives = Derivatives(task.problem, hyper)
    derivatives.cost = cost
    trace: dict[int, Metrics] = {}
    for step in range(task.outer_steps + 1):
        if step % task.evaluate_every == 0 or step == task.outer_steps:
            loss = task.tuned_loss(state, hyper)
            trace[step] = {**task.evaluate(state, hyper), "outer_loss": loss}
        if step < task.outer_steps:
            for batch in task.draw(step)[0]:
                task.optimizer.advance_(derivatives, state, batch)
    return Training(state, hyper, trace, loss)


def _of_best(tensors: Sequence[Tensor], best: Tensor) -> Tensor:
    """Of each seed the row of its best trial, (S, ...), from tensors (S, ...) of the trials; best (S,)."""
    return torch.stack(list(tensors))[best.to(tensors[0].device), torch.arange(len(best))]
