"""Deck 000's theorem: the error of hypergradient estimates on problems that meet its assumptions, against its bound."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import softplus

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Estimate, Hypergradient
from bilevel.hypergradients.aggregated import Aggregated
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import SGD
from bilevel.problem import Batch, Problem
from bilevel.progress import say
from bilevel.randomness import generator
from bilevel.results import Result
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.base import Task

ROUNDING = 1e-12
"""Errors below this part of the hypergradient, and hypergradients below it, are rounding."""

NEWTON_STEPS = 100

Places = dict[int, dict[str, Tensor]]
"""Step -> metric -> (S,), along one axis."""


class BiasSettings(Settings):
    """problem: `quadratic` or `logistic`, see `Quadratic` and `Logistic`.
    steps: numbers T of inner steps at which the error is measured, at fixed λ.
    outer_steps: numbers of outer steps after which it is measured, each of `inner_steps` inner steps; 0: at the start.
    inner_steps: of one outer step.
    outer_rate: step size of λ for L = 1 (it is divided by L).
    smoothness: L. strong_convexity: μ as a part of L. step: η as a part of 1/L.
    size: parameters, and hyperparameters. samples: training samples, and validation samples (`logistic`).
    """

    problem: Literal["quadratic", "logistic"]
    steps: list[Count] = Field(default=[1, 2, 5, 10, 20, 40, 60, 80], min_length=3)
    outer_steps: list[Annotated[int, Field(ge=0)]] = Field(default=list(range(0, 101, 10)), min_length=3)
    inner_steps: Count = 5
    outer_rate: Positive = 0.5
    smoothness: Positive = 1.0
    strong_convexity: Annotated[float, Field(gt=0, lt=1)] = 0.375
    step: Annotated[float, Field(gt=0, le=1)] = 0.8
    size: Count = 10
    samples: Count = 40

    @field_validator("steps", "outer_steps")
    @classmethod
    def _increasing(cls, steps: list[int]) -> list[int]:
        if sorted(set(steps)) != steps:
            raise ValueError(f"expected increasing numbers, got {steps}")
        return steps


@dataclass(frozen=True)
class Constants:
    """What the assumptions of the theorem name, each (S,), true for the data at hand.

    smoothness L, strong_convexity μ: of L₁(·, λ) and of L₂(·, λ), both.
    hessian_lipschitz H_w: Lipschitz constant of ∂²L₁/∂w∂w. mixed B: largest norm of ∂²L₁/∂λ∂w.
    """

    smoothness: Tensor
    strong_convexity: Tensor
    hessian_lipschitz: Tensor
    mixed: Tensor


class Instance(ABC):
    """A problem with data of its own for every seed; all batches are the whole data."""

    problem: Problem
    inner_batch: Batch
    outer_batch: Batch
    constants: Constants


class Quadratic(Instance):
    """L₁ = ½ (w − λ)ᵀ G (w − λ), L₂ = ½ (w − c)ᵀ Q (w − c).

    G and Q have random eigenvectors and the eigenvalues μ, …, L, equally far apart in logarithm; c is normal.
    ∂²L₁/∂λ∂w = −G, so that B = ‖G‖, κ = μ² and M_b = 0; the Hessian is constant, H_w = 0.
    """

    def __init__(self, settings: BiasSettings, seeds: Sequence[int]) -> None:
        inner, outer, target = [], [], []
        for seed in seeds:
            draw = generator(f"bias {settings.problem}", "problem", seed)
            inner.append(_matrix(settings, draw))
            outer.append(_matrix(settings, draw))
            target.append(torch.randn(settings.size, generator=draw, dtype=torch.float64))
        curvature, outer_curvature = torch.stack(inner), torch.stack(outer)
        self.problem = Problem(self._inner, self._outer)
        self.inner_batch, self.outer_batch = curvature, (outer_curvature, torch.stack(target))
        spectra = torch.stack([torch.linalg.eigvalsh(matrix) for matrix in (curvature, outer_curvature)])
        largest, smallest = spectra.amax((0, 2)), spectra.amin((0, 2))
        self.constants = Constants(largest, smallest, torch.zeros_like(largest), spectra[0].amax(-1))

    @staticmethod
    def _inner(params: Tensor, hyper: Tensor, batch: Tensor) -> Tensor:
        away = params - hyper
        return 0.5 * away @ batch @ away

    @staticmethod
    def _outer(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        away = params - batch[1]
        return 0.5 * away @ batch[0] @ away


class Logistic(Instance):
    """L₁ = mean log-loss of a linear classifier + ρ/2 ‖w − λ‖², L₂ = validation log-loss + ρ/2 ‖w‖², ρ = μ.

    Features are normal, labels ±1 those of a random classifier with noise, validation samples from the same source;
    the features are scaled so that ‖X‖² / 4n, the most that the log-loss is curved, is L − ρ on the side where it is
    larger.
    ∂²L₁/∂λ∂w = −ρ I, so that B = ρ, κ = ρ² and M_b = 0. H_w: |σ''| ≤ 1/(6√3), times a bound on
    sup over unit vectors of mean |x·u|³, the smaller one of mean ‖x‖³ and max ‖x‖ · ‖X‖² / n.
    """

    def __init__(self, settings: BiasSettings, seeds: Sequence[int]) -> None:
        self._decay = settings.strong_convexity * settings.smoothness
        samples = [self._draw(settings, generator(f"bias {settings.problem}", "problem", seed)) for seed in seeds]
        train, validation = (torch.stack(part) for part in zip(*samples, strict=True))
        self.problem = Problem(self._inner, self._outer)
        self.inner_batch, self.outer_batch = train, validation
        curvature = torch.maximum(_curvature(train), _curvature(validation))
        decay = torch.full_like(curvature, self._decay)
        self.constants = Constants(curvature + decay, decay, _third_moment(train) / (6 * math.sqrt(3)), decay)

    def _draw(self, settings: BiasSettings, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features times labels of both sides, each (n, P): the loss depends on these alone."""
        shape = (2, settings.samples, settings.size)
        features = torch.randn(shape, generator=draw, dtype=torch.float64)
        direction = torch.randn(settings.size, generator=draw, dtype=torch.float64)
        noise = torch.randn(shape[:2], generator=draw, dtype=torch.float64)
        labels = torch.where(features @ direction + noise > 0, 1.0, -1.0)
        largest = _curvature(features).max()
        scaled = features * labels.unsqueeze(-1) * ((settings.smoothness - self._decay) / largest).sqrt()
        return scaled[0], scaled[1]

    def _inner(self, params: Tensor, hyper: Tensor, batch: Tensor) -> Tensor:
        return softplus(-(batch @ params)).mean() + 0.5 * self._decay * (params - hyper).square().sum()

    def _outer(self, params: Tensor, hyper: Tensor, batch: Tensor) -> Tensor:
        return softplus(-(batch @ params)).mean() + 0.5 * self._decay * params.square().sum()


