"""Long chains: how rounding and the starting point show in w_0 … w_T, and what the way back recovers of it.

Two slides of deck 001, "Проблемы" with its two figures of a true and a computed chain that converge or diverge, and
"Инвертирование динамики". Every step takes the same full batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel.data import Dataset
from bilevel.optimizers import LBFGS
from bilevel.problem import Batch, map_batch
from bilevel.progress import say
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.reversible_dynamics import fixed_point_distances, invert_float
from bilevel.settings import Settings
from bilevel.tasks.base import Task
from bilevel.tasks.chains.inversion import fixed_point_chain, forward_chain, invert_lbfgs
from bilevel.tasks.chains.inverted import Inverted
from bilevel.tasks.chains.problems import network, quadratic

CAP = 10.0
"""Relative distances are reported up to this: beyond it, nothing of the chain is left."""

LOST = 1e-3
POINTS = 100


class ChainsSettings(Settings):
    """Settings of a study of chains.

    problem: where the chains run, a small `network` or a `quadratic`, see `problems`.
    steps: T. disturbance, larger_disturbance: ‖δ‖ / ‖w_0‖ of the chains that start beside w_0.
    """

    problem: Literal["network", "quadratic"]
    steps: Annotated[int, Field(ge=4)] = 320
    disturbance: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    larger_disturbance: Annotated[float, Field(gt=0, lt=1)] = 1e-6


class Chains(Task):
    """Every method runs one chain, its way back and, to compare, chains that differ from it by a little.

    Trace, relative to ‖w_t‖:
        `distance`, by the number of steps back k: ‖w̃_t − w_t‖ at t = T − k, where w̃ is the chain recomputed backwards
            from the last state, in the method's arithmetic;
        `rounding`, by t: distance of this chain from the one in float64 (not for float64 itself);
        `sensitivity`, `sensitivity_larger`, by t: distance of a chain that starts at w_0 + δ (float64 only).
    Summary: `distance_start`, the distance at t = 0, the whole way back; `steps_held`, how many steps back until it
    exceeds 1e-3 first, T if never; `growth`, its factor per step back (least squares of its logarithm over the steps
    at which it is neither 0 nor above 1e-3; 1 where it is always 0); `rounding_largest`, over all t; `amplification`,
    the largest `sensitivity` over that at t = 0.
    """

    settings_class = ChainsSettings
    methods = ("inverted",)

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Draw the problem and the start of every seed."""
        assert isinstance(settings, ChainsSettings)
        self.settings = settings
        start = (network if settings.problem == "network" else quadratic)(study, seeds)
        self.problem, self.params = start.problem, start.params.to(device)
        self.batch: Batch = map_batch(lambda tensor: tensor.to(device), start.batch)
        self.hyper = self.params.new_zeros(len(seeds), 1)  # these problems have none
        directions = [torch.randn(self.params.shape[-1], generator=generator(study, "disturbance", s)) for s in seeds]
        unit = torch.nn.functional.normalize(torch.stack(directions).to(self.params), dim=-1)
        self.direction = unit * torch.linalg.vector_norm(self.params, dim=-1, keepdim=True)

    def run(self, method: Inverted, name: str) -> Result:
        """See `Task`."""
        begin = time.perf_counter()
        chain, last = self._chain(method, method.arithmetic)
        kept = self.checkpoint.kept
        found = {"distance": kept("way back", lambda _: self._inverted(method, chain, last)).flip(0)}
        if method.arithmetic == "float64":
            disturbed = kept("disturbed chains", lambda _: self._disturbed(method, chain))
            found["sensitivity"], found["sensitivity_larger"] = disturbed
        else:
            found["rounding"] = _relative(chain, self._chain(method, "float64")[0])
        alive = torch.isfinite(chain).all(-1).all(0).cpu()
        found = {metric: torch.where(alive, values.cpu(), math.nan) for metric, values in found.items()}
        say(f"{name}: {self.settings.steps} steps, {time.perf_counter() - begin:.1f} s")
        steps = sorted({round(index * self.settings.steps / POINTS) for index in range(POINTS + 1)})
        trace = {step: {metric: values[step] for metric, values in found.items()} for step in steps}
        return Result(alive, trace, _summary(found))

    def _chain(self, method: Inverted, arithmetic: str) -> tuple[Tensor, Tensor]:
        """The chain, (T + 1, S, P), and its last state."""
        kind = _kind(arithmetic)
        optimizer = method.make()
        run = fixed_point_chain if arithmetic == "fixed_point" else forward_chain
        start = optimizer.init(self.params.to(kind))
        return run(self.problem, optimizer, start, self.hyper.to(kind), self._batches(kind))

    def _inverted(self, method: Inverted, chain: Tensor, last: Tensor) -> Tensor:
        """Relative distances of the way back, (T + 1, S), in the chain's own arithmetic."""
        kind, optimizer = _kind(method.arithmetic), method.make()
        hyper, batches = self.hyper.to(kind), self._batches(kind)
        if isinstance(optimizer, LBFGS):
            return _relative(invert_lbfgs(self.problem, optimizer, last, hyper, batches), chain)
        invert = fixed_point_distances if method.arithmetic == "fixed_point" else invert_float
        distances = invert(self.problem, optimizer, optimizer.init(chain[0]), hyper, batches)
        return _capped(distances / torch.linalg.vector_norm(chain, dim=-1))

    def _disturbed(self, method: Inverted, chain: Tensor) -> tuple[Tensor, Tensor]:
        """Distances from the chains that start beside w_0; the two run as one, each seed twice."""
        sizes = (self.settings.disturbance, self.settings.larger_disturbance)
        optimizer, hyper = method.make(), self.hyper.repeat(2, 1)
        start = optimizer.init(torch.cat([self.params + size * self.direction for size in sizes]))
        batch = map_batch(lambda tensor: torch.cat([tensor, tensor]), self.batch)
        both, _ = forward_chain(self.problem, optimizer, start, hyper, [batch] * self.settings.steps)
        small, larger = both.chunk(2, dim=1)
        return _relative(small, chain), _relative(larger, chain)

    def _batches(self, kind: torch.dtype) -> list[Batch]:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(kind) if tensor.is_floating_point() else tensor

        return [map_batch(cast, self.batch)] * self.settings.steps


