"""What exact and approximate hypergradients take of time, memory and side information, against the number of steps T.

Deck 001, the slides on complexity: O(T) time and memory for back-propagation, O(T) time and O(T Σ log₂ 1/γ) bits for
inverted dynamics, O(T log₂ T) time and O(log₂ T) memory for the tree, O(1) memory for implicit differentiation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bilevel.checkpoint import Checkpoint, State
from bilevel.columns import WHOLE_RUN
from bilevel.cost import Cost
from bilevel.data import Dataset
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.conjugate_gradient import ConjugateGradientWarning
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import Momentum
from bilevel.parameters import Layout
from bilevel.penalties import L2
from bilevel.problem import Batch, Problem
from bilevel.progress import say
from bilevel.randomness import generator
from bilevel.results import Result
from bilevel.settings import Settings
from bilevel.tasks.base import Task
from bilevel.tasks.memory.measure import Measurement, measure

FEATURES, CLASSES, BATCH, BATCHES = 400, 10, 32, 20
Steps = Annotated[int, Field(ge=2)]
LAYOUT = Layout({"weight": (CLASSES, FEATURES), "bias": (CLASSES,)})


class MemorySettings(Settings):
    """Settings of a study of memory.

    steps: T of each estimate, increasing; slopes are those over the larger half of them.
    momentum: γ of the inner optimizer; what is forgotten at each step is log₂ 1/γ bits a value.
    """

    steps: Annotated[tuple[Steps, ...], Field(min_length=3, strict=False)] = (10, 30, 100, 300, 1000)
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9

    @field_validator("steps")
    @classmethod
    def _increasing(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError("expected numbers of steps in increasing order, each once")
        return steps


class Inner(NamedTuple):
    """One seed's problem: first parameters (1, P), inner batches in turn, an outer batch."""

    params: Tensor
    batches: list[Batch]
    outer_batch: Batch


