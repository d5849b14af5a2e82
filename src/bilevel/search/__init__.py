"""Black-box search for hyperparameters, by Optuna: `tpe`, `gaussian_process`, `random`, `sobol` and `grid`, one module
each, alike in their calls.

`minimize(objective, space, trials, seed)` is one search. `minimize_each(objective, space, trials, seeds)` is a search
for each of several seeds, whose trials go on side by side, so that an objective can train all seeds at once.
"""

from bilevel.search.base import Found, Params, Space, Trial

__all__ = ["Found", "Params", "Space", "Trial"]
