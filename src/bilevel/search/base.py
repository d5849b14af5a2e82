"""What all searches share: the space, the trials, and what is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

Space = Mapping[str, tuple[float, float, bool]]
"""Name of a parameter -> (low, high, log): its range, and whether its logarithm is what is searched over."""

Params = dict[str, float]
"""Name of a parameter -> its value."""


class Trial(NamedTuple):
    """A point of the space and the objective there; NaN: the trial failed."""

    params: Params
    value: float


class Found(NamedTuple):
    """Trials in the order in which they were made."""

    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The trial with the least value, the first of several; None where all failed."""
        good = [trial for trial in self.trials if not math.isnan(trial.value)]
        return min(good, key=lambda trial: trial.value) if good else None


def run(
    objective: Callable[[Sequence[Params]], Sequence[float]],
    space: Space,
    trials: int,
    samplers: Sequence[BaseSampler],
    points: Sequence[Params] = (),
) -> list[Found]:
    """A search for each sampler, side by side: `objective` sees a trial of each, and gives their values.

    A NaN is a failed trial: the search goes on without it. The first trials are at `points`, where there are any.

    Raises ValueError for a space or a number of trials that makes no search, and where the objective gives the wrong
    number of values.
    """
    check(space, trials)
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(low, high, log=log) for name, (low, high, log) in space.items()
    }
    with _silence():
        studies = [optuna.create_study(sampler=sampler) for sampler in samplers]
        for study in studies:
            for point in points:
                study.enqueue_trial(point)
        for _ in range(trials):
            asked = [study.ask(distributions) for study in studies]
            values = evaluated(objective, [dict(trial.params) for trial in asked])
            for study, trial, value in zip(studies, asked, values, strict=True):
                if math.isnan(value):
                    study.tell(trial, state=TrialState.FAIL)
                else:
                    study.tell(trial, value)
        return [_found(study) for study in studies]


def alone(objective: Callable[[Params], float]) -> Callable[[Sequence[Params]], Sequence[float]]:
    """An objective of one search as `run` asks for it."""
    return lambda params: [objective(one) for one in params]


def evaluated(objective: Callable[[Sequence[Params]], Sequence[float]], params: Sequence[Params]) -> list[float]:
    """Values of trials side by side; ValueError where the objective gives another number of them."""
    values = objective(params)
    if len(values) != len(params):
        raise ValueError(f"the objective gave {len(values)} values for {len(params)} trials side by side")
    return [float(value) for value in values]


def check(space: Space, trials: int) -> None:
    """ValueError unless it is a space that can be searched, with a trial or more."""
    if not space:
        raise ValueError("space: expected a mapping from names to (low, high, log), got none")
    for name, (low, high, log) in space.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
            raise ValueError(
                f"space: {name} should go from a number to a larger one, both above 0 where log is true, "
                f"got ({low}, {high}, {log})"
            )
    if trials < 1:
        raise ValueError(f"trials: a search needs at least one, got {trials}")


def _found(study: optuna.Study) -> Found:
    return Found(
        [
            Trial(dict(trial.params), math.nan if trial.value is None else trial.value)
            for trial in study.get_trials(deepcopy=False)
        ]
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Without Optuna's log: a run reports its own progress."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
