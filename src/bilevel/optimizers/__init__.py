"""Inner optimizers Φ, each with the adjoint of its step in closed form."""

from bilevel.optimizers.adam import Adam
from bilevel.optimizers.base import GradientOptimizer, LinearStep, Optimizer
from bilevel.optimizers.clipped import Clipped
from bilevel.optimizers.descent import Descent, GradientDescent
from bilevel.optimizers.lbfgs import LBFGS
from bilevel.optimizers.learned import Cosine, Learned
from bilevel.optimizers.line_search import Armijo, Exact, Fixed, StepSize, StrongWolfe
from bilevel.optimizers.lstm import LSTM
from bilevel.optimizers.momentum import Momentum
from bilevel.optimizers.sgd import SGD
from bilevel.optimizers.stopping import Until

__all__ = [
    "LBFGS",
    "LSTM",
    "SGD",
    "Adam",
    "Armijo",
    "Clipped",
    "Cosine",
    "Descent",
    "Exact",
    "Fixed",
    "GradientDescent",
    "GradientOptimizer",
    "Learned",
    "LinearStep",
    "Momentum",
    "Optimizer",
    "StepSize",
    "StrongWolfe",
    "Until",
]
