"""Optimizers that were designed by hand, with the best of several learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from bilevel.optimizers import SGD, Adam, GradientOptimizer, Learned, Momentum
from bilevel.progress import Progress
from bilevel.results import Result
from bilevel.runs import blank
from bilevel.settings import Configurable

if TYPE_CHECKING:
    from bilevel.search import Params, Space
    from bilevel.tasks.learned_optimizer import LearnedOptimizer

RATE = Learned(0)
OPTIMIZERS: dict[str, GradientOptimizer] = {
    "sgd": SGD(learning_rate=RATE),
    "momentum": Momentum(learning_rate=RATE, momentum=0.9),
    "rmsprop": Adam(learning_rate=RATE, beta1=0.0, beta2=0.99, bias="uncorrected"),
    "adam": Adam(learning_rate=RATE),
}
"""RMSprop is Adam without an average of gradients and without correction of bias."""

SPACE: Space = {"learning_rate": (1e-3, 10.0, True)}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Tuned(Configurable):
    """The rate with the least mean loss along the optimization of validation problems, of a grid from 0.001 to 10.

    optimizer: SGD, momentum (0.9), RMSprop (0.99) or Adam (0.9, 0.999). trials: rates of the grid.
    """

    optimizer: Literal["sgd", "momentum", "rmsprop", "adam"]
    trials: Annotated[int, Field(ge=2)] = 13


def tune(task: LearnedOptimizer, method: Tuned, name: str) -> Result:
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


METHOD = Tuned
