"""Random search (Bergstra and Bengio 2012): uniform draws from the space, of the logarithm where it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import RandomSampler

from bilevel.search.base import Found, Params, Space, alone, run


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
    return run(objective, space, trials, [RandomSampler(seed=seed) for seed in seeds])
