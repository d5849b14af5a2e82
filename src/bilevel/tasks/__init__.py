"""Tasks: each builds a bilevel problem, its starting points, batches and metrics from data and settings.

A module or package here that defines `TASK` is a task. A package may bring its own versions of methods, in files named
like them; see `bilevel.registry.method_module`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bilevel.hypergradients import Hypergradient
from bilevel.registry import method_module, method_names, task_names
from bilevel.settings import SettingsError
from bilevel.tasks.base import Task

__all__ = ["Task", "create_method", "task_class"]


def task_class(name: str) -> type[Task]:
    """The task called `name`; SettingsError where there is none."""
    if name not in task_names():
        raise SettingsError(f"task: unknown task {name!r}; there are {', '.join(task_names())}")
    found: type[Task] = import_module(f"bilevel.tasks.{name}").TASK
    return found


def create_method(task: str, name: str, settings: dict[str, Any]) -> Hypergradient:
    """The method as this task runs it; SettingsError for an unknown method or wrong settings."""
    if name not in method_names():
        raise SettingsError(f"method: unknown method {name!r}; there are {', '.join(method_names())}")
    allowed = task_class(task).methods
    if allowed is not None and name not in allowed:
        raise SettingsError(f"method: {task} has no version of {name!r}; it has {', '.join(allowed)}")
    method: type[Hypergradient] = import_module(method_module(task, name)).METHOD
    return method.create(settings)
