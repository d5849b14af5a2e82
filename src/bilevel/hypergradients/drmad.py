"""DrMAD: reverse mode along the straight line between the first and the last parameters."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance, gradient_optimizer
from bilevel.hypergradients.reverse import Trajectory, estimate_back
from bilevel.optimizers import GradientOptimizer, Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class DrMAD(Hypergradient):
    """Exact reverse mode with A_t, B_t taken at s̃_{t−1} = (1 − (t−1)/T) s_0 + (t−1)/T s_T instead of s_{t−1}.

    For an optimizer whose Jacobians depend on the parameters alone (SGD, momentum) that is the line between the first
    and the last parameters; where steps are counted, the count is that of step t. It has no settings.

    Cost: 2T − 1 products, as `unrolled`.

    Memory: two states, the first and the last.

    Raises ValueError for an optimizer that does not take one gradient a step: a point between two states of its memory
    means nothing.

    Source: Fu et al. 2016; deck 000.
    """

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        chained = gradient_optimizer(optimizer, "drmad")
        first = state
        state = advance(derivatives, optimizer, state, batches, len(batches))
        derivatives.cost.hold(2)
        line = StateLine(chained, first, state, len(batches))
        return estimate_back(derivatives, optimizer, state, Trajectory(line), batches, outer_batch)


class Line(Sequence[Tensor]):
    """Points from `first` towards `last`: item t is at the fraction t / count."""

    def __init__(self, first: Tensor, last: Tensor, count: int) -> None:
        self._first, self._last, self._count = first, last, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # slices are not needed
        return self._first.lerp(self._last, index / self._count)


class StateLine(Line):
    """The same of states: where steps are counted, item t has the count of the first state and t more."""

    def __init__(self, optimizer: GradientOptimizer, first: Tensor, last: Tensor, count: int) -> None:
        super().__init__(first, last, count)
        self._optimizer = optimizer

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # slices are not needed
        """A schedule is read at whole numbers of steps."""
        point = super().__getitem__(index)
        steps, before = self._optimizer.count(point), self._optimizer.count(self._first)
        if steps is not None and before is not None:
            steps.copy_(before + index)
        return point


METHOD = DrMAD
