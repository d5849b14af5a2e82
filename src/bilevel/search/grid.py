"""Grid search: as many places a parameter as the trials allow, the ends of its range included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from optuna.samplers import RandomSampler

from bilevel.search.base import Found, Params, Space, alone, check, run


def minimize(objective: Callable[[Params], float], space: Space, trials: int, seed: int) -> Found:
    """Search for the least value of an objective; NaN is a failed trial. See `minimize_each`; all seeds are alike."""
    return minimize_each(alone(objective), space, trials, [seed])[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
) -> list[Found]:
    """A search for each seed, on the same grid of kᵈ points for d parameters, where k is the largest number with
    kᵈ ≤ trials; the last parameter changes fastest.

    Raises ValueError: see `base.run`; and where there are fewer than 2ᵈ trials.
    """
    grid = points(space, trials)
    # the sampler has nothing to draw: all trials are at points of the grid
    return run(objective, space, len(grid), [RandomSampler(seed=seed) for seed in seeds], grid)


def points(space: Space, trials: int) -> list[Params]:
    """The grid, in the order in which it is searched."""
    check(space, trials)
    count = places(len(space), trials)
    if count < 2:
        raise ValueError(
            f"trials: a grid over {len(space)} parameters needs at least {2 ** len(space)} trials, got {trials}"
        )
    axes = [(np.geomspace if log else np.linspace)(low, high, count).tolist() for low, high, log in space.values()]
    return [dict(zip(space, place, strict=True)) for place in itertools.product(*axes)]


def places(parameters: int, trials: int) -> int:
    """k, the largest number with kᵈ ≤ trials for d parameters."""
    count = 1
    while (count + 1) ** parameters <= trials:
        count += 1
    return count
