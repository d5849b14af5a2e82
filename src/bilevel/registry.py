"""Names of tasks and methods, the modules behind them, and a hash of the code that a run uses. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def method_names() -> tuple[str, ...]:
    """Every file in `hypergradients` that defines `METHOD`."""
    return _defining("hypergradients", "METHOD")


@cache
def own_method_names(task: str) -> tuple[str, ...]:
    """Every file in the task's package that defines `METHOD`: versions of methods, and methods of its own."""
    folder = PACKAGE / "tasks" / task
    return _defining(f"tasks/{task}", "METHOD") if folder.is_dir() else ()


@cache
def all_method_names() -> tuple[str, ...]:
    """Names that any task may know."""
    own = {name for task in task_names() for name in own_method_names(task)}
    return tuple(sorted(own.union(method_names())))


@cache
def task_names() -> tuple[str, ...]:
    """Every module in `tasks` that defines `TASK`."""
    return _defining("tasks", "TASK")


@cache
def teacher_names() -> tuple[str, ...]:
    """Every module in `teachers` that defines `TEACHER`."""
    return _defining("teachers", "TEACHER")


def method_module(task: str, method: str) -> str:
    """Module of a method as a task runs it: the task's own version where its package has one."""
    own = PACKAGE / "tasks" / task / f"{method}.py"
    return f"bilevel.tasks.{task}.{method}" if own.exists() else f"bilevel.hypergradients.{method}"


def code_hash(*modules: str) -> str:
    """Hash of the package's modules that these import, directly or not; comments, docstrings and layout do not count.

    Editing one method changes the hash of that method's runs only.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(modules)):
        digest.update(f"{name}\n{_canonical(_file(name))}\n".encode())
    return digest.hexdigest()[:16]


def run_code_hash(task: str, method: str) -> str:
    """`code_hash` of everything one run of `method` on `task` uses."""
    return code_hash("bilevel.results", f"bilevel.tasks.{task}", method_module(task, method))


def teacher_code_hash(kind: str) -> str:
    """`code_hash` of everything the training of a kind of teacher uses."""
    return code_hash("bilevel.teachers", f"bilevel.teachers.{kind}")


def files_hash(folder: str) -> str:
    """Hash of the files of a folder that are not Python: templates, styles, scripts."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix != ".py":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _defining(folder: str, variable: str) -> tuple[str, ...]:
    names = []
    for path in sorted((PACKAGE / folder).iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.exists() and variable in _assigned(source):
            names.append(path.stem)
    return tuple(names)


def _assigned(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name))
    return found


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return name.split(".")[0] == "bilevel" and _file(name).exists()


@cache
def _imports(module: str) -> tuple[str, ...]:
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    return tuple(name for name in _imported_names(tree) if _is_module(name) and name != "bilevel")


def _imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _canonical(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
