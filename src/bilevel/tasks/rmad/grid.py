"""The best constant rate and momentum, by a grid over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from bilevel.checkpoint import State
from bilevel.cost import Cost
from bilevel.progress import Progress
from bilevel.results import Result
from bilevel.runs import blank, cost_scalars
from bilevel.settings import Configurable

if TYPE_CHECKING:
    from bilevel.search import Params
    from bilevel.tasks.rmad import RMAD


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Grid(Configurable):
    """A whole training at every point of a grid of rates and momenta, the same for all steps; the best is kept.

    What is lowered is the loss that schedules are learned on, of a training of its own draws for all points.

    trials: number of points at most, those of a square of which none is left out.
    """

    trials: Annotated[int, Field(ge=4)] = 36


def search(task: RMAD, method: Grid, name: str) -> Result:
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


METHOD = Grid
