"""Bayesian optimization with a Gaussian process, as Optuna has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import GPSampler

from bilevel.search.base import Found, Params, Space, alone, run

RANDOM_TRIALS = 10
"""Trials at the start that are drawn at random; a search of no more trials is a random one."""


def minimize(objective: Callable[[Params], float], space: Space, trials: int, seed: int) -> Found:
    """Search for the least value of an objective; NaN is a failed trial. See `minimize_each`."""
    return minimize_each(alone(objective), space, trials, [seed])[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
) -> list[Found]:
    """A search for each seed, as it would be alone; the objective sees a trial of each.

    Matérn kernel (ν = 5/2) with a length scale for each parameter, fitted anew at each trial; the next point has the
    largest expected improvement. A trial takes 0.1 s with one parameter, 0.3 s with ten, 0.7 s with fifty.

    Raises ValueError: see `base.run`.

    Source: Snoek, Larochelle and Adams 2012.
    """
    samplers = [GPSampler(n_startup_trials=RANDOM_TRIALS, seed=seed) for seed in seeds]
    return run(objective, space, trials, samplers)