INSTANCES = {"quadratic": Quadratic, "logistic": Logistic}


class Bias(Task):
    """Measures ‖ĝ − g‖ of a method against the exact hypergradient g of the T steps that were taken.

    The inner optimizer is gradient descent with η ≤ 1/L; λ starts at zero and w_0 is normal. Draws
    depend on problem and seed, so that studies with other settings see the same ones. Two axes share the trace:

    - step T: at fixed λ, after T inner steps from w_0: `error`, `exact` (‖g‖), `relative_error` (one over the other)
      and, for `aggregated`, the slide's `bound`;
    - step k: λ descends along the method's own estimates, w goes on from where it is. After k such outer steps, with
      T fixed: `outer_error`, `outer_exact`, `outer_relative_error` (empty once g is rounding), `outer_bound`.

    Summary, with `outer_` before it for the second axis:

    - error_last: the last error, as a part of ‖g‖ at the last T, or at the start of the outer optimization;
    - relative_error_last: the last error as a part of ‖g‖ at the same moment, where that is above rounding;
    - error_floor: what the error, as a part of the same ‖g‖ as `error_last`, has settled at: it changes by less than
      1 % over the last three places; NaN where it has not;
    - rate: the factor by which the error falls a step, fitted to the later half of the places, where it is neither
      rounding nor constant; NaN for fewer than three;
    - bound_violations: at how many places the error is above the bound, for `aggregated` only.
    """

    settings_class: ClassVar[type[Settings]] = BiasSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        assert isinstance(settings, BiasSettings)
        self._settings = settings
        self._instance: Instance = INSTANCES[settings.problem](settings, seeds)
        self._rate = settings.step / settings.smoothness
        self._optimizer = SGD(learning_rate=self._rate)
        draws = [generator(f"bias {settings.problem}", "initialization", seed) for seed in seeds]
        start = torch.stack([torch.randn(settings.size, generator=draw, dtype=torch.float64) for draw in draws])
        self._start, self._hyper = self._optimizer.init(start), torch.zeros_like(start)

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        inner: Places = self.checkpoint.kept("along inner steps", lambda _: self._along_inner(method, name))
        outer: Places = self.checkpoint.kept("along outer steps", lambda _: self._along_outer(method, name))
        named = {step: {f"outer_{metric}": values for metric, values in outer[step].items()} for step in outer}
        trace = {step: {**inner.get(step, {}), **named.get(step, {})} for step in sorted({*inner, *outer})}
        summary, ahead = summarize(inner, inner[max(inner)]["exact"]), summarize(outer, outer[min(outer)]["exact"])
        alive = torch.isfinite(inner[max(inner)]["error"] + outer[max(outer)]["error"])
        return Result(alive, trace, {**summary, **{f"outer_{metric}": values for metric, values in ahead.items()}})

    def _along_inner(self, method: Hypergradient, name: str) -> Places:
        places = {}
        for steps in self._settings.steps:
            estimate = self._estimate(method, self._start, self._hyper, steps)
            places[steps] = self._measure(method, self._start, self._hyper, estimate, steps)
            _report(name, "T", steps, self._settings.steps[-1])
        return places

    def _along_outer(self, method: Hypergradient, name: str) -> Places:
        state, hyper, places = self._start, self._hyper, {}
        rate = self._settings.outer_rate / self._settings.smoothness
        count, last = self._settings.inner_steps, self._settings.outer_steps[-1]
        for step in range(last + 1):
            estimate = self._estimate(method, state, hyper, count)
            if step in self._settings.outer_steps:
                places[step] = self._measure(method, state, hyper, estimate, count)
                _report(name, "outer step", step, last)
            state, hyper = estimate.state, hyper - rate * estimate.hypergradient
        least = ROUNDING * places[min(places)]["exact"]
        for metrics in places.values():
            metrics["relative_error"] = torch.where(metrics["exact"] > least, metrics["relative_error"], torch.nan)
        return places

    def _estimate(self, method: Hypergradient, state: Tensor, hyper: Tensor, steps: int) -> Estimate:
        batches = [self._instance.inner_batch] * steps
        return method(self._instance.problem, self._optimizer, state, hyper, batches, self._instance.outer_batch)

    def _measure(
        self, method: Hypergradient, state: Tensor, hyper: Tensor, estimate: Estimate, steps: int
    ) -> dict[str, Tensor]:
        exact = self._estimate(Unrolled(), state, hyper, steps).hypergradient
        error, size = (estimate.hypergradient - exact).norm(dim=-1), exact.norm(dim=-1)
        metrics = {"error": error, "exact": size, "relative_error": error / size}
        if isinstance(method, Aggregated):
            derivatives = Derivatives(self._instance.problem, hyper)
            start, last = self._optimizer.params(state), self._optimizer.params(estimate.state)
            distance = (start - minimum(derivatives, last, self._instance.inner_batch)).norm(dim=-1)
            outer = derivatives.outer_gradient(last, self._instance.outer_batch).params.norm(dim=-1)
            metrics["bound"] = slide_bound(self._instance.constants, self._rate, steps, distance, outer)
        return metrics


