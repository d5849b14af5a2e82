"""Step-size policies, alone and with gradient descent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, FIRST, SCHEDULE, SEEDS, central_difference, estimate
from descents import DescentRun
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import bilevel
from bilevel.derivatives import Derivatives
from bilevel.optimizers import SGD, Armijo, Exact, Fixed, GradientDescent, StrongWolfe
from bilevel.optimizers.line_search import Line

POLICIES = {
    "fixed": Fixed(0.1),
    "fixed_learned": Fixed(FIRST),
    "fixed_schedule": Fixed(SCHEDULE),
    "armijo": Armijo(initial=4.0, shrink=0.6, slope=0.3),
    "wolfe": StrongWolfe(initial=1.0, slope=0.05, curvature=0.3),
    "exact": Exact(),
}
STEPS = 5
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_hypergradients_are_those_of_the_run_as_it_was_decided(make: Any, policy: str) -> None:
    case, optimizer = make(STEPS), GradientDescent(POLICIES[policy])
    exact, last = estimate("unrolled", optimizer, case), estimate("truncated", optimizer, case, steps=2)
    for seed in range(SEEDS):
        run = DescentRun(case.seed(seed), optimizer)
        hyper = run.case.hyper
        torch.testing.assert_close(exact.state[seed].flatten(), run.states[-1], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(exact.hypergradient[seed], torch.func.jacrev(run.outer)(hyper), **CLOSE)
        expected = torch.func.jacrev(lambda h, run=run: run.outer(h, steps=2))(hyper)
        torch.testing.assert_close(last.hypergradient[seed], expected, **CLOSE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", CASES[:3], ids=lambda make: make.__name__)
def test_unrolled_agrees_with_central_differences(make: Any, policy: str) -> None:
    case, optimizer = make(STEPS).seed(1), GradientDescent(POLICIES[policy])
    numeric = central_difference(optimizer, case)
    torch.testing.assert_close(estimate("unrolled", optimizer, case).hypergradient, numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_gives_the_same_alone_as_in_company(policy: str) -> None:
    case, optimizer = CASES[1](STEPS), GradientDescent(POLICIES[policy])
    together = estimate("unrolled", optimizer, case)
    for seed in range(SEEDS):
        alone = estimate("unrolled", optimizer, case.seed(seed))
        torch.testing.assert_close(together.hypergradient[seed], alone.hypergradient, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(together.state[seed], alone.state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_step_and_one_step(policy: str) -> None:
    case, optimizer = CASES[0](1).seed(0), GradientDescent(POLICIES[policy])
    none = estimate("unrolled", optimizer, case.shortened(0))
    direct = torch.func.grad(case.problem.outer_loss, argnums=1)(case.params, case.hyper, case.outer_batch)
    torch.testing.assert_close(none.hypergradient, direct, **CLOSE)
    run = DescentRun(case, optimizer)
    expected = torch.func.jacrev(run.outer)(case.hyper)
    torch.testing.assert_close(estimate("unrolled", optimizer, case).hypergradient, expected, **CLOSE)


def test_fixed_gradient_descent_is_sgd() -> None:
    case = CASES[1](STEPS)
    for rate in (0.3, FIRST, SCHEDULE):
        left, right = (estimate("unrolled", o, case) for o in (GradientDescent(Fixed(rate)), SGD(rate)))
        torch.testing.assert_close(left.state, right.state, rtol=1e-13, atol=0)
        torch.testing.assert_close(left.hypergradient, right.hypergradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("policy", POLICIES)
def test_at_a_stationary_point_nothing_moves_and_nothing_is_undefined(policy: str) -> None:
    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * h[0].exp() * (w * w).sum()

    problem = bilevel.Problem(inner, lambda w, h, b: ((w - b) ** 2).sum())
    optimizer = GradientDescent(POLICIES[policy])
    zeros, ones = torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    found = bilevel.hypergradients.create("unrolled")(
        problem, optimizer, optimizer.init(zeros), zeros[:, :3], [ones] * 3, ones
    )
    assert torch.equal(optimizer.params(found.state), zeros)
    assert torch.equal(found.hypergradient, zeros[:, :3])


# lines of which everything is known: one seed, one dimension and up, several shapes of the loss


def bumpy(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return 0.5 * h[0] * (w * w).sum() + h[1] * torch.sin(3 * w + b).sum() + 0.05 * (w**4).sum()


def line(w: Tensor, hyper: Tensor, batch: Tensor, loss: Any = bumpy, direction: Tensor | None = None) -> Line:
    derivatives = Derivatives(bilevel.Problem(loss, loss), hyper)
    found, gradient = derivatives.inner_loss_and_gradient(w, batch)
    return Line(derivatives, batch, w, gradient, -gradient if direction is None else direction, found, None)


@st.composite
def lines(draw: Any) -> Line:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    seeds, size = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    w, batch = (torch.randn(seeds, size, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    hyper = torch.rand(seeds, 2, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    return line(w, hyper, batch)


def dense(found: Line, seed: int, size: float) -> tuple[float, float]:
    """φ(α) and φ'(α) of a seed, by other means."""
    hyper, batch = found.derivatives.hyper[seed], found.batch[seed]

    def phi(alpha: Tensor) -> Tensor:
        return bumpy(found.params[seed] + alpha * found.direction[seed], hyper, batch)

    alpha = torch.tensor(size, dtype=torch.float64)
    return float(phi(alpha)), float(torch.func.grad(phi)(alpha))


