"""Deck 001: algorithms as piecewise functions. Which exit an input takes, and value and derivative on each piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bilevel.data import Dataset
from bilevel.results import Result
from bilevel.settings import Settings
from bilevel.tasks.algorithms.base import Algorithm
from bilevel.tasks.base import Task


class AlgorithmsSettings(Settings):
    """points: size of the grid of inputs x."""

    points: Annotated[int, Field(ge=3)] = 241


class Algorithms(Task):
    """Runs an algorithm on a grid of inputs x.

    Step k of the trace is the k-th input: `x`, `branch` (c(x), the exit taken), `value` and `derivative`, that of the
    piece. Nothing is random: all seeds have the same numbers. Summary: `pieces`, how many there are on the grid;
    `largest_jump`, the most that the value changes between neighbors on different pieces, less what the slope
    explains; `derivative_error`, the largest difference of the derivative from the central difference of neighbors, of
    inputs whose neighbors are on the same piece, as a part of the largest derivative.

    Source: deck 001, slides "Дифференцирование алгоритмов" and "Дифференцирование методов оптимизации".
    """

    settings_class: ClassVar[type[Settings]] = AlgorithmsSettings
    methods: ClassVar[tuple[str, ...] | None] = ("mod1", "stopped_descent")

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        assert isinstance(settings, AlgorithmsSettings)
        self._points, self._seeds = settings.points, len(seeds)

    def run(self, method: Algorithm, name: str) -> Result:
        """See `Task`."""
        inputs = torch.linspace(method.low, method.high, self._points, dtype=torch.float64)
        branch, value, derivative = method.pieces(inputs)
        columns = {"x": inputs, "branch": branch.double(), "value": value, "derivative": derivative}
        trace = {
            index: {metric: values[index].expand(self._seeds) for metric, values in columns.items()}
            for index in range(self._points)
        }
        summary = _summary(inputs, branch, value, derivative)
        alive = torch.isfinite(value + derivative).all().expand(self._seeds)
        return Result(alive, trace, {metric: number.double().expand(self._seeds) for metric, number in summary.items()})


def _summary(inputs: Tensor, branch: Tensor, value: Tensor, derivative: Tensor) -> dict[str, Tensor]:
    gap, slope = inputs.diff(), (derivative[1:] + derivative[:-1]) / 2
    jumps = (value.diff() - slope * gap).abs()[branch.diff() != 0]
    inside = (branch[2:] == branch[1:-1]) & (branch[1:-1] == branch[:-2])
    difference = (value[2:] - value[:-2]) / (inputs[2:] - inputs[:-2])
    wrong = (difference - derivative[1:-1]).abs()[inside]
    none = torch.zeros(1, dtype=torch.float64)
    return {
        "pieces": (branch.diff() != 0).sum() + 1,
        "largest_jump": torch.cat([none, jumps]).max(),
        "derivative_error": torch.cat([none, wrong]).max() / derivative.abs().max(),
    }


TASK = Algorithms
