"""Hypergradient methods, one file each. A new file with a `METHOD` is a new method; nothing else registers it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bilevel.hypergradients.base import Estimate, Hypergradient
from bilevel.registry import method_names
from bilevel.settings import SettingsError

__all__ = ["Estimate", "Hypergradient", "SettingsError", "create", "names"]


def names() -> tuple[str, ...]:
    """Names that `create` knows."""
    return method_names()


def create(name: str, **settings: Any) -> Hypergradient:
    """The method called `name` with its settings.

    >>> create("aggregated", gamma=0.99)
    Aggregated(gamma=0.99)

    Raises SettingsError for an unknown method, an unknown, missing or mistyped setting, or a value out of range.
    """
    return _class(name).create(settings)


def _class(name: str) -> type[Hypergradient]:
    if name not in names():
        raise SettingsError(f"method: unknown method {name!r}; there are {', '.join(names())}")
    method: type[Hypergradient] = import_module(f"bilevel.hypergradients.{name}").METHOD
    return method
