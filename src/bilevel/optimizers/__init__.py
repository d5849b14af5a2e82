"""Inner optimizers Φ, each with the adjoint of its step in closed form."""

from bilevel.optimizers.adam import Adam
from bilevel.optimizers.base import GradientOptimizer, LinearStep, Optimizer
from bilevel.optimizers.learned import Learned
from bilevel.optimizers.momentum import Momentum
from bilevel.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "GradientOptimizer", "Learned", "LinearStep", "Momentum", "Optimizer"]
