"""Random search (Bergstra and Bengio 2012): uniform draws from the space, of the logarithm where it says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bilevel.search.base import Found, Params, Space, Trial, alone, check, evaluated


def minimize(objective: Callable[[Params], float], space: Space, trials: int, seed: int) -> Found:
    """Search for the least value of an objective; NaN is a failed trial.

    Raises ValueError: see `base.run`.
    """
    return minimize_each(alone(objective), space, trials, [seed])[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
) -> list[Found]:
    """A search for each seed, as it would be alone; the objective sees a trial of each.

    Draws are those of Optuna's random sampler, without its trials: with thousands of parameters these take longer than
    a small training.

    Raises ValueError: see `base.run`.
    """
    check(space, trials)
    draws, found = [np.random.RandomState(seed) for seed in seeds], [Found([]) for _ in seeds]
    for _ in range(trials):
        params = [_drawn(space, draw) for draw in draws]
        for one, point, value in zip(found, params, evaluated(objective, params), strict=True):
            one.trials.append(Trial(point, value))
    return found


def _drawn(space: Space, draw: np.random.RandomState) -> Params:
    ends = [(math.log(low), math.log(high)) if log else (low, high) for low, high, log in space.values()]
    values = draw.uniform(*zip(*ends, strict=True)).tolist()
    return {
        # rounding may lead out of the range, of which the upper end is no part
        name: min(max(math.exp(value) if log else value, low), math.nextafter(high, low))
        for (name, (low, high, log)), value in zip(space.items(), values, strict=True)
    }
