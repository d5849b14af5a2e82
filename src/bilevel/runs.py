"""The outer loop over hyperparameter updates, with its trace."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.hypergradients import Estimate, Hypergradient
from bilevel.results import Result

if TYPE_CHECKING:
    from bilevel.tasks.base import OuterLoop


def optimize(task: OuterLoop, method: Hypergradient, name: str = "run") -> Result:
    """Alternate inner optimization with hyperparameter updates, `task.outer_steps` times.

    A seed in which a number stops being finite is marked and no longer updated; the others go on. The trace has the
    metrics after k outer steps at k.
    """
    state, hyper = task.start()
    outer = task.outer_optimizer()
    alive = torch.ones(hyper.shape[0], dtype=torch.bool)
    cost = Cost()
    trace = [{**task.evaluate(state, hyper), "jvps_total": _constant(alive, 0)}]
    start = time.perf_counter()
    for step in range(task.outer_steps):
        estimate = method(task.problem, task.optimizer, state, hyper, *task.draw(step))
        state, cost = estimate.state, cost + estimate.cost
        alive = alive & _finite(estimate)
        moves = alive.to(hyper.device).unsqueeze(-1)
        hyper = outer.step(hyper, torch.where(moves, estimate.hypergradient, 0.0))
        metrics = {**task.evaluate(state, hyper), "outer_loss": estimate.outer_loss.cpu().double()}
        trace.append({**_blank(metrics, alive), "jvps_total": _constant(alive, cost.jvps)})
        _report(name, step + 1, task.outer_steps, time.perf_counter() - start, alive)
    summary = {**_blank(task.summarize(state, hyper, trace), alive), **_cost_scalars(cost, task.outer_steps, alive)}
    return Result(alive, dict(enumerate(trace)), summary, task.histograms(hyper))


def _finite(estimate: Estimate) -> Tensor:
    parts = (estimate.state.flatten(1), estimate.hypergradient, estimate.outer_loss.unsqueeze(-1))
    return torch.stack([torch.isfinite(part).all(-1) for part in parts]).all(0).cpu()


def _blank(metrics: dict[str, Tensor], alive: Tensor) -> dict[str, Tensor]:
    return {name: torch.where(alive, values, torch.nan) for name, values in metrics.items()}


def _constant(like: Tensor, value: float) -> Tensor:
    return torch.full(like.shape, float(value), dtype=torch.float64)


def _cost_scalars(cost: Cost, outer_steps: int, alive: Tensor) -> dict[str, Tensor]:
    """Counts per outer step; the peak and the bits are those of the largest step."""
    whole = {"peak_states", "bits"}
    counts = {field.name: getattr(cost, field.name) for field in fields(Cost) if field.name != "seconds"}
    counts["jvps"] = cost.jvps
    return {name: _constant(alive, count if name in whole else count / outer_steps) for name, count in counts.items()}


def _report(name: str, step: int, steps: int, seconds: float, alive: Tensor) -> None:
    diverged = int((~alive).sum())
    note = f", {diverged} of {len(alive)} seeds diverged" if diverged else ""
    left = seconds / step * (steps - step)
    print(
        f"{name}: outer step {step}/{steps}, {seconds:.1f} s, {left:.1f} s left{note}",
        file=sys.stderr,
        flush=True,
    )
