"""Stopping criteria: a run that stops is the shorter run, with its derivatives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import reference
import torch
from cases import CASES, FIRST, SCHEDULE, SEEDS, Case, estimate
from descents import DescentRun
from pydantic import ValidationError
from torch import Tensor

import bilevel
from bilevel.derivatives import Derivatives
from bilevel.optimizers import (
    LBFGS,
    SGD,
    Adam,
    Descent,
    Exact,
    GradientDescent,
    Momentum,
    Optimizer,
    StrongWolfe,
    Until,
)

WRAPPED: dict[str, Optimizer] = {
    "sgd": SGD(0.1),
    "sgd_learned": SGD(SCHEDULE),
    "momentum": Momentum(FIRST, momentum=0.5),
    "adam": Adam(0.05),
    "gradient_descent": GradientDescent(Exact()),
    "lbfgs": LBFGS(StrongWolfe(), memory=3),
}
STEPS = 7


def trajectory(case: Case, wrapped: Optimizer) -> list[Tensor]:
    """Parameters of one seed before every step and after the last, by the reference."""
    kind = DescentRun if isinstance(wrapped, Descent) else reference.Reference
    return [state[: case.params.numel()] for state in kind(case, wrapped).states]


def gradient_norms(case: Case, wrapped: Optimizer) -> list[float]:
    points = trajectory(case, wrapped)[:-1]
    gradient = torch.func.grad(case.whole_inner_loss)
    return [float(gradient(w, case.hyper, b).norm()) for w, b in zip(points, case.batches, strict=True)]


def relative_steps(case: Case, wrapped: Optimizer) -> list[float]:
    points = trajectory(case, wrapped)
    return [float((new - old).norm() / new.norm()) for old, new in pairwise(points)]


def between(values: list[list[float]]) -> float:
    """A threshold that some seeds pass at different steps, close to no value."""
    first = sorted(min(seed[1:-1]) for seed in values)
    return (first[1] + first[2]) / 2 if first[2] > first[1] else first[1] * 1.01


def hypergradient(case: Case, wrapped: Optimizer, steps: int) -> Tensor:
    shorter = case.shortened(steps)
    if isinstance(wrapped, Descent):
        return torch.func.jacrev(DescentRun(shorter, wrapped).outer)(case.hyper)
    return reference.unrolled(reference.Reference(shorter, wrapped))


@pytest.mark.parametrize("criterion", ["gradient_norm", "step_norm"])
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("make", CASES[:3], ids=lambda make: make.__name__)
def test_a_run_that_stops_is_the_shorter_run(make: Any, name: str, criterion: str) -> None:
    case, wrapped = make(STEPS), WRAPPED[name]
    measure = gradient_norms if criterion == "gradient_norm" else relative_steps
    values = [measure(case.seed(seed), wrapped) for seed in range(SEEDS)]
    threshold = between(values)
    optimizer = Until(wrapped, **{criterion: threshold})
    result = estimate("unrolled", optimizer, case)
    for seed in range(SEEDS):
        below = [t for t, value in enumerate(values[seed]) if value < threshold]
        # stops before a step with a small gradient, after a small step
        expected = STEPS if not below else below[0] + (criterion == "step_norm")
        assert optimizer.steps_done(result.state)[seed] == expected
        assert optimizer.stopped(result.state)[seed] == bool(below)
        end = trajectory(case.seed(seed), wrapped)[expected]
        torch.testing.assert_close(result.state[seed, 0], end, rtol=1e-9, atol=1e-11)
        exact = hypergradient(case.seed(seed), wrapped, expected)
        torch.testing.assert_close(result.hypergradient[seed], exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
        alone = estimate("unrolled", optimizer, case.seed(seed))
        torch.testing.assert_close(alone.hypergradient, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
        assert optimizer.steps_done(alone.state) == expected


def test_thresholds_here_stop_some_seeds_and_not_others() -> None:
    stopped = 0
    for make in CASES[:3]:
        case = make(STEPS)
        values = [gradient_norms(case.seed(seed), WRAPPED["sgd"]) for seed in range(SEEDS)]
        optimizer = Until(WRAPPED["sgd"], gradient_norm=between(values))
        state = estimate("none", optimizer, case).state
        assert optimizer.stopped(state).sum() > 0
        stopped += int(optimizer.stopped(state).sum())
    assert stopped < 3 * SEEDS


@pytest.mark.parametrize("name", WRAPPED)
def test_truncated_last_step_is_the_identity_for_who_has_stopped(name: str) -> None:
    case, optimizer = CASES[0](STEPS), Until(WRAPPED[name], gradient_norm=1e9)
    start = optimizer.init(case.params)
    for method, chosen in (("unrolled", {}), ("truncated", {"steps": 1}), ("truncated", {"steps": 3})):
        result = estimate(method, optimizer, case, **chosen)
        outer = Derivatives(case.problem, case.hyper).outer_gradient(case.params, case.outer_batch)
        assert torch.equal(result.hypergradient, outer.hyper)
        assert torch.equal(optimizer.params(result.state), optimizer.params(start))
        assert optimizer.steps_done(result.state).tolist() == [0] * SEEDS


@pytest.mark.parametrize("name", WRAPPED)
def test_without_reason_to_stop_it_is_the_wrapped_optimizer(name: str) -> None:
    case, wrapped = CASES[1](STEPS), WRAPPED[name]
    optimizer = Until(wrapped, gradient_norm=1e-300, step_norm=1e-300)
    plain, stopping = estimate("unrolled", wrapped, case), estimate("unrolled", optimizer, case)
    torch.testing.assert_close(stopping.hypergradient, plain.hypergradient, rtol=1e-12, atol=1e-15)
    assert torch.equal(optimizer.wrapped(stopping.state), plain.state)
    assert stopping.cost.gradients == plain.cost.gradients
    assert stopping.cost.jvps == plain.cost.jvps
    last = estimate("truncated", optimizer, case), estimate("truncated", wrapped, case)
    torch.testing.assert_close(last[0].hypergradient, last[1].hypergradient, rtol=1e-12, atol=1e-15)


def test_once_all_have_stopped_nothing_is_evaluated() -> None:
    case = CASES[0](3)
    optimizer = Until(SGD(0.3), gradient_norm=1e-6)
    batches = [case.batches[0]] * 200
    result = bilevel.hypergradients.create("unrolled")(
        case.problem, optimizer, optimizer.init(case.params), case.hyper, batches, case.outer_batch
    )
    most = int(optimizer.steps_done(result.state).max())
    assert optimizer.stopped(result.state).all()
    assert most < 150
    # forward and backward each look at the step that stops, and at none after it
    assert result.cost.gradients == 2 * (most + 1) + 1
    assert result.cost.hessian_products <= most + 1


def test_gradient_below_threshold_at_the_end_of_a_minimization() -> None:
    case = CASES[1](1)
    problem = bilevel.Problem(case.problem.inner_loss, case.problem.outer_loss, bilevel.penalties.L2([12]))
    hyper = case.hyper - 2
    optimizer = Until(LBFGS(StrongWolfe()), gradient_norm=1e-8)
    state, derivatives = optimizer.init(case.params), Derivatives(problem, hyper)
    for _ in range(200):
        optimizer.advance_(derivatives, state, case.batches[0])
    assert optimizer.stopped(state).all()
    norms = derivatives.inner_gradient(optimizer.params(state), case.batches[0]).norm(dim=-1)
    assert norms.max() < 1e-8
    assert optimizer.steps_done(state).max() < 200


def test_it_can_be_nested_and_wraps_any_optimizer() -> None:
    case = CASES[0](STEPS)
    values = [gradient_norms(case.seed(seed), SGD(0.1)) for seed in range(SEEDS)]
    threshold = between(values)
    plain = estimate("unrolled", Until(SGD(0.1), gradient_norm=threshold), case)
    nested = estimate("unrolled", Until(Until(SGD(0.1), gradient_norm=threshold), gradient_norm=threshold), case)
    torch.testing.assert_close(nested.hypergradient, plain.hypergradient, rtol=1e-12, atol=0)
    assert torch.equal(nested.state[:, 0], plain.state[:, 0])


def test_a_stationary_point_stops_and_is_not_undefined() -> None:
    problem = bilevel.Problem(lambda w, h, b: 0.5 * h[0].exp() * (w * w).sum(), lambda w, h, b: ((w - b) ** 2).sum())
    zeros, ones = torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    for wrapped in WRAPPED.values():
        optimizer = Until(wrapped, gradient_norm=1e-9, step_norm=1e-9)
        found = bilevel.hypergradients.create("unrolled")(
            problem, optimizer, optimizer.init(zeros), zeros[:, :3], [ones] * 2, ones
        )
        assert torch.equal(optimizer.params(found.state), zeros)
        assert torch.equal(found.hypergradient, zeros[:, :3])
        assert optimizer.stopped(found.state).all()


def test_a_criterion_is_needed() -> None:
    with pytest.raises(ValidationError, match="a criterion is needed: gradient_norm, step_norm or both"):
        Until(SGD(0.1))
