"""Inner optimizers Φ, each with the adjoint of its step in closed form."""

from bilevel.optimizers.base import Optimizer
from bilevel.optimizers.momentum import Momentum
from bilevel.optimizers.sgd import SGD

__all__ = ["SGD", "Momentum", "Optimizer"]
