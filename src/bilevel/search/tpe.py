"""Tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import TPESampler

from bilevel.search.base import Found, Params, Space, alone, run

RANDOM_TRIALS = 10
"""Trials at the start that are drawn at random; a search of no more trials is a random one."""


def minimize(objective: Callable[[Params], float], space: Space, trials: int, seed: int) -> Found:
    """Search for the least value of an objective; NaN is a failed trial.

    Raises ValueError: see `base.run`.
    """
    return minimize_each(alone(objective), space, trials, [seed])[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
) -> list[Found]:
    """A search for each seed, as it would be alone; the objective sees a trial of each.

    Raises ValueError: see `base.run`.
    """
    samplers = [TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed) for seed in seeds]
    return run(objective, space, trials, samplers)
