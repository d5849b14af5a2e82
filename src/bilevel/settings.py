"""What settings are made of, and errors in them, worded for the person who wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bilevel.errors import UserError

_EXPONENT = re.compile(r"^[+-]?\d+(\.\d*)?[eE]\d+$|^[+-]?\d+[eE][+-]?\d+$")
_PLAIN = re.compile(r"[\w.\-\[\] ]+")
_LONGEST = 120  # characters of a key or a value that a message shows


STRICT = ConfigDict(strict=True, extra="forbid")
"""Of the dataclasses whose fields are settings: every key known, every value of its own type."""

NAME = r"^[a-z0-9]([a-z0-9_.]*[a-z0-9_])?$"
DECK = r"^\d{3}$"

_WORDS = {
    NAME: "expected small letters, digits, _ and . (not at an end)",
    DECK: 'expected three digits between quotes, such as "000"',
}
"""What is allowed, of the patterns above."""

_KEYS_AND_VALUES = {"dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type"}

MAX_WHOLE = 2**53
"""The largest whole number in settings: above it, floats hold some of them only, and counters overflow."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SettingsError(UserError, ValueError):
    """A setting is unknown, missing, mistyped or out of range; the message names key, value and what is allowed."""


class Configurable:
    """A pydantic dataclass that is made from what a configuration says."""

    @classmethod
    def create(cls, settings: dict[str, Any]) -> Self:
        """With these settings; SettingsError where they do not fit."""
        _check_whole_numbers(settings)
        try:
            return cls(**settings)
        except ValidationError as error:
            raise SettingsError(explain(error)) from None


class Settings(BaseModel):
    """Base of the settings of a task or of a teacher: every key known, every value of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OnData:
    """What has settings, and may need a data set."""

    settings_class: ClassVar[type[Settings]]
    data_kind: ClassVar[Literal["images", "text"]] = "images"
    """What kind of data set it takes, if any."""

    @classmethod
    def read_settings(cls, settings: dict[str, Any]) -> Settings:
        """Checked settings; SettingsError where they do not fit."""
        _check_whole_numbers(settings)
        try:
            return cls.settings_class(**settings)
        except ValidationError as error:
            raise SettingsError(explain(error)) from None

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the data set with these numbers of items a split does not serve.

        What needs no data leaves this as it is.
        """
        if name is not None:
            raise SettingsError(
                f"data: {cls.__name__} makes its own data and uses no data set, got {name!r}; leave it out"
            )


def explain(error: ValidationError, prefix: str = "") -> str:
    """One line for each thing that is wrong: key, value, what is allowed."""
    return "\n".join(_explain_one(dict(item), prefix) for item in error.errors())


def _explain_one(item: dict[str, Any], prefix: str) -> str:
    parts = [_shown(part) for part in item["loc"] if part != "[key]"]  # what is said of a name is said of the name
    path = ".".join([prefix, *parts] if prefix else parts)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: unknown key"
    if item["type"] in ("missing", "missing_argument"):
        return f"{path}: this key is required"
    hint = ""
    if isinstance(item["input"], str) and _EXPONENT.match(item["input"]):
        value = f"{float(item['input']):.1e}"
        hint = f" (YAML reads {item['input']} as text: write {value}, with a point)"
    return f"{path}: {_message(item)}, got {_shortened(repr(item['input']))}{hint}"


def _message(item: dict[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] in _WORDS:
        return _WORDS[item["ctx"]["pattern"]]
    if item["type"] in _KEYS_AND_VALUES:
        return "expected keys and values"
    text = str(item["msg"]).removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}"


def _check_whole_numbers(settings: Mapping[str, Any]) -> None:
    large = [f"{path}: expected at most 2^53" for path, value in _leaves(settings, "") if _is_too_large(value)]
    if large:
        raise SettingsError("\n".join(large))


def _is_too_large(value: object) -> bool:
    return isinstance(value, int) and abs(value) > MAX_WHOLE


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{_shown(key)}" if path else _shown(key))


def _shown(key: str | int) -> str:
    """A key as it stands, or between quotes with escapes where it could break a line or a terminal."""
    return _shortened(str(key) if _PLAIN.fullmatch(str(key)) else repr(key))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
