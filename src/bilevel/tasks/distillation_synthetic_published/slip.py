"""The slip of the published sweeps: a predicted gradient of the temperature is that of another metaparameter."""

from __future__ import annotations

from torch import Tensor

from bilevel.outer import Adam
from bilevel.trajectory import LocallyLinear, Prediction


class SlippedAdam(Adam):
    """Adam that sees the gradient of r₂, the labels' weight, in the place of that of r₃ in every predicted step."""

    def __init__(self, adam: Adam, prediction: LocallyLinear) -> None:
        super().__init__(adam.learning_rate, adam.betas, adam.epsilon)
        self._prediction = Prediction(prediction)

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """See `Adam`."""
        if not self._prediction.optimizes(self.steps):
            hypergradient = hypergradient[..., [0, 1, 1]]
        return super().step(hyper, hypergradient)