class Memory(Task):
    """Estimates of one method for several T, on softmax regression 400-10 with an L2 coefficient for every weight.

    Trace, by T, counted: `states`, inner states held at once, the current one included; `held_bytes`, these and the
    side information; `bits`, side information; `gradients`, `hessian_products`, `mixed_products`.
    Measurements, by T: `seconds` of one estimate; `peak_bytes`, resident memory above that at its start, where the
    system tells (Linux).
    Summary, slopes over the larger T: `held_exponent` and `gradients_exponent`, of held bytes and gradients, logarithms
    against that of T; `bits_per_step`, of bits a value against T, `bits_to_entropy`, that over log₂ 1/γ, and
    `bits_share`, that over the 64 bits of the value itself; `states_to_log` and `gradients_to_log`, the largest of
    (states besides the current one) / (⌈log₂ T⌉ + 2) and gradients / (T log₂ T + T + 1).
    Measurements of the whole: `seconds_exponent`, `memory_exponent`.

    Seeds are run one after another, so that a measurement is that of one.
    """

    settings_class = MemorySettings
    methods = ("unrolled", "checkpointed", "reversible", "aggregated", "conjugate_gradient")
    problem = Problem(
        inner_loss=lambda params, hyper, batch: _loss(params, batch),
        outer_loss=lambda params, hyper, batch: _loss(params, batch),
        inner_penalty=L2(),
    )

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Draw the problem of every seed: Gaussian clusters, one a class."""
        assert isinstance(settings, MemorySettings)
        self.settings, self.device = settings, device
        self.optimizer = Momentum(learning_rate=0.02, momentum=settings.momentum)
        self.seeds = [_draw(study, seed, device) for seed in seeds]

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        found: dict[int, list[Measurement]] = {}
        for steps in self.settings.steps:
            kept = self.checkpoint.kept(f"T {steps}", partial(self._all_measured, method, steps))
            found[steps] = [Measurement(**{**item, "cost": Cost(**item["cost"])}) for item in kept]
            seconds = sum(item.seconds for item in found[steps])
            say(f"{name}: T = {steps}, {seconds:.2f} s for {len(self.seeds)} seeds")
        alive = torch.tensor([all(row[index].finite for row in found.values()) for index in range(len(self.seeds))])
        trace = {steps: self._counted(method, [item.cost for item in row], steps) for steps, row in found.items()}
        measured = {steps: _times(row) for steps, row in found.items()}
        slopes = {"seconds_exponent": _exponent(measured, "seconds")}
        if all("peak_bytes" in metrics for metrics in measured.values()):
            slopes["memory_exponent"] = _exponent(measured, "peak_bytes")
        return Result(alive, trace, self._summary(trace), measurements={**measured, WHOLE_RUN: slopes})

    def _all_measured(self, method: Hypergradient, steps: int, checkpoint: Checkpoint) -> State:
        measured = [self._measured(method, inner, steps) for inner in self.seeds]
        return [{**item._asdict(), "cost": vars(item.cost)} for item in measured]

    def _measured(self, method: Hypergradient, inner: Inner, steps: int) -> Measurement:
        state = self.optimizer.init(inner.params)
        hyper = torch.full_like(inner.params, -4.0)

        def estimate(count: int) -> tuple[Cost, bool]:
            with warnings.catch_warnings():
                # after few steps the implicit system is solved at a point that is no minimum yet
                warnings.simplefilter("ignore", ConjugateGradientWarning)
                result = method(
                    self.problem, self.optimizer, state, hyper, _Cycle(inner.batches, count), inner.outer_batch
                )
            return result.cost, bool(torch.isfinite(result.hypergradient).all())

        return measure(estimate, steps, self.device)

    def _counted(self, method: Hypergradient, costs: Sequence[Cost], steps: int) -> dict[str, Tensor]:
        stored = self.optimizer.tape_slots if isinstance(method, Unrolled) else self.optimizer.slots
        value = LAYOUT.size * self.seeds[0].params.element_size()
        return {
            "states": _tensor([cost.peak_states + 1 for cost in costs]),
            "held_bytes": _tensor(
                [cost.peak_states * stored * value + self.optimizer.slots * value + cost.bits / 8 for cost in costs]
            ),
            "bits": _tensor([cost.bits for cost in costs]),
            "gradients": _tensor([cost.gradients for cost in costs]),
            "hessian_products": _tensor([cost.hessian_products for cost in costs]),
            "mixed_products": _tensor([cost.mixed_products for cost in costs]),
        }

    def _summary(self, trace: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
        summary = {name: _exponent(trace, metric) for name, metric in _EXPONENTS.items()}
        by_state = [(item["states"] - 1) / (math.ceil(math.log2(steps)) + 2) for steps, item in trace.items()]
        by_time = [item["gradients"] / (steps * math.log2(steps) + steps + 1) for steps, item in trace.items()]
        summary["states_to_log"] = torch.stack(by_state).amax(0)
        summary["gradients_to_log"] = torch.stack(by_time).amax(0)
        larger = _larger(list(trace))
        bits = torch.stack([trace[steps]["bits"] for steps in larger]) / LAYOUT.size
        if bool(bits.any()):
            summary["bits_per_step"] = _slope(_tensor(larger), bits)
            summary["bits_to_entropy"] = summary["bits_per_step"] / math.log2(1 / self.settings.momentum)
            summary["bits_share"] = summary["bits_per_step"] / 64
        return summary


_EXPONENTS = {"held_exponent": "held_bytes", "gradients_exponent": "gradients"}


class _Cycle(Sequence[Batch]):
    """`count` batches, the same few in turn: T of them take no more memory than these."""

    def __init__(self, batches: Sequence[Batch], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # slices are not needed
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._batches[index % len(self._batches)]


def _loss(params: Tensor, batch: Batch) -> Tensor:
    p = LAYOUT.split(params)
    return cross_entropy(linear(batch[0], p["weight"], p["bias"]), batch[1])


def _draw(study: str, seed: int, device: torch.device) -> Inner:
    draws = generator(study, "problem", seed)
    centers = torch.randn(CLASSES, FEATURES, generator=draws, dtype=torch.float64) * 0.1
    batches = []
    for _ in range(BATCHES + 1):
        labels = torch.randint(CLASSES, (1, BATCH), generator=draws)
        inputs = centers[labels] + torch.randn(1, BATCH, FEATURES, generator=draws, dtype=torch.float64)
        batches.append((inputs.to(device), labels.to(device)))
    params = 0.01 * torch.randn(1, LAYOUT.size, generator=draws, dtype=torch.float64)
    return Inner(params.to(device), batches[:-1], batches[-1])


def _times(row: Sequence[Measurement]) -> dict[str, Tensor]:
    metrics = {"seconds": _tensor([item.seconds for item in row])}
    peaks = [item.peak_bytes for item in row if item.peak_bytes is not None]
    return {**metrics, "peak_bytes": _tensor(peaks)} if len(peaks) == len(row) else metrics


def _larger(steps: list[int]) -> list[int]:
    """The larger half, two at least."""
    return steps[min(len(steps) // 2, len(steps) - 2) :]


def _exponent(metrics: dict[int, dict[str, Tensor]], metric: str) -> Tensor:
    """Slope of the logarithm of a metric against that of T, over the larger T, (S,)."""
    larger = _larger(list(metrics))
    values = torch.stack([metrics[steps][metric] for steps in larger])
    return _slope(_tensor(larger).log(), values.log())


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slope of y (n, S) against x (n,)."""
    centered = (x - x.mean()).unsqueeze(-1)
    return (centered * y).sum(0) / centered.square().sum()


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TASK = Memory