def _kind(arithmetic: str) -> torch.dtype:
    # gradients of the chain in fixed-point numbers are computed in float64
    return torch.float32 if arithmetic == "float32" else torch.float64


def _relative(chain: Tensor, true: Tensor) -> Tensor:
    """‖chain_t − true_t‖ / ‖true_t‖, (T + 1, S) in float64, of chains (T + 1, S, P)."""
    difference = chain.double() - true.double()
    return _capped(torch.linalg.vector_norm(difference, dim=-1) / torch.linalg.vector_norm(true.double(), dim=-1))


def _capped(distances: Tensor) -> Tensor:
    return distances.double().nan_to_num(CAP, CAP).clamp(max=CAP)


def _summary(found: dict[str, Tensor]) -> Metrics:
    back = found["distance"]
    summary = {"distance_start": back[-1], "steps_held": _steps_held(back), "growth": _growth(back)}
    if "sensitivity" in found:
        summary["amplification"] = found["sensitivity"].amax(0) / found["sensitivity"][0]
    if "rounding" in found:
        summary["rounding_largest"] = found["rounding"].amax(0)
    return summary


def _steps_held(back: Tensor) -> Tensor:
    """Steps back before the first at which the distance is above `LOST`, (S,)."""
    held = (back <= LOST).long().cumprod(0).sum(0) - 1
    return torch.where(back.isnan().any(0), math.nan, held.double())


def _growth(back: Tensor) -> Tensor:
    """Factor per step back: exp of the least-squares slope of log distance, (S,)."""
    return torch.stack([_factor(column) for column in back.unbind(-1)])


def _factor(distances: Tensor) -> Tensor:
    if bool((distances == 0).all()):
        return torch.ones((), dtype=torch.float64)
    chosen = (distances > 0) & (distances < LOST)
    if int(chosen.sum()) < 2:
        return torch.full((), math.nan, dtype=torch.float64)
    steps = torch.arange(len(distances), dtype=torch.float64)[chosen]
    logs = distances[chosen].log()
    centered = steps - steps.mean()
    return ((centered * logs).sum() / centered.square().sum()).exp()


TASK = Chains
