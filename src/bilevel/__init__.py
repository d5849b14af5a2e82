"""Gradient-based hyperparameter optimization: hypergradients of bilevel problems, exact and approximate.

The two lines that matter::

    method = bilevel.hypergradients.create("unrolled")
    estimate = method(problem, optimizer, state, hyper, batches, outer_batch)

Submodules are imported when first used, so that reading a configuration does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel import hypergradients as hypergradients
    from bilevel import optimizers as optimizers
    from bilevel import penalties as penalties
    from bilevel.cost import Cost as Cost
    from bilevel.parameters import Layout as Layout
    from bilevel.parameters import functional as functional
    from bilevel.problem import Problem as Problem
    from bilevel.tracing import traced as traced

__version__ = "0.1.0"

_LAZY = {
    "Cost": "bilevel.cost",
    "Layout": "bilevel.parameters",
    "Problem": "bilevel.problem",
    "functional": "bilevel.parameters",
    "hypergradients": "bilevel.hypergradients",
    "optimizers": "bilevel.optimizers",
    "penalties": "bilevel.penalties",
    "traced": "bilevel.tracing",
}

__all__ = ["Cost", "Layout", "Problem", "functional", "hypergradients", "optimizers", "penalties", "traced"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bilevel' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"bilevel.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
