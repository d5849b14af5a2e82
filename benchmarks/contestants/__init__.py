"""One module a library, with `contest(case, data) -> list[Entry]`; nothing else imports that library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Array, Quantity

NAMES = ("bilevel", "torch", "higher", "torchopt", "jax")

Run = Callable[[], Array]


@dataclass(frozen=True)
class Entry:
    """One way of computing a quantity: T inner steps and what follows them.

    label: the method as the table names it.
    build: prepares what is not measured (conversion, compilation) and returns the function that is: a call is a whole
        run, and returns the flat hypergradient or, for the inner steps, the flat parameters.
    note: printed with the result.
    missing: why the entry cannot run; then `build` is never called.
    """

    label: str
    quantity: Quantity
    build: Callable[[], Run]
    note: str = ""
    missing: str = ""


def flat(parts: list[Any]) -> Array:
    """One vector (P,) of PyTorch or JAX arrays, as NumPy."""
    import numpy as np

    return np.concatenate([np.asarray(part).ravel() for part in parts])
