"""Experiments that optimize hyperparameters, and the outer loops that run them, with their trace: the greedy and the
honest algorithm of deck 001."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bilevel.checkpoint import State
from bilevel.cost import Cost
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.base import advance
from bilevel.hypergradients.none import NoHypergradient
from bilevel.optimizers import Optimizer, Until
from bilevel.problem import Batch, Problem
from bilevel.progress import Progress
from bilevel.results import Histogram, Metrics, Point, Result, Structure
from bilevel.tasks.base import Task
from bilevel.trajectory import LocallyLinear, Prediction


class OuterOptimizer(Protocol):
    """What moves hyperparameters, such as `outer.Adam`; every entry by itself, so that seeds do not mix."""

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """The next hyperparameters (S, H), a new tensor."""

    def state(self) -> State:
        """What `restore` takes, for a checkpoint."""

    def restore(self, state: State) -> None:
        """Go on from `state`."""


class OuterLoop(Task):
    """An experiment that optimizes hyperparameters: differentiated inner steps and updates in turn, see `greedy`.

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
    """An experiment that solves the inner problem before each update of the hyperparameters, see `honest`.

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


class Approach(NamedTuple):
    """What comes before an estimate: the state from which it starts, what that cost, and metrics of it, each (S,)."""

    state: Tensor
    cost: Cost
    metrics: Metrics


def greedy(task: OuterLoop, method: Hypergradient, name: str = "run") -> Result:
    """Differentiate some inner steps, update the hyperparameters, go on from where the steps led, or from where
    `task.begin` says.

    That `task.outer_steps` times. A seed in which a number stops being finite is marked and no longer updated; the
    others go on. With `task.outer_tolerance` a seed is done when its hypergradient is no longer than that; neither its
    parameters nor its hyperparameters move any more, and its trace ends. The trace has the metrics after k outer steps
    at k, for k = 0, `task.evaluate_every`, twice that, …, and the last.

    With `task.prediction` the hyperparameters follow a line in some of the outer steps (`trajectory.LocallyLinear`);
    inner steps are made there without being differentiated, and no seed is done there. What `task.project` makes of
    updated hyperparameters takes their place, after every update, before anything is recorded.

    Trace: the task's own metrics, `outer_loss`, `jvps_total`; with a tolerance `hypergradient_norm`, empty where it was
    predicted. Where hypergradients are counted (`OuterLoop`), `hypergradients_total`, and after the first steps
    `predicted`, the share of predicted steps since the row before: 0 or 1 where one mini-epoch never begins within the
    steps of a row. Summary: the task's own, counts a step; with a tolerance `outer_steps_done`; where they are counted
    `hypergradients`, the number of outer steps whose hypergradient was evaluated, 0 for the method `none`.

    Source: deck 001, "Алгоритм оптимизации гиперпараметров" (greedy algorithm).
    """
    return _Loop(task, method, name, lambda step, state, hyper: Approach(task.begin(step, state), Cost(), {})).run()


def honest(task: HonestLoop, method: Hypergradient, name: str = "run") -> Result:
    """Solve the inner problem, differentiate there, update the hyperparameters; `task.outer_steps` times at most.

    As `greedy`, but that every estimate starts at a solution: the parameters at which `task.solver` stops from those of
    the outer step before (a warm start), or after `task.most_steps` steps. The method then sees the inner batches of
    `task.draw`; an implicit one differentiates at the end of these.

    Trace, besides: `inner_steps` of the solver, `solved` (1 where it stopped by itself), `start_norm`, the norm of the
    inner gradient at the warm start. Summary, besides: `inner_steps` in all, `unsolved`, the outer steps that began at
    a point that is no solution.

    Source: deck 001, "Неявное дифференцирование" (honest algorithm).
    """
    loop = _Loop(task, method, name, lambda step, state, hyper: solve(task, state, hyper, step))
    result = loop.run()
    own = {"inner_steps": loop.totals["inner_steps"], "unsolved": loop.taken - loop.totals["solved"]}
    return replace(result, summary={**result.summary, **blank(own, result.alive)})


def solve(task: HonestLoop, state: Tensor, hyper: Tensor, step: int) -> Approach:
    """The inner problem of an outer step, solved from the parameters of `state` on."""
    derivatives, batch = Derivatives(task.problem, hyper), task.inner_batch(step)
    params = task.optimizer.params(state)
    start_norm = derivatives.inner_gradient(params, batch).norm(dim=-1)
    working = task.solver.init(params)
    for _ in range(task.most_steps):
        task.solver.advance_(derivatives, working, batch)
        if bool(task.solver.stopped(working).all()):
            break
    metrics = {
        "inner_steps": task.solver.steps_done(working).cpu().double(),
        "solved": task.solver.stopped(working).cpu().double(),
        "start_norm": start_norm.cpu().double(),
    }
    return Approach(task.optimizer.init(task.solver.params(working)), derivatives.cost, metrics)


class _Step(NamedTuple):
    """An outer step, before any seed has moved.

    state: after the inner steps, (S, slots, P).
    change: the hypergradient, or what is predicted in its place: a hypergradient or hyperparameters, (S, H).
    outer_loss: (S,); None in a predicted step that leaves no trace.
    """

    state: Tensor
    change: Tensor
    outer_loss: Tensor | None
    predicted: bool


class _Loop:
    """One run of either algorithm.

    taken: outer steps of each seed, (S,); totals: sums over these of the metrics that come with an `Approach`.
    """

    def __init__(
        self, task: OuterLoop, method: Hypergradient, name: str, approach: Callable[[int, Tensor, Tensor], Approach]
    ) -> None:
        self._task, self._method, self._name, self._approach = task, method, name, approach
        self._checkpoint = task.checkpoint.part("loop")
        self._outer = task.outer_optimizer()
        self._prediction = None if task.prediction is None else Prediction(task.prediction)
        self._counts = task.counts_hypergradients or task.prediction is not None
        if self._checkpoint.found is None:
            self._begin()
        else:
            self._restore(self._checkpoint.found)

    def _begin(self) -> None:
        self._steps_done = 0
        self._state, self._hyper = self._task.start()
        self._alive = torch.ones(self._hyper.shape[0], dtype=torch.bool)
        self._going, self._shown = self._alive, self._alive  # shown: going at some step since the last row of the trace
        self._cost, self._predicted_steps = Cost(), 0
        self._done, self._evaluated = _constant(self._alive, 0), _constant(self._alive, 0)
        self._latest: Metrics = {}
        self._trace: dict[int, Metrics] = {}
        self.taken, self.totals = _constant(self._alive, 0), dict[str, Tensor]()
        self._evaluate(0, 0)

    def _kept(self) -> State:
        """Everything that changes from one outer step to the next."""
        return {
            "steps_done": self._steps_done,
            "state": self._state,
            "hyper": self._hyper,
            "outer": self._outer.state(),
            "prediction": None if self._prediction is None else self._prediction.state(),
            "alive": self._alive,
            "going": self._going,
            "shown": self._shown,
            "cost": vars(self._cost),
            "predicted_steps": self._predicted_steps,
            "done": self._done,
            "evaluated": self._evaluated,
            "latest": self._latest,
            "trace": self._trace,
            "taken": self.taken,
            "totals": self.totals,
            "task": self._task.to_checkpoint(),
        }

    def _restore(self, kept: State) -> None:
        self._steps_done, self._state, self._hyper = kept["steps_done"], kept["state"], kept["hyper"]
        self._outer.restore(kept["outer"])
        if self._prediction is not None:
            self._prediction.restore(kept["prediction"])
        self._alive, self._going, self._shown = kept["alive"], kept["going"], kept["shown"]
        self._cost, self._predicted_steps = Cost(**kept["cost"]), kept["predicted_steps"]
        self._done, self._evaluated = kept["done"], kept["evaluated"]
        self._latest, self._trace = kept["latest"], kept["trace"]
        self.taken, self.totals = kept["taken"], kept["totals"]
        self._task.from_checkpoint(kept["task"])

    def run(self) -> Result:
        """All outer steps, or as many as it takes for every seed to be done."""
        steps, every = self._task.outer_steps, self._task.evaluate_every
        progress = Progress(self._name, "outer step", self._steps_done)
        while self._steps_done < steps and bool(self._going.any()):
            step, self._steps_done = self._steps_done, self._steps_done + 1
            due = (step + 1) % every == 0 or step + 1 == steps
            self._take(step, due)
            ended = step + 1 == steps or not bool(self._going.any())
            if due or ended:
                self._evaluate(step + 1, step + 1 - max(self._trace))
            progress.report(step + 1, steps, self._note, ended=ended)
            self._checkpoint.keep(self._kept())
        return self._result()

    def _take(self, step: int, due: bool) -> None:
        """One outer step of all seeds that still go on."""
        before = self._approach(step, self._state, self._hyper)
        batches, outer_batch = self._task.draw(step)
        found = self._find(step, before.state, batches, outer_batch, due)
        self._cost = self._cost + before.cost
        if not _all_finite(found):
            self._alive = self._alive & (_finite(found) | ~self._going)
        moves, own = self._going & self._alive, dict(before.metrics)
        if found.outer_loss is not None:
            own["outer_loss"] = found.outer_loss
        if self._task.outer_tolerance is not None:
            length = _constant(moves, math.nan) if found.predicted else found.change.norm(dim=-1).cpu().double()
            own["hypergradient_norm"] = length
            moves = moves & ((length > self._task.outer_tolerance) | found.predicted)
            self._done = self._done + moves
        self._count(before, found)
        self._keep(own)
        self._hyper = _chosen(moves, self._update(step, found), self._hyper)
        self._state = _chosen(self._going, found.state, self._state)
        self._going = moves

    def _find(self, step: int, state: Tensor, batches: Sequence[Batch], outer_batch: Batch, due: bool) -> _Step:
        task = self._task
        if self._prediction is None or self._prediction.optimizes(step):
            estimate = self._method(task.problem, task.optimizer, state, self._hyper, batches, outer_batch)
            self._cost = self._cost + estimate.cost
            return _Step(estimate.state, estimate.hypergradient, estimate.outer_loss, predicted=False)
        derivatives = Derivatives(task.problem, self._hyper)
        state = advance(derivatives, task.optimizer, state, batches, len(batches))
        self._cost = self._cost + derivatives.cost
        loss = derivatives.outer_loss(task.optimizer.params(state), outer_batch) if due else None
        return _Step(state, self._prediction.predict(step), loss, predicted=True)

    def _update(self, step: int, found: _Step) -> Tensor:
        """Hyperparameters to which the step leads, for the seeds that go on; of the others they mean nothing."""
        sets_values = self._prediction is not None and self._prediction.settings.of == "values"
        following = found.change if found.predicted and sets_values else self._outer.step(self._hyper, found.change)
        following = self._task.project(following)
        if self._prediction is not None and not found.predicted:
            self._prediction.record(step, following if sets_values else found.change)
        return following

    def _count(self, before: Approach, found: _Step) -> None:
        shown = self._alive & self._going
        self._predicted_steps += found.predicted
        if self._counts and not found.predicted and not isinstance(self._method, NoHypergradient):
            self._evaluated = self._evaluated + self._going
        if before.metrics:
            self.taken = self.taken + shown
        for metric, values in before.metrics.items():
            self.totals[metric] = self.totals.get(metric, 0) + torch.where(shown, values, 0.0)

    def _keep(self, metrics: Metrics) -> None:
        """Of the seeds that go on; of the others what was kept of their last step."""
        if not bool(self._going.all()):
            metrics = {
                metric: torch.where(self._going.to(values.device), values, self._latest.get(metric, values))
                for metric, values in metrics.items()
            }
        self._latest = {**self._latest, **metrics}

    def _evaluate(self, step: int, since: int) -> None:
        """A row of the trace, `since` outer steps after the one before."""
        latest = {metric: values.cpu().double() for metric, values in self._latest.items()}
        metrics = {**self._task.evaluate(self._state, self._hyper), **latest}
        metrics["jvps_total"] = _constant(self._alive, self._cost.jvps)
        if self._counts:
            metrics["hypergradients_total"] = self._evaluated
            if since:
                metrics["predicted"] = _constant(self._alive, self._predicted_steps / since)
        self._trace[step] = blank(metrics, self._alive & self._shown) if since else metrics
        self._shown, self._predicted_steps = self._going, 0

    def _note(self) -> str:
        """What progress says besides: the last outer loss, a mean over seeds, and of seeds that no longer go on."""
        alive, loss = self._alive, self._latest.get("outer_loss")
        counts = {"diverged": int((~alive).sum()), "done": int((alive & ~self._going).sum())}
        said = "" if loss is None or not bool(alive.any()) else f", outer_loss {float(loss.cpu()[alive].mean()):.4g}"
        return said + "".join(f", {count} of {len(alive)} seeds {word}" for word, count in counts.items() if count)

    def _result(self) -> Result:
        task, alive, steps = self._task, self._alive, max(self._trace)
        own = task.summarize(self._state, self._hyper, list(self._trace.values()))
        summary = {**blank(own, alive), **cost_scalars(self._cost, steps, alive)}
        if self._counts:
            summary |= blank({"hypergradients": self._evaluated}, alive)
        if task.outer_tolerance is not None:
            summary["outer_steps_done"] = self._done
        histograms, points = task.histograms(self._hyper), task.points(self._state, self._hyper)
        structures = task.structures(self._hyper)
        return Result(alive, self._trace, summary, histograms, points=points, structures=structures)


def _parts(found: _Step) -> list[Tensor]:
    parts = [found.state.flatten(1), found.change]
    return parts if found.outer_loss is None else [*parts, found.outer_loss.unsqueeze(-1)]


def _all_finite(found: _Step) -> bool:
    """Whether a sum of everything is finite; if so, everything is. Cheaper than to look at each seed."""
    return math.isfinite(sum(part.sum() for part in _parts(found)))


def _finite(found: _Step) -> Tensor:
    return torch.stack([torch.isfinite(part).all(-1) for part in _parts(found)]).all(0).cpu()


def _chosen(seeds: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for these seeds, (S,), and `old` for the others."""
    if bool(seeds.all()):
        return new
    return torch.where(seeds.to(new.device).view(-1, *[1] * (new.dim() - 1)), new, old)


def blank(metrics: Metrics, alive: Tensor) -> dict[str, Tensor]:
    """Metrics (S,) without those of the seeds that diverged."""
    return {name: torch.where(alive, values, torch.nan) for name, values in metrics.items()}


def _constant(like: Tensor, value: float) -> Tensor:
    return torch.full(like.shape, float(value), dtype=torch.float64)


def cost_scalars(cost: Cost, outer_steps: int, alive: Tensor) -> dict[str, Tensor]:
    """Counts per outer step; the peak and the bits are those of the largest step."""
    whole = {"peak_states", "bits"}
    counts = {field.name: getattr(cost, field.name) for field in fields(Cost) if field.name != "seconds"}
    counts["jvps"] = cost.jvps
    return {name: _constant(alive, count if name in whole else count / outer_steps) for name, count in counts.items()}
