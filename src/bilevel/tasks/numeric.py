"""Numeric differentiation of whole runs: the error of a hypergradient against the step ε of the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bilevel.data import Dataset
from bilevel.hypergradients import Estimate, Hypergradient
from bilevel.hypergradients.central_difference import CentralDifference
from bilevel.hypergradients.complex_step import ComplexStep
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import SGD
from bilevel.parameters import Layout
from bilevel.penalties import L2
from bilevel.problem import Batch, Problem
from bilevel.progress import say
from bilevel.randomness import generator
from bilevel.results import Result
from bilevel.settings import Count, Settings
from bilevel.tasks.base import Task

RESOLUTION = 2.0**-52
"""Relative errors below this are rounding: they count as equal."""


class NumericSettings(Settings):
    """problem: `quadratic` or `network`, see `quadratic` and `network`.
    decades: ε is 10⁻¹, 10⁻², … down to 10 to the power of minus this. inner_steps: T.
    """

    problem: Literal["quadratic", "network"]
    decades: Annotated[int, Field(ge=2, le=300)] = 30
    inner_steps: Count = 10


class Instance(NamedTuple):
    """A problem with a start and data for every seed; every inner step sees the whole data."""

    problem: Problem
    learning_rate: float
    params: Tensor
    hyper: Tensor
    inner_batch: Batch
    outer_batch: Batch


def quadratic(draws: Sequence[torch.Generator]) -> Instance:
    """L₁ = ½ (w − b)ᵀ G (w − b) + λ·Cw + ½ exp(λ_0) ‖w‖², L₂ = ‖w‖² + 10 ‖sin w‖²; 8 parameters, 3 hyperparameters.

    The eigenvalues of G are between 1 and about 5; b, C, w_0 and λ are normal.
    """
    size, hypers = 8, 3
    factor = _normal(draws, size, size)
    curvature = factor @ factor.mT / size + torch.eye(size, dtype=torch.float64)
    batch = (curvature, _normal(draws, size), _normal(draws, hypers, size))

    def inner(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        curvature, target, coupling = (tensor.to(params.dtype) for tensor in batch)
        away = params - target
        bend = 0.5 * (away * (curvature @ away)).sum() + 0.5 * hyper[0].exp() * (params * params).sum()
        return bend + (hyper * (coupling @ params)).sum()

    def outer(params: Tensor, hyper: Tensor, batch: None) -> Tensor:
        return (params * params).sum() + 10 * (params.sin() ** 2).sum()

    hyper = 0.3 * _normal(draws, hypers)
    return Instance(Problem(inner, outer), 0.1, _normal(draws, size), hyper, batch, None)


def network(draws: Sequence[torch.Generator]) -> Instance:
    """A 4–6–3 network with tanh, on the cross-entropy of 30 training and 30 validation samples of three classes.

    A hyperparameter for each of the four groups of parameters: the logarithm of its L2 coefficient.
    """
    layout = Layout({"w1": (4, 6), "b1": (6,), "w2": (6, 3), "b2": (3,)})
    centers = 1.5 * _normal(draws, 3, 4)
    labels = torch.arange(30).remainder(3)
    onehot = torch.nn.functional.one_hot(labels).double().expand(len(draws), -1, -1)
    train, validation = (centers[:, labels] + _normal(draws, 30, 4) for _ in range(2))

    def loss(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = (tensor.to(params.dtype) for tensor in batch)
        parts = layout.split(params)
        logits = (inputs @ parts["w1"] + parts["b1"]).tanh() @ parts["w2"] + parts["b2"]
        # written out: the library's log_softmax is for real numbers only
        return (logits.exp().sum(-1).log() - (targets * logits).sum(-1)).mean()

    params = 0.5 * _normal(draws, layout.size)
    hyper = torch.full((len(draws), len(layout.sizes)), -3.0, dtype=torch.float64)
    problem = Problem(loss, loss, L2(list(layout.sizes)))
    return Instance(problem, 0.5, params, hyper, (train, onehot), (validation, onehot))


INSTANCES = {"quadratic": quadratic, "network": network}


class Numeric(Task):
    """Measures the error of central differences and of the complex step against the exact hypergradient.

    The method's own `epsilon` is replaced by every 10⁻ᵏ in turn; step k of the trace has `epsilon` and
    `relative_error`, ‖ĝ − g‖ / ‖g‖. Where λ ± ε is λ itself there is no difference, and the error is empty. Summary:
    `best_error`, `best_epsilon`, and `decades`, the number of values of ε whose error is at most ten times the best
    one (errors below 2⁻⁵² count as equal).

    Source: deck 001, slide "Численное".
    """

    settings_class: ClassVar[type[Settings]] = NumericSettings
    methods: ClassVar[tuple[str, ...] | None] = ("central_difference", "complex_step")

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        assert isinstance(settings, NumericSettings)
        self._settings = settings
        self._instance = INSTANCES[settings.problem]([generator(study, "problem", seed) for seed in seeds])
        self._optimizer = SGD(learning_rate=self._instance.learning_rate)

    def run(self, method: CentralDifference | ComplexStep, name: str) -> Result:
        """See `Task`."""
        exact = self._estimate(Unrolled()).hypergradient
        trace = {}
        for power in range(1, self._settings.decades + 1):
            epsilon = 10.0**-power
            found = self._estimate(replace(method, epsilon=epsilon)).hypergradient
            error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
            trace[power] = {"epsilon": torch.full_like(error, epsilon), "relative_error": error}
            say(f"{name}: ε = 1e-{power} of 1e-{self._settings.decades}")
        errors = torch.stack([metrics["relative_error"] for metrics in trace.values()])
        defined = errors.nan_to_num(nan=math.inf)
        best, place = defined.min(0)
        summary = {
            "best_error": best,
            "best_epsilon": 10.0 ** -(place + 1).double(),
            "decades": (defined <= 10 * best.clamp(min=RESOLUTION)).sum(0).double(),
        }
        return Result(torch.isfinite(best), trace, summary)

    def _estimate(self, method: Hypergradient) -> Estimate:
        instance, batches = self._instance, [self._instance.inner_batch] * self._settings.inner_steps
        state = self._optimizer.init(instance.params)
        return method(instance.problem, self._optimizer, state, instance.hyper, batches, instance.outer_batch)


def _normal(draws: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Normal numbers for every seed, (S, *shape)."""
    return torch.stack([torch.randn(shape, generator=draw, dtype=torch.float64) for draw in draws])


TASK = Numeric
