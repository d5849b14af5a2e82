"""Adam on gradients that are cut entry by entry."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers import Adam
from bilevel.optimizers.base import STRICT
from bilevel.settings import Positive


@dataclass(frozen=True, config=STRICT)
class ClampedAdam(Adam):
    """`Adam` with clip(g_t, ±c) in place of g_t.

    Adjoint: where |g| > c, dL/dg = 0.

    bound: c.
    """

    bound: Positive = 1.0

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        super().step_(state, gradient.clamp(-self.bound, self.bound), hyper)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        assert gradient is not None  # since `adjoint_reads_gradient`
        cut = gradient.clamp(-self.bound, self.bound)
        vector = super().adjoint_(cotangent, taped, cut, hyper, to_hyper)
        return vector.where(cut == gradient, 0.0)
