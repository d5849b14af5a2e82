"""Training of a chosen network from new parameters: those of the best validation perplexity are kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint, State
from bilevel.derivatives import Derivatives
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch, Loss, Problem


class Average:
    """The mean of all parameters from a moment on, which is chosen without a schedule.

    It begins after an evaluation that is worse than the best of those more than `patience` before it.

    Source: Merity, Keskar and Socher 2018, algorithm 1 (NT-ASGD); Polyak and Juditsky 1992.
    """

    def __init__(self, patience: int) -> None:
        self._patience, self._found, self._count = patience, list[float](), 0
        self._mean: Tensor | None = None

    def add(self, params: Tensor) -> None:
        """The parameters after a step."""
        if self._mean is not None:
            self._count += 1
            self._mean += (params - self._mean) / self._count

    def of(self, params: Tensor) -> Tensor:
        """What is evaluated: the mean once it has begun, else the parameters themselves."""
        return params if self._mean is None else self._mean

    def evaluated(self, value: float, params: Tensor) -> None:
        """What was found for them; lower is better."""
        earlier = self._found[: -self._patience] if len(self._found) > self._patience else []
        if self._mean is None and earlier and not value <= min(earlier):
            self._mean, self._count = params.clone(), 1
        self._found.append(value)

    def state(self) -> State:
        """What `restore` takes, for a checkpoint."""
        return {"found": self._found, "count": self._count, "mean": self._mean}

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        self._found, self._count, self._mean = state["found"], state["count"], state["mean"]


def retrain(
    loss: Loss,
    optimizer: Optimizer,
    params: Tensor,
    batches: Callable[[int], Batch],
    steps: int,
    evaluate: Callable[[Tensor], float],
    evaluate_every: int,
    patience: int,
    checkpoint: Checkpoint = NOWHERE,
) -> Tensor:
    """Parameters (P,) of the best value of `evaluate`, of those before the first and after every k-th and the last of
    the steps from `params` (P,).

    batches: of a step, with a leading axis of length 1.
    """
    derivatives = Derivatives(Problem(loss, loss), params.new_zeros(1, 0))
    state, average = optimizer.init(params.unsqueeze(0)), Average(patience)
    best, lowest, first = params, math.inf, 0
    if (found := checkpoint.found) is not None:
        state, best, lowest, first = found["state"], found["best"], found["lowest"], found["steps"]
        average.restore(found["average"])
    for step in range(first, steps + 1):
        current = optimizer.params(state)[0]
        if step > 0:
            average.add(current)
        if step % evaluate_every == 0 or step == steps:
            looked_at = average.of(current)
            value = evaluate(looked_at)
            average.evaluated(value, current)
            if value < lowest:
                best, lowest = looked_at.clone(), value
        if step < steps:
            optimizer.advance_(derivatives, state, batches(step))
            kept = {"steps": step + 1, "state": state, "best": best, "lowest": lowest, "average": average.state()}
            checkpoint.keep(kept)
    return torch.clone(best)
