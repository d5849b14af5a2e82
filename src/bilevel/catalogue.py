"""What there is to choose from, and what it is, for `bilevel list` and `bilevel explain`.

Everything is read from the classes and their docstrings, where it is written once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bilevel import docstrings, registry
from bilevel.errors import UserError

KINDS = ("tasks", "methods", "data", "teachers", "optimizers")
"""What `listing` knows."""

_LABELS = ("Cost", "Memory", "Raises", "Source")

_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Setting(NamedTuple):
    """A field of a class: its name, its type in words, its default in words (None: required), what is said of it."""

    name: str
    type: str
    default: str | None
    text: str


def listing(kind: str) -> list[tuple[str, str]]:
    """Name and first sentence of everything of one kind in `KINDS`."""
    found: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "tasks": lambda: ((name, _sentence(f"bilevel.tasks.{name}")) for name in registry.task_names()),
        "methods": _methods,
        "data": _data_sets,
        "teachers": lambda: ((name, _sentence(f"bilevel.teachers.{name}")) for name in registry.teacher_names()),
        "optimizers": _optimizers,
    }
    return list(found[kind]())


def explain(name: str, width: int = 100) -> str:
    """All that is known of what is called `name`, in lines of `width`; UserError where nothing is.

    `task/method` is a task's own version of a method.
    """
    from bilevel import data

    found = []
    if name in registry.task_names():
        found.append(_task(name, width))
    if name in registry.method_names():
        found.append(_method(name, f"bilevel.hypergradients.{name}", width))
    found += [
        _method(own, registry.method_module(task, own), width)
        for task, own in _own_methods()
        if name == f"{task}/{own}" or (name == own and own not in registry.method_names())
    ]
    if name in data.names():
        found.append(_data_set(name, width))
    if name in registry.teacher_names():
        found.append(_teacher(name, width))
    if name.lower() in (known := {optimizer.lower(): optimizer for optimizer, _ in listing("optimizers")}):
        found.append(_optimizer(known[name.lower()], width))
    if not found:
        raise UserError(f"{name}: nothing is called that; `bilevel list` shows what there is")
    return "\n\n".join(found)


def settings_of(cls: type) -> list[Setting]:
    """Fields of a pydantic model or dataclass, with what its docstring and those of its bases say of them."""
    schema = TypeAdapter(cls).json_schema(schema_generator=_Schema)
    properties, definitions, defaults = schema.get("properties", {}), schema.get("$defs", {}), _defaults(cls)
    said = docstrings.of_settings(cls, properties)
    return [
        Setting(
            name,
            _type(found, definitions),
            _shown(_plain(defaults[name])) if name in defaults else None,
            said.get(name, ""),
        )
        for name, found in properties.items()
    ]


def _defaults(cls: type) -> dict[str, Any]:
    """Defaults by name, of the fields that have one."""
    fields: dict[str, FieldInfo] = getattr(cls, "model_fields", None) or getattr(cls, "__pydantic_fields__", {})
    return {
        name: field.get_default(call_default_factory=True) for name, field in fields.items() if not field.is_required()
    }


class _Schema(GenerateJsonSchema):
    """JSON schema in which what JSON knows nothing of, such as an optimizer, has the name of its class."""

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {"title": schema["cls"].__name__}

    def encode_default(self, dft: Any) -> Any:
        return super().encode_default(_plain(dft))


def _plain(value: Any) -> Any:
    """A default as JSON knows it; what it does not, such as an optimizer, as it would be written in Python."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return repr(value) if dataclasses.is_dataclass(value) else value


def _shown(value: Any) -> str:
    """A value as it would be written in YAML."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(_shown, schema.get("enum", [schema.get("const")])))
    bounds = ", ".join(f"{sign} {schema[key]}" for key, sign in _SIGNS.items() if key in schema)
    match schema.get("type"):
        case "array":
            return f"list of: {_type(schema.get('items', {}), definitions)}"
        case "object":
            return "keys " + ", ".join(schema["properties"]) if "properties" in schema else "keys and values"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "null":
            return "none"
        case None:
            return str(schema.get("title", "anything"))
        case kind:
            return f"{kind} {bounds}".strip()


def _methods() -> Iterator[tuple[str, str]]:
    for name in registry.method_names():
        yield name, _sentence(f"bilevel.hypergradients.{name}")
    for task, own in _own_methods():
        yield f"{task}/{own}", _sentence(registry.method_module(task, own))


def _own_methods() -> list[tuple[str, str]]:
    return [(task, name) for task in registry.task_names() for name in registry.own_method_names(task)]


def _data_sets() -> Iterator[tuple[str, str]]:
    from bilevel import data
    from bilevel.data.catalog import SPECS

    for name in data.names():
        splits = ", ".join(f"{count} {split}" for split, count in data.counts(name).items())
        where = "set up with the environment" if SPECS[name].embedded else "from data.directories or a download"
        yield name, f"{data.kind(name)}: {splits}; {where}"


def _optimizers() -> Iterator[tuple[str, str]]:
    from bilevel import optimizers

    for name in optimizers.__all__:
        cls = getattr(optimizers, name)
        if inspect.isclass(cls) and issubclass(cls, optimizers.Optimizer) and not inspect.isabstract(cls):
            yield name, docstrings.joined(docstrings.read(cls.__doc__).paragraphs[0])


def _sentence(module: str) -> str:
    """The first line of a module's docstring, without importing it."""
    path = registry.PACKAGE.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _task(name: str, width: int) -> str:
    from bilevel import hypergradients
    from bilevel.settings import OnData
    from bilevel.tasks import task_class

    module, cls = f"bilevel.tasks.{name}", task_class(name)
    takes = "none; it makes its own" if _same(cls.check_data, OnData.check_data) else cls.data_kind
    own = registry.own_method_names(name)
    facts = {
        "Data": takes,
        "Teacher": cls.teacher_kind or "none",
        "Methods": ", ".join(cls.methods or hypergradients.names()),
        **({"Own versions": ", ".join(f"{name}/{method}" for method in own)} if own else {}),
        "Module": module,
    }
    texts = [_module_text(module), *_own_text(cls)]
    return _page(f"{name}: task", texts, settings_of(cls.settings_class), facts, width)


