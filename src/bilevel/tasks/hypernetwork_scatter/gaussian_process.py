"""A Gaussian process on λ and the validation losses that were found there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.settings import STRICT
from bilevel.tasks.hypernetwork_scatter import HypernetworkScatter, Surrogate

Numbers = NDArray[np.float64]

NOISE = 1e-8
"""Variance that is added to every known loss, relative to the kernel's, for the sake of rounding."""
LENGTHS = (-3.0, 5.0)
"""log ℓ is between these."""
TRIED = 41
"""Places of log ℓ from which the best is refined."""


@dataclass(frozen=True, config=STRICT)
class GaussianProcess(Surrogate):
    """Mean of a Gaussian process with kernel k(λ, λ') = exp(−|λ − λ'|² / 2ℓ²), where ℓ maximizes the likelihood.

    standardize: whether losses are brought to mean 0 and deviation 1 first. As published they are not, so that far from
        all data the prediction is 0, below every loss.

    Source: Lorraine and Duvenaud 2018, section 4.3; Rasmussen and Williams 2006, algorithm 2.1.
    """

    standardize: bool = True

    def predict(self, task: HypernetworkScatter, count: int, checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """See `Surrogate`."""
        rows = [
            self.fit_predict(*(part.cpu().double().numpy() for part in (known[:count], losses[:count], places)))
            for known, losses, places in zip(task.known, task.known_losses, task.candidates, strict=True)
        ]
        return torch.from_numpy(np.stack(rows))

    def fit_predict(self, known: Numbers, losses: Numbers, places: Numbers) -> Numbers:
        """Means (M,) at places (M, d), from losses (n,) known at (n, d)."""
        shift, scale = (losses.mean(), losses.std() or 1.0) if self.standardize else (0.0, 1.0)
        values, squares = (losses - shift) / scale, cdist(known, known, "sqeuclidean")
        length = likeliest_length(squares, values)
        weights = cho_solve(cho_factor(_kernel(squares, length), lower=True), values)
        across = np.exp(cdist(places, known, "sqeuclidean") / (-2 * length**2))
        found: Numbers = shift + scale * (across @ weights)
        return found


def likeliest_length(squares: Numbers, values: Numbers) -> float:
    """ℓ that maximizes the marginal likelihood of values (n,) at squared distances (n, n)."""
    tried = np.linspace(*LENGTHS, TRIED)
    step = tried[1] - tried[0]
    best = tried[np.argmin([_deviance(log, squares, values) for log in tried])]
    refined = minimize_scalar(_deviance, bounds=(best - step, best + step), args=(squares, values), method="bounded")
    return float(np.exp(refined.x))


def _kernel(squares: Numbers, length: float) -> Numbers:
    kernel: Numbers = np.exp(squares / (-2 * length**2)) + NOISE * np.eye(len(squares))
    return kernel


def _deviance(log_length: float, squares: Numbers, values: Numbers) -> float:
    """−2 log p(values), up to a constant; infinite where rounding makes the kernel indefinite."""
    try:
        factor, lower = cho_factor(_kernel(squares, float(np.exp(log_length))), lower=True)
    except LinAlgError:
        return float("inf")
    return float(values @ cho_solve((factor, lower), values) + 2 * np.log(np.diag(factor)).sum())


METHOD = GaussianProcess