@given(
    lines(),
    st.floats(0.01, 10),
    st.floats(0.001, 0.4),
    st.floats(0.05, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_strong_wolfe_conditions_hold(found: Line, initial: float, slope: float, above: float) -> None:
    policy = StrongWolfe(initial=initial, slope=slope, curvature=min(slope + above, 0.99))
    chosen = policy.choose(found)
    for seed, size in enumerate(chosen.squeeze(-1).tolist()):
        (start, steepness), (loss, slope_there) = dense(found, seed, 0.0), dense(found, seed, size)
        assert size > 0
        assert loss <= start + slope * size * steepness + 1e-12 * (1 + abs(start))
        assert abs(slope_there) <= policy.curvature * abs(steepness) * (1 + 1e-9)
        alone = line(
            found.params[seed : seed + 1], found.derivatives.hyper[seed : seed + 1], found.batch[seed : seed + 1]
        )
        assert policy.choose(alone).item() == size


@given(lines(), st.floats(0.01, 10), st.floats(0.1, 0.9), st.floats(0.001, 0.9))
@settings(max_examples=60, deadline=None)
def test_armijo_takes_the_first_step_that_decreases_enough(
    found: Line, initial: float, shrink: float, slope: float
) -> None:
    # of small steps, each nine tenths of the one before, 50 may not be enough
    chosen = Armijo(initial=initial, shrink=shrink, slope=slope, limit=500).choose(found)
    for seed, size in enumerate(chosen.squeeze(-1).tolist()):
        start, steepness = dense(found, seed, 0.0)
        assert size > 0
        assert dense(found, seed, size)[0] <= start + slope * size * steepness + 1e-12 * (1 + abs(start))
        longer = size / shrink
        if longer <= initial * (1 + 1e-9):
            assert dense(found, seed, longer)[0] > start + slope * longer * steepness - 1e-12 * (1 + abs(start))


@given(st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_exact_minimizes_a_quadratic_along_the_line(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    curvature = factor @ factor.T + 0.1 * torch.eye(size, dtype=torch.float64)
    w, target, direction = (torch.randn(2, size, generator=generator, dtype=torch.float64) for _ in range(3))

    def loss(x: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (x - b) @ curvature @ (x - b)

    found = line(w, torch.zeros(2, 2, dtype=torch.float64), target, loss, direction)
    expected = -((w - target) @ curvature * direction).sum(-1) / (direction @ curvature * direction).sum(-1)
    torch.testing.assert_close(Exact().choose(found).squeeze(-1), expected, rtol=1e-10, atol=1e-12)


def test_where_no_step_will_do_none_is_taken() -> None:
    def falling(w: Tensor, h: Tensor, b: Tensor) -> Tensor:  # not bounded below, negative curvature
        return -(w * w).sum()

    def walled(w: Tensor, h: Tensor, b: Tensor) -> Tensor:  # defined at one point only
        return w.sum() + torch.where(w.sum() == b.sum(), 0.0, torch.inf)

    ones, hyper = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert Exact().choose(line(ones, hyper, ones, falling)).item() == 0
    assert Armijo().choose(line(ones, hyper, ones, walled)).item() == 0
    assert StrongWolfe().choose(line(ones, hyper, ones, walled)).item() == 0
    # twelve doublings are not enough: the longest step tried so far does decrease the loss
    slow = line(ones, hyper, ones, lambda w, h, b: 1e-8 * (w * w).sum())
    assert StrongWolfe(initial=1.0, limit=12).choose(slow).item() == 2.0**11


def test_work_is_counted() -> None:
    case = CASES[0](STEPS).seed(0)
    cost = {name: estimate("none", GradientDescent(policy), case).cost for name, policy in POLICIES.items()}
    assert cost["fixed"].gradients == cost["armijo"].gradients
    assert cost["exact"].gradients == cost["fixed"].gradients + STEPS
    assert cost["wolfe"].gradients >= cost["fixed"].gradients + STEPS
    exact = estimate("truncated", GradientDescent(Exact()), case).cost
    assert exact.mixed_products == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StrongWolfe(slope=0.5, curvature=0.2), "slope must be less than curvature"),
        (lambda: Armijo(shrink=1.0), "shrink"),
        (lambda: Fixed(learning_rate=0.0), "learning_rate"),
        (lambda: GradientDescent(0.1), "instance of StepSize"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()