def slide_bound(constants: Constants, rate: float, steps: int, distance: Tensor, outer_gradient: Tensor) -> Tensor:
    """The right-hand side of the theorem, (S,), as the slide prints it: with q = √(1 − ημ),

    2 L B ‖w_0 − w_*‖ q^T / (q⁻¹ − 1) + B ‖∂L₂(w_T, λ)/∂w‖ · [ (1/μ − 1/L + (1 − ημ)^T / L) / η
    + 2 η H_w ((T − 1) q^T − (q^(T−1) − q^(2T)) / (q⁻¹ − 1)) ].

    steps: T. distance: ‖w_0 − w_*‖, (S,). outer_gradient: ‖∂L₂(w_T, λ)/∂w‖, (S,).

    Source: Yakovlev, Bakhteev, Strijov 2023 (deck 000).
    """
    smooth, convex, mixed = constants.smoothness, constants.strong_convexity, constants.mixed
    root = (1 - rate * convex).sqrt()
    first = 2 * smooth * mixed * distance * root**steps / (1 / root - 1)
    curvature = (1 / convex - 1 / smooth + root ** (2 * steps) / smooth) / rate
    varying = (steps - 1) * root**steps - (root ** (steps - 1) - root ** (2 * steps)) / (1 / root - 1)
    return first + mixed * outer_gradient * (curvature + 2 * rate * constants.hessian_lipschitz * varying)


