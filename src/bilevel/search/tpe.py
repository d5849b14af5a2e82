"""Tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import TPESampler

from bilevel.search.base import Found, Params, Space, alone, run

RANDOM_TRIALS = 10
"""Optuna's own number of trials at the start that are drawn at random; a search of no more trials is a random one."""


def minimize(
    objective: Callable[[Params], float],
    space: Space,
    trials: int,
    seed: int,
    random_trials: int = RANDOM_TRIALS,
) -> Found:
    """Search for the least value of an objective; NaN is a failed trial. The first `random_trials` are random.

    Raises ValueError: see `base.run`.
    """
    return minimize_each(alone(objective), space, trials, [seed], random_trials)[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]],
    space: Space,
    trials: int,
    seeds: Sequence[int],
    random_trials: int = RANDOM_TRIALS,
) -> list[Found]:
    """A search for each seed, as it would be alone; the objective sees a trial of each.

    Raises ValueError: see `base.run`.
    """
    samplers = [TPESampler(n_startup_trials=random_trials, seed=seed) for seed in seeds]
    return run(objective, space, trials, samplers)
