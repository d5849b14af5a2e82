"""Tasks: each builds a bilevel problem, its starting points, batches and metrics from data and settings.

A module or package here that defines `TASK` is a task. A package may bring its own versions of methods, in files named
like them, and methods that make sense for it alone; see `bilevel.registry.method_module`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import TypeAdapter

from bilevel import hypergradients
from bilevel.registry import method_module, task_names
from bilevel.settings import Configurable, SettingsError
from bilevel.tasks.base import Task, run

__all__ = ["Task", "create_method", "method_schema", "run", "task_class"]


def task_class(name: str) -> type[Task]:
    """The task called `name`; SettingsError where there is none."""
    if name not in task_names():
        raise SettingsError(f"task: unknown task {name!r}; there are {', '.join(task_names())}")
    found: type[Task] = import_module(f"bilevel.tasks.{name}").TASK
    return found


def create_method(task: str, name: str, settings: dict[str, Any]) -> Configurable:
    """The method as this task runs it; SettingsError for an unknown method or wrong settings."""
    allowed = task_class(task).methods or hypergradients.names()
    if name not in allowed:
        raise SettingsError(f"method: {task} has no method {name!r}; it has {', '.join(allowed)}")
    method: type[Configurable] = import_module(method_module(task, name)).METHOD
    return method.create(settings)


def method_schema(task: str | None, name: str) -> dict[str, Any]:
    """JSON schema of a method's entry in config.yaml: of a hypergradient method, or of a task's own."""
    module = f"bilevel.hypergradients.{name}" if task is None else method_module(task, name)
    schema = TypeAdapter(import_module(module).METHOD).json_schema()
    return {
        "title": name,
        "properties": {"method": {"const": name}, "task": {"type": "object"}, **schema.get("properties", {})},
        "required": ["method", *schema.get("required", [])],
        "additionalProperties": False,
        **({"$defs": schema["$defs"]} if "$defs" in schema else {}),
    }
