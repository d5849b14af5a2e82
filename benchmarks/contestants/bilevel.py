"""This library, through `bilevel.hypergradients.create`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import bilevel
from benchmarks.cases import BETA1, BETA2, EPSILON, GAMMA, MOMENTUM, TERMS, Array, Case, Data, Quantity
from benchmarks.contestants import Entry, Run
from benchmarks.contestants.pytorch_problem import Batch, PyTorchProblem
from bilevel.hypergradients import Hypergradient


def contest(case: Case, data: Data) -> list[Entry]:
    """See `benchmarks.contestants`."""
    problem = PyTorchProblem(case, data)
    return [_entry(problem, *listed) for listed in _methods(case)]


def _methods(case: Case) -> Iterator[tuple[Quantity, str, dict[str, Any]]]:
    """Quantity, method and settings."""
    yield "exact", "unrolled", {}
    yield "exact", "checkpointed", {}
    if case.optimizer != "sgd":  # it has no memory that could be run backwards
        yield "exact", "reversible", {}
    yield "T1-T2", "truncated", {"steps": 1}
    yield "Neumann", "neumann", {"terms": TERMS, "step_size": case.rate}
    yield (
        "CG",
        "conjugate_gradient",
        {"iterations": case.iterations, "tolerance": 0.0, "damping": case.damping},
    )
    yield "aggregated", "aggregated", {"gamma": GAMMA}
    yield "inner steps", "none", {}


def _entry(problem: PyTorchProblem, quantity: Quantity, name: str, settings: dict[str, Any]) -> Entry:
    try:
        method = bilevel.hypergradients.create(name, **settings)
    except bilevel.hypergradients.SettingsError as error:
        return Entry(name, quantity, _never, missing=" ".join(str(error).split()))
    return Entry(name, quantity, lambda: _run(problem, method, state_wanted=quantity == "inner steps"))


def _never() -> Run:
    raise AssertionError("an entry that is missing is not built")


def _run(problem: PyTorchProblem, method: Hypergradient, state_wanted: bool) -> Run:
    optimizer = _optimizer(problem.case)

    def inner_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return problem.data_loss(problem.logits(problem.split(params), batch[0]), batch[1], hyper)

    def outer_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return problem.data_loss(problem.logits(problem.split(params), batch[0]), batch[1], None)

    penalty = bilevel.penalties.L2() if problem.case.model == "mlp" else None
    bilevel_problem = bilevel.traced(bilevel.Problem(inner_loss, outer_loss, penalty))

    def run() -> Array:
        state = optimizer.init(problem.flat_params)
        estimate = method(bilevel_problem, optimizer, state, problem.hyper, problem.batches, problem.outer_batch)
        result: torch.Tensor = optimizer.params(estimate.state) if state_wanted else estimate.hypergradient
        return result.numpy()

    return run


def _optimizer(case: Case) -> bilevel.optimizers.Optimizer:
    if case.optimizer == "sgd":
        return bilevel.optimizers.SGD(learning_rate=case.rate)
    if case.optimizer == "momentum":
        return bilevel.optimizers.Momentum(learning_rate=case.rate, momentum=MOMENTUM)
    return bilevel.optimizers.Adam(learning_rate=case.rate, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
