"""What every task offers to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint, State
from bilevel.data import Corpus, Dataset
from bilevel.results import Result, joined
from bilevel.settings import OnData, Settings


class Task(OnData, ABC):
    """An experiment for the seeds of one job. Everything with a seed axis follows the order of `seeds`."""

    methods: ClassVar[tuple[str, ...] | None] = None
    """Names of the methods that make sense here; None: all hypergradient methods."""
    teacher_kind: ClassVar[str | None] = None
    """Kind of teacher that the task distills; None: none."""
    one_by_one_on_cpu: ClassVar[bool] = False
    """Whether the seeds of a job are run one after another on a CPU, where networks in a batch of seeds are slower."""
    checkpoint: Checkpoint = NOWHERE
    """Where the run keeps its state; set before `run`."""

    @classmethod
    def check_method(cls, settings: Settings, method: Any) -> None:
        """SettingsError where a method makes no sense with these settings; all do unless a task says so."""

    @classmethod
    def check_teacher(cls, settings: Settings, teacher: Settings) -> None:
        """SettingsError where a teacher with settings `teacher`, of the right kind, cannot teach these students."""

    @abstractmethod
    def __init__(
        self,
        study: str,
        settings: Settings,
        dataset: Dataset | Corpus | None,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        """Prepare everything that does not depend on the method."""

    def use_teachers(self, teachers: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the tensors of each seed's teacher, before `run`; of tasks that need them."""
        raise NotImplementedError(f"{type(self).__name__} distills no teacher")

    @abstractmethod
    def run(self, method: Any, name: str) -> Result:
        """The whole experiment with one method; `name` is what progress is reported under."""


def run(
    task: type[Task],
    method: Any,
    *,
    study: str,
    settings: Settings,
    dataset: Dataset | Corpus | None,
    seeds: Sequence[int],
    device: torch.device,
    teachers: Sequence[Mapping[str, Tensor]] = (),
    name: str = "run",
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """A whole job: `task` with one method for all seeds, in one batch, or one after another where the task says so; a
    seed then has the numbers that it has alone.

    teachers: tensors of each seed's teacher, for tasks that need them. checkpoint: where the run keeps its state.
    """

    def of(seeds: Sequence[int], teachers: Sequence[Mapping[str, Tensor]], name: str, checkpoint: Checkpoint) -> Result:
        made = task(study, settings, dataset, seeds, device)
        made.checkpoint = checkpoint
        if teachers:
            made.use_teachers(teachers)
        return made.run(method, name)

    if len(seeds) == 1 or device.type != "cpu" or not task.one_by_one_on_cpu:
        return of(seeds, teachers, name, checkpoint)

    def alone(index: int, seed: int) -> State:
        own, called = teachers[index : index + 1], f"{name}, seed {seed}"
        return checkpoint.kept(f"seed {seed}", lambda part: of([seed], own, called, part).state())

    return joined([Result.restored(alone(index, seed)) for index, seed in enumerate(seeds)])
