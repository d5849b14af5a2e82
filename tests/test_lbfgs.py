"""L-BFGS: its steps, their adjoint, and what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from cases import CASES, FIRST, SCHEDULE, SEEDS, Case, central_difference, estimate
from descents import DescentRun, dense_inverse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel.derivatives import Derivatives
from bilevel.optimizers import LBFGS, Armijo, Exact, Fixed, StrongWolfe
from bilevel.optimizers.lbfgs import InverseHessian
from bilevel.problem import map_batch

OPTIMIZERS = {
    "fixed": LBFGS(Fixed(0.4), memory=3),
    "fixed_learned": LBFGS(Fixed(FIRST), memory=1),
    "fixed_schedule": LBFGS(Fixed(SCHEDULE), memory=2),
    "armijo": LBFGS(Armijo(initial=1.0, slope=0.1), memory=2),
    "wolfe": LBFGS(StrongWolfe(), memory=10),
    "wolfe_strict": LBFGS(StrongWolfe(curvature=0.1), memory=2),
    "exact": LBFGS(Exact(), memory=3),
}
STEPS = 6
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def full_batch(make: Any, steps: int) -> Case:
    """The case with one batch for all steps."""
    case = make(steps)
    case.batches[:] = [case.batches[0]] * steps
    return case


RUNS = [(make, batches) for make in CASES for batches in ("stochastic", "full")]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("make", "batches"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_hypergradients_are_those_of_the_run_as_it_was_decided(make: Any, batches: str, name: str) -> None:
    # four steps on one batch: with exact steps, five variables of a quadratic are at the minimum after five
    case, optimizer = make(STEPS) if batches == "stochastic" else full_batch(make, 4), OPTIMIZERS[name]
    exact, last = estimate("unrolled", optimizer, case), estimate("truncated", optimizer, case, steps=3)
    for seed in range(SEEDS):
        run = DescentRun(case.seed(seed), optimizer)
        hyper = run.case.hyper
        torch.testing.assert_close(exact.state[seed].flatten(), run.states[-1], rtol=1e-9, atol=1e-11)
        expected = torch.func.jacrev(run.outer)(hyper)
        torch.testing.assert_close(exact.hypergradient[seed], expected, **scaled(expected))
        expected = torch.func.jacrev(lambda h, run=run: run.outer(h, steps=3))(hyper)
        torch.testing.assert_close(last.hypergradient[seed], expected, **scaled(expected))


def scaled(expected: Tensor) -> dict[str, float]:
    return {"rtol": 1e-9, "atol": 1e-9 * max(1e-3, float(expected.abs().max()))}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", CASES[:3], ids=lambda make: make.__name__)
def test_jacobians_of_a_step(make: Any, name: str) -> None:
    """A_tᵀ and B_tᵀ on every slot, with more pairs in memory at each step."""
    case, optimizer = make(STEPS), OPTIMIZERS[name]
    derivatives = Derivatives(case.problem, case.hyper)
    runs = [DescentRun(case.seed(seed), optimizer) for seed in range(SEEDS)]
    generator = torch.Generator().manual_seed(0)
    for t in range(STEPS):
        state = torch.stack([run.states[t] for run in runs]).view(SEEDS, optimizer.slots, -1)
        given_ = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        given_[:, -1] = 0  # the count
        step = optimizer.linearize(derivatives, state, case.batches[t])
        cotangent, to_hyper = given_.clone(), torch.zeros_like(case.hyper)
        step.pull_back_(cotangent, to_hyper)
        following, advanced = state.clone(), state.clone()
        step.advance_(following)
        optimizer.advance_(derivatives, advanced, case.batches[t])
        assert torch.equal(following, advanced)
        short, again = given_.clone(), torch.zeros_like(case.hyper)
        step.pull_back_(short, again, to_state=False)
        assert torch.equal(again, to_hyper)
        for seed, run in enumerate(runs):
            torch.testing.assert_close(following[seed].flatten(), run.states[t + 1], rtol=1e-10, atol=1e-12)
            _, pull = torch.func.vjp(lambda s, h, t=t, run=run: run.step(t, s, h), run.states[t], run.case.hyper)
            by_state, by_hyper = pull(given_[seed].flatten())
            torch.testing.assert_close(
                cotangent[seed].flatten()[: -run.size], by_state[: -run.size], **scaled(by_state)
            )
            torch.testing.assert_close(to_hyper[seed], by_hyper, **scaled(by_hyper))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", CASES[:3], ids=lambda make: make.__name__)
def test_unrolled_agrees_with_central_differences(make: Any, name: str) -> None:
    case, optimizer = make(4).seed(1), OPTIMIZERS[name]
    numeric = central_difference(optimizer, case)
    torch.testing.assert_close(estimate("unrolled", optimizer, case).hypergradient, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", CASES[:2], ids=lambda make: make.__name__)
def test_a_seed_gives_the_same_alone_as_in_company(make: Any, name: str) -> None:
    case, optimizer = make(STEPS), OPTIMIZERS[name]
    together = estimate("unrolled", optimizer, case)
    for seed in range(SEEDS):
        alone = estimate("unrolled", optimizer, case.seed(seed))
        torch.testing.assert_close(together.hypergradient[seed], alone.hypergradient, **scaled(alone.hypergradient))
        torch.testing.assert_close(together.state[seed], alone.state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_and_one_step(name: str, steps: int) -> None:
    case = CASES[0](1).shortened(steps).seed(0)
    run = DescentRun(case, OPTIMIZERS[name])
    expected = torch.func.jacrev(run.outer)(case.hyper)
    torch.testing.assert_close(estimate("unrolled", OPTIMIZERS[name], case).hypergradient, expected, **CLOSE)


def test_runs_here_keep_some_pairs_and_leave_some_out() -> None:
    kept = [
        decision.keep
        for make in CASES
        for seed in range(SEEDS)
        for decision in DescentRun(make(STEPS).seed(seed), OPTIMIZERS["fixed"]).decisions[1:]
    ]
    assert 5 < sum(kept) < len(kept) - 2


def test_seeds_leave_out_pairs_on_their_own() -> None:
    """Half convex, half concave: one seed keeps its pairs, the other never has one and stays with the gradient."""

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return b * 0.5 * (w * w).sum() * h[0].exp()

    problem = bilevel.Problem(inner, lambda w, h, b: w.sum())
    optimizer = LBFGS(Fixed(0.5), memory=2)
    state = optimizer.init(torch.ones(2, 3, dtype=torch.float64))
    derivatives = Derivatives(problem, torch.zeros(2, 1, dtype=torch.float64))
    batch = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for _ in range(3):
        optimizer.advance_(derivatives, state, batch)
    assert torch.equal(state[0, 3], torch.full((3,), -0.25, dtype=torch.float64))
    assert torch.equal(state[1, 3:7], torch.zeros(4, 3, dtype=torch.float64))
    assert torch.equal(optimizer.params(state)[1], torch.full((3,), 1.5**3, dtype=torch.float64))


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_two_loops_multiply_by_the_dense_inverse(seed: int, memory: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    hessian = factor @ factor.T + torch.eye(4, dtype=torch.float64)
    steps = torch.randn(2, memory, 4, generator=generator, dtype=torch.float64)
    steps[:, count:] = 0
    changes, vector = steps @ hessian, torch.randn(2, 4, generator=generator, dtype=torch.float64)
    found = InverseHessian(steps, changes).times(vector).product
    for index in range(2):
        pairs = [(steps[index, i], changes[index, i]) for i in range(min(count, memory))]
        dense = dense_inverse(pairs)
        expected = vector[index] if dense is None else dense @ vector[index]
        torch.testing.assert_close(found[index], expected, rtol=1e-9, atol=1e-10)
        if pairs:  # the secant equation of the newest pair
            one = InverseHessian(steps, changes).times(changes[:, 0]).product
            torch.testing.assert_close(one, steps[:, 0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("policy", [StrongWolfe(), Armijo(), Exact(), Fixed(0.5)], ids=lambda p: type(p).__name__)
def test_it_minimizes_a_quadratic(policy: Any) -> None:
    case = full_batch(CASES[0], 60)
    result = estimate("none", LBFGS(policy, memory=5), case)
    w = result.state[:, 0]
    for seed in range(SEEDS):
        one = case.seed(seed)
        gradient = torch.func.grad(one.whole_inner_loss)(w[seed], one.hyper, one.batches[0])
        hessian = torch.func.hessian(one.whole_inner_loss)(w[seed], one.hyper, one.batches[0])
        assert gradient.norm() < 1e-8
        best = w[seed] - torch.linalg.solve(hessian, gradient)
        torch.testing.assert_close(w[seed], best, rtol=1e-7, atol=1e-8)


def test_with_exact_steps_a_quadratic_of_n_variables_takes_n_steps() -> None:
    """With a memory for all pairs and exact steps, the directions are conjugate (Nocedal and Wright, section 6.4)."""
    case = full_batch(CASES[0], 5)
    result = estimate("none", LBFGS(Exact(), memory=5), case)
    gradient = Derivatives(case.problem, case.hyper).inner_gradient(result.state[:, 0], case.batches[0])
    assert gradient.abs().max() < 1e-9


def logistic(features: Tensor, labels: Tensor) -> bilevel.Problem:
    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-labels * (features @ w)).mean()

    return bilevel.Problem(inner, inner, bilevel.penalties.L2([features.shape[1]]))


@pytest.mark.parametrize("policy", [StrongWolfe(), Armijo()], ids=lambda p: type(p).__name__)
def test_it_finds_scipys_minimum_of_a_logistic_regression(policy: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    scales = torch.logspace(-1, 1, 8, dtype=torch.float64)
    features = torch.randn(60, 8, generator=generator, dtype=torch.float64) * scales
    labels = torch.randn(60, generator=generator, dtype=torch.float64).sign()
    problem, hyper = logistic(features, labels), torch.tensor([[-3.0], [-6.0]], dtype=torch.float64)
    optimizer = LBFGS(policy, memory=10)
    state = optimizer.init(torch.zeros(2, 8, dtype=torch.float64))
    derivatives, batch = Derivatives(problem, hyper), torch.zeros(2, 1)
    for _ in range(100):
        optimizer.advance_(derivatives, state, batch)
    gradient = derivatives.inner_gradient(state[:, 0], batch)
    assert gradient.norm(dim=-1).max() < 1e-8
    for seed in range(2):

        def loss(w: Any, seed: int = seed) -> float:
            products = -labels.numpy() * (features.numpy() @ w)
            return float(np.logaddexp(0, products).mean() + 0.5 * np.exp(hyper[seed, 0].item()) * w @ w)

        def slope(w: Any, seed: int = seed) -> Any:
            products = -labels.numpy() * (features.numpy() @ w)
            weights = -labels.numpy() / (1 + np.exp(-products)) / 60
            return features.numpy().T @ weights + np.exp(hyper[seed, 0].item()) * w

        best = scipy.optimize.minimize(loss, np.zeros(8), jac=slope, method="BFGS", options={"gtol": 1e-10})
        np.testing.assert_allclose(state[seed, 0].numpy(), best.x, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(derivatives.inner_loss(state[:, 0], batch)[seed].item(), best.fun, rtol=1e-12)


def test_at_the_minimum_the_unrolled_hypergradient_is_the_implicit_one() -> None:
    """The run's first steps are forgotten once it has converged with Newton-like steps on a quadratic."""
    case = full_batch(CASES[0], 25).seed(0)
    result = estimate("unrolled", LBFGS(Fixed(1.0), memory=5), case)
    inner, outer = case.problem.inner_loss, case.problem.outer_loss
    w, h, b = result.state[0], case.hyper, case.batches[0]
    hessian = torch.func.hessian(inner)(w, h, b)
    mixed = torch.func.jacrev(torch.func.grad(inner), argnums=1)(w, h, b)
    by_w, by_h = torch.func.grad(outer, argnums=(0, 1))(w, h, case.outer_batch)
    expected = by_h - torch.linalg.solve(hessian, by_w) @ mixed
    torch.testing.assert_close(result.hypergradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_a_stationary_point_nothing_moves_and_nothing_is_undefined(name: str) -> None:
    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * h[0].exp() * (w * w).sum()

    problem = bilevel.Problem(inner, lambda w, h, b: ((w - b) ** 2).sum())
    optimizer = OPTIMIZERS[name]
    zeros, ones = torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    start = optimizer.init(zeros)
    found = bilevel.hypergradients.create("unrolled")(problem, optimizer, start, zeros[:, :3], [ones] * 3, ones)
    assert torch.equal(optimizer.params(found.state), zeros)
    assert torch.equal(found.hypergradient, zeros[:, :3])


def test_inputs_are_left_as_they_were() -> None:
    case, optimizer = CASES[0](3), OPTIMIZERS["wolfe"]
    state = optimizer.init(case.params)
    before = state.clone(), case.hyper.clone(), [map_batch(torch.clone, batch) for batch in case.batches]
    bilevel.hypergradients.create("unrolled")(
        case.problem, optimizer, state, case.hyper, case.batches, case.outer_batch
    )
    assert torch.equal(state, before[0])
    assert torch.equal(case.hyper, before[1])
    assert all(torch.equal(a, b) for a, b in zip(case.batches, before[2], strict=True))
