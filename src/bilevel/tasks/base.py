"""What every task offers to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint, State
from bilevel.data import Corpus, Dataset
from bilevel.hypergradients import Hypergradient
from bilevel.optimizers import Optimizer, Until
from bilevel.problem import Batch, Problem
from bilevel.results import Histogram, Metrics, Point, Result, Structure, joined
from bilevel.runs import greedy, honest
from bilevel.settings import OnData, Settings
from bilevel.trajectory import LocallyLinear


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


class OuterOptimizer(Protocol):
    """What moves hyperparameters, such as `outer.Adam`; every entry by itself, so that seeds do not mix."""

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """The next hyperparameters (S, H), a new tensor."""

    def state(self) -> State:
        """What `restore` takes, for a checkpoint."""

    def restore(self, state: State) -> None:
        """Go on from `state`."""


class OuterLoop(Task):
    """An experiment that optimizes hyperparameters: differentiated inner steps and updates in turn, see `runs.greedy`.

    Inner steps go on from where those of the outer step before led, or begin anew, as `begin` says.

    outer_tolerance: norm of the hypergradient at which a seed is done; None: after `outer_steps`.
    evaluate_every: k; the trace has the metrics after 0, k, 2k, … outer steps, and after the last.
    prediction: where the hyperparameters follow a line instead of a hypergradient; None: nowhere.
    counts_hypergradients: whether hypergradients that were evaluated are counted in trace and summary, to compare with
        methods that have a prediction; with one they are counted in any case.
    """

    problem: Problem
    optimizer: Optimizer
    outer_steps: int
    outer_tolerance: float | None = None
    evaluate_every: int = 1
    prediction: LocallyLinear | None = None
    counts_hypergradients: bool = False

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        return greedy(self, method, name)

    @abstractmethod
    def start(self) -> tuple[Tensor, Tensor]:
        """First inner state (S, slots, P) and hyperparameters (S, H)."""

    @abstractmethod
    def outer_optimizer(self) -> OuterOptimizer:
        """What moves the hyperparameters, at its start."""

    @abstractmethod
    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """Inner batches and the outer batch of one outer step; depends on `step` and the seeds alone."""

    def begin(self, step: int, state: Tensor) -> Tensor:
        """The inner state (S, slots, P) from which an outer step starts: `state`, to which the one before led, unless a
        task begins anew here."""
        return state

    def project(self, hyper: Tensor) -> Tensor:
        """The nearest hyperparameters that are allowed, (S, H), after each update; all are unless a task says so."""
        return hyper

    def to_checkpoint(self) -> State:
        """What the task itself has gathered up to an outer step, for a checkpoint; nothing unless a task says so."""
        return None

    def from_checkpoint(self, state: State) -> None:
        """Go on from what `to_checkpoint` gave."""

    @abstractmethod
    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """Metrics for the trace, each (S,)."""

    @abstractmethod
    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """Final metrics, each (S,), from the last state and the trace.

        Item i of the trace has the metrics after i · `evaluate_every` outer steps, the last those after all.
        """

    def histograms(self, hyper: Tensor) -> list[Histogram]:
        """Distributions to keep of the last hyperparameters; none unless a task has some."""
        return []

    def points(self, state: Tensor, hyper: Tensor) -> list[Point]:
        """Samples and functions of the plane to keep, at the end; none unless a task has some."""
        return []

    def structures(self, hyper: Tensor) -> list[Structure]:
        """Cells that the last hyperparameters stand for; none unless a task has some."""
        return []


class HonestLoop(OuterLoop):
    """An experiment that solves the inner problem before each update of the hyperparameters, see `runs.honest`.

    solver: takes the steps to a solution, from the parameters of the one before; its own memory begins anew.
    most_steps: of the solver, for one solution.
    """

    solver: Until
    most_steps: int

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        return honest(self, method, name)

    @abstractmethod
    def inner_batch(self, step: int) -> Batch:
        """The batch on which the inner problem of an outer step is solved."""
