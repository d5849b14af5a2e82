"""Numeric and forward hypergradients: what they refuse, what they cost, and where they could go wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from analytic import analytic
from cases import CASES, OPTIMIZERS, estimate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel.derivatives import Derivatives, PushForward
from bilevel.optimizers import Optimizer

QUADRATIC, SAMPLE_WEIGHTS, MLP = CASES[0], CASES[1], CASES[2]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov_learned", "adam", "adam_learned"])
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_complex_step_is_exact_up_to_rounding(make: Any, optimizer: str) -> None:
    case = analytic(make(4).seed(0))
    found = estimate("complex_step", OPTIMIZERS[optimizer], case)
    exact = estimate("unrolled", OPTIMIZERS[optimizer], case)
    scale = float(exact.hypergradient.abs().max())
    torch.testing.assert_close(found.hypergradient, exact.hypergradient, rtol=1e-12, atol=1e-13 * scale)
    assert torch.equal(found.state, exact.state)


def test_complex_step_in_single_precision() -> None:
    case = analytic(QUADRATIC(4))
    single = replace(
        case, params=case.params.float(), hyper=case.hyper.float(), batches=[b.float() for b in case.batches]
    )
    single = replace(single, outer_batch=case.outer_batch.float())
    found = estimate("complex_step", OPTIMIZERS["adam"], single).hypergradient
    exact = estimate("unrolled", OPTIMIZERS["adam"], case).hypergradient
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


ANALYTIC = analytic(QUADRATIC(2)).problem


def _absolute_value(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return (w.abs() ** 2).sum() + 0 * w.sum()


def _real_part(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return (w.real * w * h[0]).sum()


def _only_hyper_is_not(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return (w * w).sum() * h[0].abs().to(w.dtype) ** 2


def _real_valued(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return (w.abs() ** 2).sum()


def _comparison(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return torch.where(w > 0, w * w, w).sum() * h[0]


def _closed_over(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    return w @ torch.eye(5, dtype=torch.float64) @ w * h[0]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("which", ["inner", "outer"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (_absolute_value, "its derivative in complex arithmetic is not the real one"),
        (_real_part, "its derivative in complex arithmetic is not the real one"),
        (_only_hyper_is_not, "its derivative in complex arithmetic is not the real one"),
        (_real_valued, "it returned a real number"),
        (_comparison, "not implemented|not support"),
        (_closed_over, "dtype"),
    ],
)
def test_a_loss_that_is_not_analytic_is_refused(loss: Any, message: str, which: str, seeds: int) -> None:
    case = QUADRATIC(2)
    case = case.seed(0) if seeds == 1 else case
    problem = (
        bilevel.Problem(loss, ANALYTIC.outer_loss) if which == "inner" else bilevel.Problem(ANALYTIC.inner_loss, loss)
    )
    with pytest.raises(
        ValueError, match=f"the {which} loss does not work in complex arithmetic: .*({message})"
    ) as raised:
        estimate("complex_step", OPTIMIZERS["sgd"], replace(case, problem=problem))
    assert "use central_difference" in str(raised.value)


@pytest.mark.parametrize("make", [SAMPLE_WEIGHTS, MLP])
def test_operations_without_a_complex_form_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"the inner loss does not work in complex arithmetic: .*log_softmax"):
        estimate("complex_step", OPTIMIZERS["sgd"], make(2))


class _NoGradientOptimizer(Optimizer):
    @property
    def slots(self) -> int:
        return 1

    def advance_(self, derivatives: Any, state: Tensor, batch: Any) -> None:
        OPTIMIZERS["sgd"].advance_(derivatives, state, batch)

    def linearize(self, derivatives: Any, taped: Tensor, batch: Any) -> Any:
        return OPTIMIZERS["sgd"].linearize(derivatives, taped, batch)


@pytest.mark.parametrize("name", ["forward", "complex_step", "darts"])
def test_an_optimizer_that_is_not_of_one_gradient_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: needs an optimizer whose step .*got _NoGradientOptimizer"):
        estimate(name, _NoGradientOptimizer(), QUADRATIC(2))


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("central_difference", {"epsilon": 1e-5}),
        ("conjugate_gradient", {"iterations": 5, "tolerance": 0.0}),
        ("nystrom", {"rank": 2, "damping": 0.1}),
        ("neumann", {"terms": 2, "step_size": 0.1}),
        ("hyperdistill", {"gamma": 0.9}),
    ],
)
def test_any_optimizer_will_do_for_the_others(name: str, chosen: dict[str, Any]) -> None:
    case = QUADRATIC(3)
    found = estimate(name, _NoGradientOptimizer(), case, **chosen).hypergradient
    assert torch.equal(found, estimate(name, OPTIMIZERS["sgd"], case, **chosen).hypergradient)


@pytest.mark.parametrize(
    "optimizer", ["sgd_decay", "momentum_learned", "adam", "adam_uncorrected", "adam_first_gradient"]
)
@pytest.mark.parametrize("name", ["forward", "complex_step", "darts", "hyperdistill"])
def test_gradient_entries_that_are_exactly_zero(name: str, optimizer: str) -> None:
    """w₀ is unused; the gradient of w₁ is zero at λ and not beside it."""

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return (h[1] - 0.25) * w[1] + ((w[2:] - h[0] * b[2:]) ** 2).sum()

    def outer(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return (w * w).sum() + w[1]

    case = QUADRATIC(4).seed(0)
    params = case.params.clone()
    params[:2] = 0
    case = replace(
        case, problem=bilevel.Problem(inner, outer), params=params, hyper=torch.tensor([0.3, 0.25, 0.1]).double()
    )
    chosen = {
        "darts": {"epsilon": 1e-4},
        "hyperdistill": {"gamma": 0.0},
        "complex_step": {"epsilon": 1e-60},  # derivatives reach 1e16: a step of η/ε at the first sign of a gradient
    }.get(name, {})
    found = estimate(name, OPTIMIZERS[optimizer], case, **chosen)
    exact = estimate("unrolled" if name in ("forward", "complex_step") else "truncated", OPTIMIZERS[optimizer], case)
    assert torch.isfinite(exact.hypergradient).all()
    # the difference of DARTS rounds against the largest entry of v, which is 1e7 times the others
    rtol = 1e-3 if name == "darts" else 1e-9
    torch.testing.assert_close(found.hypergradient, exact.hypergradient, rtol=rtol, atol=1e-12)
    assert torch.equal(found.state, exact.state)


def test_darts_with_an_outer_loss_that_does_not_look_at_the_parameters() -> None:
    case = QUADRATIC(3)
    problem = bilevel.Problem(case.problem.inner_loss, lambda w, h, b: (h * h).sum())
    found = estimate("darts", OPTIMIZERS["momentum"], replace(case, problem=problem)).hypergradient
    torch.testing.assert_close(found, 2 * case.hyper)


@given(epsilon=st.floats(1e-4, 1e-1))
@settings(max_examples=15, deadline=None)
def test_the_error_of_darts_is_of_second_order(epsilon: float) -> None:
    case = MLP(3).seed(0)
    problem = CASES[4](3).seed(0).problem  # the mixed derivative varies with w
    case = replace(case, problem=problem)
    exact = estimate("truncated", OPTIMIZERS["momentum"], case).hypergradient

    def error(width: float) -> float:
        return float((estimate("darts", OPTIMIZERS["momentum"], case, epsilon=width).hypergradient - exact).norm())

    assert error(epsilon) <= 1e-2 * epsilon**2 + 1e-11 / epsilon


def test_costs() -> None:
    steps, case, optimizer = 6, QUADRATIC(6), OPTIMIZERS["momentum"]
    count = case.hyper.shape[-1]

    forward = estimate("forward", optimizer, case).cost
    assert (forward.hessian_products, forward.mixed_products) == ((steps - 1) * count, steps * count)
    assert (forward.gradients, forward.peak_states) == (steps + 1, count)
    central = estimate("central_difference", optimizer, case, epsilon=1e-5).cost
    assert (central.gradients, central.jvps) == ((2 * count + 1) * steps, 0)
    complex_step = estimate("complex_step", optimizer, analytic(case)).cost
    assert (complex_step.gradients, complex_step.jvps) == ((count + 1) * steps + 3, 2)
    darts = estimate("darts", optimizer, case).cost
    assert (darts.gradients, darts.jvps, darts.peak_states) == (steps + 3, 0, 0)
    distilled = estimate("hyperdistill", optimizer, case, gamma=0.9).cost
    assert (distilled.gradients, distilled.jvps, distilled.peak_states) == (steps + 2, 1, 1)


@pytest.mark.parametrize("make", [QUADRATIC, MLP, CASES[3]], ids=lambda make: make.__name__)
def test_directions_come_out_the_same_in_chunks(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(1)
    derivatives = Derivatives(case.problem, case.hyper)
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(5, *t.shape, generator=generator, dtype=t.dtype) for t in (case.params, case.hyper)]
    push = derivatives.push_forward(case.params, case.batches[0])
    whole = push.along(*along)
    monkeypatch.setattr(PushForward, "chunk", 2)
    torch.testing.assert_close(push.along(*along), whole, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(push.along(along[0]) + push.along(None, along[1]), whole, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="a direction in the parameters"):
        push.along()


@pytest.mark.parametrize("make", [MLP, CASES[3], CASES[4], QUADRATIC], ids=lambda make: make.__name__)
def test_the_gradient_over_the_hyperparameters(make: Any) -> None:
    case = make(1)
    found = Derivatives(case.problem, case.hyper).inner_hyper_gradient(case.params, case.batches[0])
    alone = case.seed(2)
    expected = torch.func.grad(alone.problem.inner_loss, 1)(alone.params, alone.hyper, alone.batches[0])
    torch.testing.assert_close(found[2], expected, rtol=1e-12, atol=1e-14)