def minimum(derivatives: Derivatives, params: Tensor, batch: Batch) -> Tensor:
    """w_* = argmin L₁(·, λ), (S, P), by Newton's method from `params`, until a step is below 1e-12."""
    for _ in range(NEWTON_STEPS):
        inner = derivatives.linearize(params, batch)
        columns = []
        for unit in torch.eye(params.shape[-1], dtype=params.dtype):
            column = torch.zeros_like(params)
            inner.add_products(unit.expand_as(params).contiguous(), column, None)
            columns.append(column)
        step = torch.linalg.solve(torch.stack(columns, dim=-1), inner.gradient)
        params = params - step
        if float(step.abs().max()) < 1e-12:
            return params
    raise ValueError(f"Newton's method did not find the minimum of the inner loss in {NEWTON_STEPS} steps")


def summarize(places: Places, reference: Tensor) -> dict[str, Tensor]:
    """Summary of one axis, see `Bias`; errors as parts of `reference` (S,)."""
    parts = torch.stack([metrics["error"] for metrics in places.values()]) / reference
    columns: list[list[float]] = parts.T.tolist()
    relative: list[list[float]] = torch.stack([metrics["relative_error"] for metrics in places.values()]).T.tolist()
    defined = [[error for error in column if not math.isnan(error)] for column in relative]
    summary = {
        "error_last": parts[-1],
        "relative_error_last": _numbers([column[-1] if column else math.nan for column in defined]),
        "error_floor": _numbers([column[-1] if _settled(column[-3:]) else math.nan for column in columns]),
        "rate": _numbers([contraction(list(places), column) for column in columns]),
    }
    if all("bound" in metrics for metrics in places.values()):
        above = [metrics["error"] > metrics["bound"] * (1 + 1e-9) + ROUNDING * reference for metrics in places.values()]
        summary["bound_violations"] = torch.stack(above).sum(0).double()
    return summary


def contraction(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The factor by which errors fall a step: a line through their logarithms, over the later half of the places
    (three at least) at which they are above rounding; NaN for fewer, and where the last three are constant."""
    points = [(step, error) for step, error in zip(steps, errors, strict=True) if error > ROUNDING]
    tail = points[-max(3, len(points) // 2) :]
    if len(tail) < 3 or _settled([error for _, error in tail[-3:]]):
        return math.nan
    across = _numbers([float(step) for step, _ in tail])
    up = _numbers([math.log(error) for _, error in tail])
    centered = across - across.mean()
    return math.exp(float(centered @ up) / float(centered @ centered))


def _settled(errors: Sequence[float]) -> bool:
    return max(errors) <= max(1.01 * min(errors), ROUNDING)


def _numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _matrix(settings: BiasSettings, draw: torch.Generator) -> Tensor:
    factor = torch.randn(settings.size, settings.size, generator=draw, dtype=torch.float64)
    vectors = torch.linalg.qr(factor).Q
    low = math.log10(settings.strong_convexity)
    values = settings.smoothness * torch.logspace(low, 0, settings.size, dtype=torch.float64)
    product: Tensor = (vectors * values) @ vectors.T
    return (product + product.T) / 2


def _curvature(features: Tensor) -> Tensor:
    """‖X‖² / 4n of X (..., n, P): the largest eigenvalue of the Hessian of the mean log-loss, whatever the weights."""
    norm: Tensor = torch.linalg.matrix_norm(features, ord=2)
    return norm.square() / (4 * features.shape[-2])


def _third_moment(features: Tensor) -> Tensor:
    """A bound on sup over unit vectors v, u of mean |x·v| (x·u)², for X (S, n, P)."""
    lengths: Tensor = features.norm(dim=-1)
    return torch.minimum((lengths**3).mean(-1), lengths.amax(-1) * 4 * _curvature(features))


def _report(name: str, what: str, step: int, last: int) -> None:
    say(f"{name}: {what} {step}/{last}")


TASK = Bias
