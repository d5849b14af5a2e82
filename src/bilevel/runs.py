"""Outer loops over hyperparameter updates, with their trace: the greedy and the honest algorithm of deck 001."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Estimate, Hypergradient
from bilevel.results import Metrics, Result

if TYPE_CHECKING:
    from bilevel.tasks.base import HonestLoop, OuterLoop


class Approach(NamedTuple):
    """What comes before an estimate: the state from which it starts, what that cost, and metrics of it, each (S,)."""

    state: Tensor
    cost: Cost
    metrics: Metrics


def greedy(task: OuterLoop, method: Hypergradient, name: str = "run") -> Result:
    """Differentiate some inner steps, update the hyperparameters, go on from where the steps led.

    That `task.outer_steps` times. A seed in which a number stops being finite is marked and no longer updated; the
    others go on. With `task.outer_tolerance` a seed is done when its hypergradient is no longer than that; neither its
    parameters nor its hyperparameters move any more, and its trace ends. The trace has the metrics after k outer steps
    at k.

    Summary: besides the task's own, counts a step; with a tolerance `outer_steps_done` and `hypergradient_norm`.

    Source: deck 001, "Алгоритм оптимизации гиперпараметров" (greedy algorithm).
    """
    return _alternate(task, method, name, lambda step, state, hyper: Approach(state, Cost(), {}))


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
    result = _alternate(task, method, name, lambda step, state, hyper: solve(task, state, hyper, step))
    rows = [metrics for metrics in result.trace.values() if "inner_steps" in metrics]
    steps = torch.stack([metrics["inner_steps"] for metrics in rows])
    solved = torch.stack([metrics["solved"] for metrics in rows])
    own = {"inner_steps": steps.nansum(0), "unsolved": (solved == 0).sum(0).double()}
    return replace(result, summary={**result.summary, **_blank(own, result.alive)})


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


def _alternate(
    task: OuterLoop, method: Hypergradient, name: str, approach: Callable[[int, Tensor, Tensor], Approach]
) -> Result:
    state, hyper = task.start()
    outer = task.outer_optimizer()
    alive = torch.ones(hyper.shape[0], dtype=torch.bool)
    going, done = alive.clone(), torch.zeros(hyper.shape[0], dtype=torch.float64)
    cost = Cost()
    trace: list[Metrics] = [{**task.evaluate(state, hyper), "jvps_total": _constant(alive, 0)}]
    start = time.perf_counter()
    for step in range(task.outer_steps):
        before = approach(step, state, hyper)
        estimate = method(task.problem, task.optimizer, before.state, hyper, *task.draw(step))
        cost = cost + before.cost + estimate.cost
        alive = alive & (_finite(estimate) | ~going)
        length = estimate.hypergradient.norm(dim=-1).cpu().double()
        moves = going & alive
        if task.outer_tolerance is not None:
            moves = moves & (length > task.outer_tolerance)
        following = outer.step(hyper, torch.where(_row(moves, hyper), estimate.hypergradient, 0.0))
        hyper = torch.where(_row(moves, hyper), following, hyper)
        state = torch.where(_row(going, state).unsqueeze(-1), estimate.state, state)
        done = done + moves
        metrics = {**task.evaluate(state, hyper), **before.metrics, "outer_loss": estimate.outer_loss.cpu().double()}
        if task.outer_tolerance is not None:
            metrics["hypergradient_norm"] = length
        trace.append(_blank({**metrics, "jvps_total": _constant(alive, cost.jvps)}, alive & going))
        going = moves
        _report(name, step + 1, task.outer_steps, time.perf_counter() - start, alive, going)
        if not bool(going.any()):
            break
    summary = {**_blank(task.summarize(state, hyper, trace), alive), **_cost_scalars(cost, len(trace) - 1, alive)}
    if task.outer_tolerance is not None:
        summary["outer_steps_done"] = done
    return Result(alive, dict(enumerate(trace)), summary, task.histograms(hyper), points=task.points(state, hyper))


def _finite(estimate: Estimate) -> Tensor:
    parts = (estimate.state.flatten(1), estimate.hypergradient, estimate.outer_loss.unsqueeze(-1))
    return torch.stack([torch.isfinite(part).all(-1) for part in parts]).all(0).cpu()


def _row(chosen: Tensor, like: Tensor) -> Tensor:
    """(S,) as (S, 1), where `like` is."""
    return chosen.to(like.device).unsqueeze(-1)


def _blank(metrics: Metrics, alive: Tensor) -> dict[str, Tensor]:
    return {name: torch.where(alive, values, torch.nan) for name, values in metrics.items()}


def _constant(like: Tensor, value: float) -> Tensor:
    return torch.full(like.shape, float(value), dtype=torch.float64)


def _cost_scalars(cost: Cost, outer_steps: int, alive: Tensor) -> dict[str, Tensor]:
    """Counts per outer step; the peak and the bits are those of the largest step."""
    whole = {"peak_states", "bits"}
    counts = {field.name: getattr(cost, field.name) for field in fields(Cost) if field.name != "seconds"}
    counts["jvps"] = cost.jvps
    return {name: _constant(alive, count if name in whole else count / outer_steps) for name, count in counts.items()}


def _report(name: str, step: int, steps: int, seconds: float, alive: Tensor, going: Tensor) -> None:
    diverged, done = int((~alive).sum()), int((alive & ~going).sum())
    note = "".join(
        f", {count} of {len(alive)} seeds {word}" for count, word in ((diverged, "diverged"), (done, "done")) if count
    )
    left = seconds / step * (steps - step)
    print(
        f"{name}: outer step {step}/{steps}, {seconds:.1f} s, {left:.1f} s left{note}",
        file=sys.stderr,
        flush=True,
    )
