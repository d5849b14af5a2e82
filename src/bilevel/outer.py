"""Outer optimizers: what moves the hyperparameters.

`torch.optim` would serve, but importing it costs a second a job, and a state that is one tensor is easily kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.checkpoint import State


class Adam:
    """λ ← λ − η m̂ / (√v̂ + ε), every entry by itself, so that seeds do not mix (Kingma and Ba 2015).

    The same numbers as `torch.optim.Adam` with these settings.
    """

    def __init__(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.learning_rate, self.betas, self.epsilon = learning_rate, betas, epsilon
        self.steps = 0
        self._moments: tuple[Tensor, Tensor] | None = None

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """The next hyperparameters, a new tensor of the same shape."""
        if self._moments is None:
            self._moments = torch.zeros_like(hyper), torch.zeros_like(hyper)
        first, second = self._moments
        self.steps += 1
        first.lerp_(hypergradient, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(hypergradient, hypergradient, value=1 - self.betas[1])
        corrections = [1 - beta**self.steps for beta in self.betas]
        denominator = second.sqrt().div_(corrections[1] ** 0.5).add_(self.epsilon)
        return torch.addcdiv(hyper, first, denominator, value=-self.learning_rate / corrections[0])

    def state(self) -> State:
        """What `restore` takes, for a checkpoint."""
        return {"steps": self.steps, "moments": self._moments}

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        self.steps = state["steps"]
        self._moments = None if state["moments"] is None else (state["moments"][0], state["moments"][1])
