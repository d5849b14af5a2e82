"""Another optimizer, whose gradients are cut to a greatest length."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.adam import Adam
from bilevel.optimizers.base import STRICT, GradientOptimizer
from bilevel.optimizers.momentum import Momentum
from bilevel.optimizers.sgd import SGD
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class Clipped(GradientOptimizer):
    """Φ(s_{t−1}, κ g_t) with κ = min(1, c / ‖g_t‖), the norm over all parameters of a seed.

    State: that of the optimizer.
    Adjoint: with u = dL/d(κ g) of the optimizer, dL/dg = u where ‖g‖ ≤ c, else κ (u − g ⟨g, u⟩ / ‖g‖²).

    optimizer: Φ. norm: c.

    Source: Pascanu, Mikolov and Bengio 2013.
    """

    optimizer: SGD | Momentum | Adam
    norm: Positive

    @property
    def slots(self) -> int:
        """Those of the optimizer."""
        return self.optimizer.slots

    @property
    def counts(self) -> bool:
        """As the optimizer does."""
        return self.optimizer.counts

    @property
    def tape_slots(self) -> int:
        """Those of the optimizer."""
        return self.optimizer.tape_slots

    def is_sensitive(self, taped: Tensor, gradient: Tensor) -> bool:
        """Where the optimizer is."""
        return self.optimizer.is_sensitive(taped, gradient * self._scale(gradient))

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        self.optimizer.step_(state, gradient * self._scale(gradient), hyper)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        assert gradient is not None  # since `adjoint_reads_gradient`
        scale = self._scale(gradient)
        read = gradient * scale if self.optimizer.adjoint_reads_gradient else None
        vector = self.optimizer.adjoint_(cotangent, taped, read, hyper, to_hyper)
        along = (gradient * vector).sum(-1, keepdim=True) / gradient.square().sum(-1, keepdim=True)
        return scale * (vector - gradient * along.where(scale.real < 1, 0.0))

    def _scale(self, gradient: Tensor) -> Tensor:
        """κ (..., 1); of a complex gradient the analytic continuation."""
        scale = self.norm / gradient.square().sum(-1, keepdim=True).sqrt()
        return scale.where(scale.real < 1, 1.0)
