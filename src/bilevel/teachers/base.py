"""What every kind of teacher offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from bilevel.data import Dataset
from bilevel.settings import SettingsError, explain


class TeacherSettings(BaseModel):
    """Base of a teacher's settings: every key known, every value of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True)
class Trained:
    """What training leaves: tensors by name (parameters, what a student has to know of the data), and metrics."""

    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, float]


class Teacher(ABC):
    """A kind of teacher."""

    settings_class: ClassVar[type[TeacherSettings]]

    @classmethod
    def read_settings(cls, settings: dict[str, Any]) -> TeacherSettings:
        """Checked settings; SettingsError where they do not fit."""
        try:
            return cls.settings_class(**settings)
        except ValidationError as error:
            raise SettingsError(explain(error)) from None

    @classmethod
    def check_data(cls, settings: TeacherSettings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the data set with these numbers of items a split does not serve.

        A teacher that needs no data leaves this as it is.
        """
        if name is not None:
            raise SettingsError(
                f"data: this teacher makes its own data and uses no data set, got {name!r}; leave it out"
            )

    @abstractmethod
    def __init__(self, name: str, settings: TeacherSettings, dataset: Dataset | None, device: torch.device) -> None:
        """`name` is what the configuration calls it; random numbers depend on it, on the purpose and on the seed."""

    @abstractmethod
    def train(self, seed: int) -> Trained:
        """The trained teacher of one seed, its tensors on the CPU."""
