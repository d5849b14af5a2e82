"""Teachers: models that students are distilled from, trained once and kept in files.

A module here that defines `TEACHER` is a kind of teacher. What it trains is written by `save` and read by `load`.
"""

from __future__ import annotations

from importlib import import_module

from bilevel.registry import teacher_names
from bilevel.settings import SettingsError
from bilevel.teachers.base import Teacher, Trained
from bilevel.teachers.store import load, save

__all__ = ["Teacher", "Trained", "load", "save", "teacher_class"]


def teacher_class(name: str) -> type[Teacher]:
    """The kind of teacher called `name`; SettingsError where there is none."""
    if name not in teacher_names():
        raise SettingsError(f"teacher: unknown kind {name!r}; there are {', '.join(teacher_names())}")
    found: type[Teacher] = import_module(f"bilevel.teachers.{name}").TEACHER
    return found