def _same(one: Any, other: Any) -> bool:
    return getattr(one, "__func__", one) is getattr(other, "__func__", other)


def _own_text(cls: type) -> list[str]:
    """The docstring of the class, or of the first base that says more than where to look."""
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "").removeprefix("See the module.").strip()
        if text:
            return [] if base.__module__ in ("bilevel.tasks.base", "builtins") else [text]
    return []


def _method(name: str, module: str, width: int) -> str:
    cls = import_module(module).METHOD
    kind = "hypergradient method" if module.startswith("bilevel.hypergradients.") else "method of a task"
    title = name if kind == "hypergradient method" else f"{module.split('.')[2]}/{name}"
    versions = [f"{task}/{own}" for task, own in _own_methods() if own == name]
    facts = {"Module": module}
    if kind == "hypergradient method" and versions:
        facts = {"Own versions": ", ".join(versions), **facts}
    texts = [_module_text(module), inspect.cleandoc(cls.__doc__ or "")]
    return _page(f"{title}: {kind}", texts, settings_of(cls), facts, width)


def _module_text(module: str) -> str:
    """The docstring of a module."""
    return inspect.cleandoc(import_module(module).__doc__ or "")


def _teacher(name: str, width: int) -> str:
    from bilevel.settings import OnData
    from bilevel.teachers import teacher_class

    module, cls = f"bilevel.teachers.{name}", teacher_class(name)
    takes = "none; it makes its own" if _same(cls.check_data, OnData.check_data) else cls.data_kind
    facts = {"Data": takes, "Module": module}
    texts = [_module_text(module), inspect.cleandoc(cls.__doc__ or "")]
    return _page(f"{name}: kind of teacher", texts, settings_of(cls.settings_class), facts, width)


def _optimizer(name: str, width: int) -> str:
    from bilevel import optimizers

    cls = getattr(optimizers, name)
    return _page(
        f"{name}: inner optimizer",
        [inspect.cleandoc(cls.__doc__ or "")],
        settings_of(cls),
        {"Module": cls.__module__},
        width,
    )


def _data_set(name: str, width: int) -> str:
    from bilevel.data.catalog import SPECS

    spec = SPECS[name]
    splits = "; ".join(f"{split}: {_split(digest)}" for split, digest in spec.digest.splits.items())
    sources = [f"files {', '.join(spec.files)} in a folder of data.directories"]
    if spec.package is not None:
        sources.append(f"the installed package {spec.package.name}")
    if spec.wheel is not None:
        sources.append(f"the wheel {spec.wheel.requirement}, fetched at set-up")
    if spec.official is not None:
        sources.append("the official address, with data.download: true")
    facts = {
        "Kind": spec.kind,
        "Splits": splits,
        "Found in": "; ".join(sources),
        **({"Hint": spec.hint} if spec.hint else {}),
    }
    return _page(f"{name}: data set", [], [], facts, width)


def _split(digest: Any) -> str:
    unit = "images" if digest.kind == "images" else "pairs of lines"
    shape = getattr(digest, "image_shape", None)
    return f"{digest.count} {unit}" + (f" of {'×'.join(map(str, shape))}" if shape else "")


def _page(title: str, texts: list[str], settings: list[Setting], facts: dict[str, str], width: int) -> str:
    """Title, paragraphs, settings, and what has a label: cost, memory, errors, source and `facts`."""
    names = [setting.name for setting in settings]
    parts = [docstrings.read(text, names) for text in texts]
    labelled = {label: text for part in parts for label, text in part.labelled.items()}
    raises = [part.raises.removeprefix("Raises ") for part in parts if part.raises]
    labelled |= {"Raises": raises[-1]} if raises else {}
    facts = {**{label: labelled[label] for label in _LABELS if label in labelled}, **facts}
    sections = [title]
    sections += [docstrings.wrapped(paragraph, width) for part in parts for paragraph in part.paragraphs]
    if settings:
        sections.append("\n".join(["Settings", *(_setting(setting, width) for setting in settings)]))
    sections.append("\n".join(_fact(*fact, width) for fact in facts.items()))
    return "\n\n".join(sections)


def _setting(setting: Setting, width: int) -> str:
    default = "required" if setting.default is None else f"default {setting.default}"
    line = docstrings.wrapped(f"{setting.name} ({setting.type}; {default})", width, "  ")
    return f"{line}\n{docstrings.wrapped(setting.text, width, '      ')}" if setting.text else line


def _fact(label: str, text: str, width: int) -> str:
    first = f"{label}:".ljust(14)
    lines = docstrings.wrapped(text, width - len(first)).splitlines()
    return "\n".join([first + lines[0], *(" " * len(first) + line for line in lines[1:])])
