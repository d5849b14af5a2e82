"""Implicit hypergradients at minima, their warnings, and the distilled one's θ."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import cases
import pytest
import reference
import torch
from cases import CASES, MLP, OPTIMIZERS, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

import bilevel
from bilevel.hypergradients.conjugate_gradient import ConjugateGradientWarning, solve
from bilevel.hypergradients.hyperdistill import fit_theta

SGD = OPTIMIZERS["sgd"]
SAME = {"rtol": 1e-9, "atol": 1e-12}


def estimate(name: str, case: Case, optimizer: Any = SGD, **chosen: Any) -> bilevel.hypergradients.Estimate:
    return cases.estimate(name, optimizer, case, **chosen)


def at_minimum(seed: int) -> tuple[Case, Tensor]:
    """A case that starts where its one batch has its minimum, and the hypergradient there by the implicit theorem."""
    case = CASES[0](1).seed(seed)
    inner, (batch,) = case.problem.inner_loss, case.batches
    w = case.params.clone()
    for _ in range(20):  # Newton's method
        hessian = torch.func.hessian(inner)(w, case.hyper, batch)
        w = w - torch.linalg.solve(hessian, torch.func.grad(inner)(w, case.hyper, batch))
    mixed = torch.func.jacrev(torch.func.grad(inner), argnums=1)(w, case.hyper, batch)
    by_w, by_h = torch.func.grad(case.problem.outer_loss, argnums=(0, 1))(w, case.hyper, case.outer_batch)
    return replace(case, params=w, batches=[batch] * 3), by_h - torch.linalg.solve(hessian, by_w) @ mixed


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("conjugate_gradient", {"iterations": 20, "tolerance": 1e-12}),
        ("neumann", {"terms": 300, "step_size": 0.25}),
        ("neumann", {"terms": 300, "step_size": 0.2, "last_steps": 3}),
        ("nystrom", {"rank": 5, "damping": 1e-7}),
    ],
)
def test_the_implicit_function_theorem_at_a_minimum(name: str, chosen: dict[str, Any], optimizer: str) -> None:
    for seed in range(2):
        case, expected = at_minimum(seed)
        if optimizer == "adam":  # √v of rounding errors would carry it away from the minimum
            case = replace(case, batches=case.batches[:1])
        found = estimate(name, case, replace_rate(optimizer), **chosen).hypergradient
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-7} if name == "nystrom" or optimizer == "adam" else {"rtol": 1e-9, "atol": 1e-10}
        )
        torch.testing.assert_close(found, expected, **tolerance)


def replace_rate(optimizer: str) -> Any:
    """The optimizer, with Adam so slow that it stays at the minimum."""
    return bilevel.optimizers.Adam(learning_rate=1e-12) if optimizer == "adam" else OPTIMIZERS[optimizer]


def test_exact_inverses_agree_in_all_their_forms() -> None:
    """With all columns and all iterations both are (H + δ I)⁻¹."""
    case = CASES[0](3)
    full = estimate("nystrom", case, rank=5, damping=0.3).hypergradient
    solved = estimate("conjugate_gradient", case, iterations=5, tolerance=0.0, damping=0.3).hypergradient
    torch.testing.assert_close(full, solved, rtol=1e-9, atol=1e-10)


def spectrum(seed: int, values: list[float]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


@given(
    values=st.lists(st.lists(st.floats(0.1, 10), min_size=4, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_each_seed_is_solved_as_if_it_were_alone(values: list[list[float]], seed: int) -> None:
    matrices = torch.stack([spectrum(seed + i, v) for i, v in enumerate(values)])
    right = torch.randn(len(values), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    right[0] = 0  # solved before it starts

    def product(vector: Tensor) -> Tensor:
        return (matrices @ vector[..., None]).squeeze(-1)

    together = solve(product, right, 40, 1e-10)
    torch.testing.assert_close(together.value, torch.linalg.solve(matrices, right), rtol=1e-6, atol=1e-7)
    assert not together.negative.any()
    assert (together.residual <= 1e-10).all()
    for index in range(len(values)):
        alone = solve(lambda v, i=index: v @ matrices[i], right[index : index + 1], 40, 1e-10)
        torch.testing.assert_close(alone.value[0], together.value[index], rtol=1e-6, atol=1e-9)


def test_one_seed_does_not_spoil_another() -> None:
    matrices = torch.stack([spectrum(0, [1.0, 2, 3]), spectrum(1, [1.0, -2, 3]), spectrum(2, [1.0, 2, 3])])
    right = torch.ones(3, 3, dtype=torch.float64)
    right[2, 1] = torch.nan
    solution = solve(lambda v: (matrices @ v[..., None]).squeeze(-1), right, 10, 1e-12)
    torch.testing.assert_close(solution.value[0], torch.linalg.solve(matrices[0], right[0]))
    assert solution.negative.tolist() == [False, True, False]
    assert torch.isfinite(solution.value[1]).all()
    assert solution.value[2].isnan().all()


def saddle(coefficient: float, weights: list[float]) -> Case:
    case = CASES[0](1).seed(0)

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (torch.tensor(weights, dtype=w.dtype) * w * w).sum() + h[0] * w.sum()

    def outer(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return coefficient * w.sum() + h.sum()

    return replace(case, problem=bilevel.Problem(inner, outer))


def test_negative_curvature_is_noticed_and_damping_helps() -> None:
    case = saddle(1.0, [-3.0, 1, 1, 1, -1])
    with pytest.warns(ConjugateGradientWarning, match=r"negative or no curvature.*residual of 1.0e\+00.*gauss_newton"):
        found = estimate("conjugate_gradient", case, iterations=10).hypergradient
    torch.testing.assert_close(found, torch.ones_like(found))  # the first direction was one already
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        damped = estimate("conjugate_gradient", case, iterations=10, damping=4.0).hypergradient
    expected = 1 - (1 / (torch.tensor([-3.0, 1, 1, 1, -1]).double() + 4)).sum()
    assert float(damped[0]) == pytest.approx(float(expected), rel=1e-12)


def test_stopping_at_the_limit_is_said_with_the_residual() -> None:
    case = saddle(1.0, [1.0, 2, 3, 4, 5])
    with pytest.warns(ConjugateGradientWarning, match=r"relative residual \d\.\de-\d\d after 2 iterations, 1.0e-06"):
        estimate("conjugate_gradient", case, iterations=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate("conjugate_gradient", case, iterations=2, tolerance=0.0)  # a fixed number, as was asked for
        found = estimate("conjugate_gradient", case, iterations=2, tolerance=0.5)
        estimate("conjugate_gradient", saddle(0.0, [-1.0] * 5), iterations=2)  # nothing to solve
    assert found.cost.hessian_products <= 2


def test_it_stops_when_it_is_there() -> None:
    case = saddle(1.0, [1.0, 1, 1, 2, 2])
    cost = estimate("conjugate_gradient", case, iterations=50).cost
    assert (cost.hessian_products, cost.mixed_products, cost.peak_states) == (2, 1, 0)


def apart(case: Case) -> Case:
    """An MLP case with its model and its loss given apart."""

    def outputs(w: Tensor, h: Tensor, batch: Any) -> Tensor:
        p = MLP.split(w)
        return torch.tanh(batch[0] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def output_loss(logits: Tensor, h: Tensor, batch: Any) -> Tensor:
        return cross_entropy(logits, batch[1])

    return replace(case, problem=replace(case.problem, inner_outputs=outputs, inner_output_loss=output_loss))


@pytest.mark.parametrize("make", [CASES[2], CASES[3]], ids=lambda make: make.__name__)
def test_gauss_newton(make: Any) -> None:
    case = apart(make(2))
    found = estimate("conjugate_gradient", case, iterations=60, tolerance=1e-13, damping=0.1, curvature="gauss_newton")
    for seed in range(3):
        ref = reference.Reference(case.seed(seed), SGD)
        w, h, batch = ref.states[-1], ref.case.hyper, ref.case.batches[-1]
        problem = case.problem
        jacobian = torch.func.jacrev(problem.inner_outputs)(w, h, batch).flatten(0, 1)
        logits = problem.inner_outputs(w, h, batch)
        curvature = torch.func.hessian(problem.inner_output_loss)(logits, h, batch).reshape(2 * [logits.numel()])
        by_penalty = torch.func.hessian(ref.case.whole_inner_loss)(w, h, batch) - torch.func.hessian(
            problem.inner_loss
        )(w, h, batch)
        matrix = jacobian.T @ curvature @ jacobian + by_penalty
        assert torch.linalg.eigvalsh(matrix).min() > 0
        expected = reference.implicit(
            ref, lambda _, right, m=matrix: torch.linalg.solve(m + 0.1 * torch.eye(len(m), dtype=m.dtype), right)
        )
        torch.testing.assert_close(found.hypergradient[seed], expected, rtol=1e-9, atol=1e-10)
    alone = estimate(
        "conjugate_gradient", case.seed(1), iterations=60, tolerance=1e-13, damping=0.1, curvature="gauss_newton"
    )
    torch.testing.assert_close(alone.hypergradient, found.hypergradient[1], rtol=1e-9, atol=1e-12)


def test_gauss_newton_needs_the_model_and_its_loss_and_they_must_fit() -> None:
    chosen = {"iterations": 5, "curvature": "gauss_newton"}
    with pytest.raises(ValueError, match=r"need the model and its loss apart: give Problem\(inner_outputs="):
        estimate("conjugate_gradient", CASES[2](2), **chosen)
    case = apart(CASES[4](2))  # whose penalty is written into the inner loss
    with pytest.raises(ValueError, match="inner_output_loss of inner_outputs must be the inner loss"):
        estimate("conjugate_gradient", case, **chosen)


def test_nystrom_with_columns_that_depend_on_each_other() -> None:
    """The Hessian has rank one, and a parameter that the loss does not use."""
    case = CASES[0](1).seed(0)

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (w[:4].sum() - h.sum()) ** 2

    case = replace(case, problem=bilevel.Problem(inner, lambda w, h, b: w.sum()))
    found = estimate("nystrom", case, rank=5, damping=0.01).hypergradient
    torch.testing.assert_close(found, torch.full_like(found, 4 / 4.01), rtol=1e-9, atol=0)


def test_nystrom_draws_by_its_seed_and_refuses_too_many() -> None:
    case = CASES[2](2)
    first, again, other = (
        estimate("nystrom", case, rank=3, damping=0.1, seed=seed).hypergradient for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    with pytest.raises(ValueError, match="nystrom: rank 6 is more than the 5 parameters; set a rank of at most 5"):
        estimate("nystrom", CASES[0](1), rank=6, damping=0.1)
    assert estimate("nystrom", case, rank=3, damping=0.1).cost.hessian_products == 3


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("optimizer", ["momentum_decay", "adam", "nesterov_learned"])
@pytest.mark.parametrize("make", [CASES[0], CASES[1]], ids=lambda make: make.__name__)
def test_theta_is_the_least_squares_one(make: Any, optimizer: str, gamma: float) -> None:
    case, chosen = make(5), OPTIMIZERS[optimizer]
    state = chosen.init(case.params)
    found = fit_theta(case.problem, chosen, state, case.hyper, case.batches, case.outer_batch, gamma)
    for seed in range(3):
        expected = reference.fitted_theta(reference.Reference(case.seed(seed), chosen), gamma)
        torch.testing.assert_close(found[seed], expected, **SAME)
    assert torch.equal(state, chosen.init(case.params))


def test_theta_of_one_step_is_one_and_of_nothing_zero() -> None:
    case = CASES[1](1)
    arguments = (SGD, SGD.init(case.params), case.hyper, case.batches, case.outer_batch)
    torch.testing.assert_close(fit_theta(case.problem, *arguments, 0.9), torch.ones(3, dtype=torch.float64))
    constant = bilevel.Problem(case.problem.inner_loss, lambda w, h, b: h.sum())
    assert torch.equal(fit_theta(constant, *arguments, 0.9), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"one batch or more and gamma in \[0, 1\], got .* gamma 1.5"):
        fit_theta(case.problem, *arguments, 1.5)


@given(theta=st.floats(-3, 3), gamma=st.floats(0, 1), steps=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_laws_of_the_distilled_hypergradient(theta: float, gamma: float, steps: int) -> None:
    case = CASES[1](5).shortened(steps).seed(0)

    def of(**chosen: float) -> Tensor:
        return estimate("hyperdistill", case, **chosen).hypergradient  # this outer loss has no direct term

    last = estimate("truncated", case).hypergradient
    torch.testing.assert_close(of(gamma=0.0, theta=1.0), last, **SAME)
    torch.testing.assert_close(of(gamma=gamma, theta=theta), theta * of(gamma=gamma, theta=1.0), **SAME)
    if steps == 1:
        torch.testing.assert_close(of(gamma=gamma, theta=1.0), last, **SAME)
