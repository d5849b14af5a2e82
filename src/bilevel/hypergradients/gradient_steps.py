"""For methods that look inside a step of a `GradientOptimizer`; not a method itself."""

from __future__ import annotations

from bilevel.optimizers import GradientOptimizer, Optimizer


def gradient_optimizer(optimizer: Optimizer, method: str) -> GradientOptimizer:
    """The optimizer, if it takes one gradient a step; ValueError otherwise."""
    if not isinstance(optimizer, GradientOptimizer):
        raise ValueError(
            f"{method}: needs an optimizer whose step is a function of one gradient, such as SGD, Momentum or Adam, "
            f"got {type(optimizer).__name__}; unrolled and truncated work with any optimizer"
        )
    return optimizer
