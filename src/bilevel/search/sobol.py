"""Quasi-random search: points of a scrambled Sobol sequence, as Optuna has it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import QMCSampler

from bilevel.search.base import Found, Params, Space, alone, run

MOST_PARAMETERS = 21_201
"""Direction numbers are tabulated for as many."""


def minimize(objective: Callable[[Params], float], space: Space, trials: int, seed: int) -> Found:
    """Search for the least value of an objective; NaN is a failed trial. See `minimize_each`."""
    return minimize_each(alone(objective), space, trials, [seed])[0]


def minimize_each(
    objective: Callable[[Sequence[Params]], Sequence[float]], space: Space, trials: int, seeds: Sequence[int]
) -> list[Found]:
    """A search for each seed, as it would be alone; the objective sees a trial of each.

    Every seed scrambles the sequence its own way. Up to the first trial that does not fail, points are those of
    `random`: Optuna learns the space from it. The sequence is what follows.

    Raises ValueError: see `base.run`; and for more parameters than `MOST_PARAMETERS`.
    """
    if len(space) > MOST_PARAMETERS:
        raise ValueError(
            f"space: Sobol sequences have at most {MOST_PARAMETERS} dimensions, got {len(space)} parameters; use random"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # the environment pins Optuna's version
        samplers = [QMCSampler(scramble=True, seed=seed) for seed in seeds]
    return run(objective, space, trials, samplers)
