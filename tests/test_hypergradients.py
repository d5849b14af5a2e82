"""Every method against its definition, on every case, with every optimizer."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import cases
import pytest
import reference
import torch
from analytic import analytic
from cases import CASES, OPTIMIZERS, SEEDS, Case, by_group
from hypothesis import given, settings
from hypothesis import strategies as st

import bilevel
from bilevel.hypergradients import SettingsError

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("first_order", {}),
    ("unrolled", {}),
    ("checkpointed", {"snapshots": 2}),
    ("checkpointed", {"schedule": "tree"}),
    ("truncated", {"steps": 1}),
    ("truncated", {"steps": 3}),
    ("truncated", {"steps": 99}),
    ("drmad", {}),
    ("neumann", {"terms": 0, "last_steps": 1}),
    ("neumann", {"terms": 4, "last_steps": 3}),
    ("neumann", {"terms": 2, "last_steps": 99}),
    ("neumann", {"terms": 3, "last_steps": 2, "step_size": 0.2}),
    ("aggregated", {"gamma": 0.0}),
    ("aggregated", {"gamma": 0.9}),
    ("aggregated", {"gamma": 1.0}),
    ("forward", {}),
    ("central_difference", {"epsilon": 1e-5}),
    ("complex_step", {}),
    ("darts", {"epsilon": 0.01}),
    ("conjugate_gradient", {"iterations": 3, "tolerance": 0.0, "damping": 4.0}),
    ("nystrom", {"rank": 3, "damping": 0.5}),
    ("nystrom", {"rank": 5, "damping": 2.0, "seed": 7}),
    ("hyperdistill", {"gamma": 0.0, "theta": 1.0}),
    ("hyperdistill", {"gamma": 0.9, "theta": 0.7}),
    ("hyperdistill", {"gamma": 1.0, "theta": -2.0}),
]
BY_GROUP = [
    ("unrolled", {}),
    ("truncated", {"steps": 1}),
    ("drmad", {}),
    ("neumann", {"terms": 4, "last_steps": 3}),
    ("aggregated", {"gamma": 0.9}),
    ("forward", {}),
    ("complex_step", {}),
    ("darts", {"epsilon": 0.01}),
]
EXACT = [("unrolled", {}), ("checkpointed", {}), ("truncated", {"steps": 99}), ("forward", {})]
# these see nothing of the optimizer but the states it passes through
OUTSIDE = {"none", "first_order", "central_difference", "conjugate_gradient", "nystrom"}
COMBINATIONS = [
    (method, optimizer)
    for method in METHODS
    for optimizer in OPTIMIZERS
    if method[0] not in OUTSIDE or optimizer in ("sgd", "momentum_decay", "adam_learned")
]
# the difference of two numbers near 1, over 2e-5
TOLERANCES = {"central_difference": {"rtol": 1e-6, "atol": 1e-9}}
STEPS = 5


def label(value: Any) -> str | None:
    if isinstance(value, tuple):
        return "-".join([value[0], *(f"{k}={v}" for k, v in value[1].items())])
    return getattr(value, "__name__", None)


@cache
def reference_of(make: Any, optimizer: str, seed: int) -> reference.Reference:
    return reference.Reference(make(STEPS).seed(seed), OPTIMIZERS[optimizer])


@cache
def differences_of(make: Any, optimizer: str) -> torch.Tensor:
    """The hypergradient of the second seed, by the reference's outer losses alone."""
    return reference.central_difference(reference_of(make, optimizer, 1), epsilon=1e-5)


def estimate(method: tuple[str, dict[str, Any]], optimizer: Any, case: Case) -> bilevel.hypergradients.Estimate:
    if method[0] == "complex_step":
        case = analytic(case)
    return cases.estimate(method[0], optimizer, case, **method[1])


def test_every_method_is_tested() -> None:
    elsewhere = {"reversible"}  # in test_reversible.py: its resolution, and the optimizers that it takes
    assert {name for name, _ in METHODS} | elsewhere == set(bilevel.hypergradients.names())


@pytest.mark.parametrize("make", CASES, ids=label)
@pytest.mark.parametrize(("method", "optimizer"), COMBINATIONS, ids=label)
def test_definition(method: tuple[str, dict[str, Any]], make: Any, optimizer: str) -> None:
    case = make(STEPS)
    result = estimate(method, OPTIMIZERS[optimizer], case)
    for seed in range(SEEDS):
        ref = reference_of(make, optimizer, seed)
        expected = getattr(reference, method[0])(ref, **method[1])
        tolerance = TOLERANCES.get(method[0], {"rtol": 1e-9, "atol": 1e-12})
        torch.testing.assert_close(result.hypergradient[seed], expected, **tolerance)
        torch.testing.assert_close(result.state[seed].flatten(), ref.states[-1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(result.outer_loss[seed], ref.loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [CASES[0], CASES[1], CASES[3]], ids=label)
@pytest.mark.parametrize("optimizer", by_group(CASES[0](1)))
def test_definition_with_settings_of_groups(optimizer: str, make: Any) -> None:
    case = make(STEPS)
    chosen = by_group(case)[optimizer]
    refs = [reference.Reference(case.seed(seed), chosen) for seed in range(SEEDS)]
    for method in BY_GROUP:
        result = estimate(method, chosen, case)
        for seed, ref in enumerate(refs):
            expected = getattr(reference, method[0])(ref, **method[1])
            torch.testing.assert_close(result.hypergradient[seed], expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(result.state[seed].flatten(), ref.states[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("make", CASES, ids=label)
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_no_step_and_one_step(method: tuple[str, dict[str, Any]], make: Any, steps: int) -> None:
    case = make(STEPS).shortened(steps).seed(0)
    ref = reference.Reference(case, OPTIMIZERS["momentum_decay"])
    result = estimate(method, OPTIMIZERS["momentum_decay"], case)
    expected = getattr(reference, method[0])(ref, **method[1])
    tolerance = TOLERANCES.get(method[0], {"rtol": 1e-9, "atol": 1e-12})
    torch.testing.assert_close(result.hypergradient, expected, **tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", CASES, ids=label)
@pytest.mark.parametrize("method", EXACT, ids=label)
def test_exact_methods_agree_with_central_differences(method: Any, make: Any, optimizer: str) -> None:
    result = estimate(method, OPTIMIZERS[optimizer], make(STEPS).seed(1))
    torch.testing.assert_close(result.hypergradient, differences_of(make, optimizer), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", CASES, ids=label)
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_seed_gives_the_same_alone_as_in_company(method: Any, make: Any) -> None:
    case, optimizer = make(STEPS), OPTIMIZERS["momentum_decay"]
    together = estimate(method, optimizer, case)
    for seed in range(SEEDS):
        alone = estimate(method, optimizer, case.seed(seed))
        # a difference over 2e-5 magnifies the rounding in which the two may differ
        tolerance = TOLERANCES.get(method[0], {"rtol": 1e-12, "atol": 1e-14})
        torch.testing.assert_close(together.hypergradient[seed], alone.hypergradient, **tolerance)
        torch.testing.assert_close(together.state[seed], alone.state, rtol=1e-12, atol=1e-14)
        assert alone.hypergradient.shape == case.hyper.shape[1:]
        assert alone.outer_loss.shape == ()


@pytest.mark.parametrize("make", CASES, ids=label)
def test_inputs_are_left_as_they_were(make: Any) -> None:
    case, optimizer = make(STEPS), OPTIMIZERS["momentum_decay"]
    state = optimizer.init(case.params)
    before = state.clone(), case.hyper.clone()
    for name, chosen in METHODS:
        problem = (analytic(case) if name == "complex_step" else case).problem
        bilevel.hypergradients.create(name, **chosen)(
            problem, optimizer, state, case.hyper, case.batches, case.outer_batch
        )
        assert torch.equal(state, before[0])
        assert torch.equal(case.hyper, before[1])


@given(gamma=st.floats(0, 1), steps=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_laws_that_tie_methods_together(gamma: float, steps: int) -> None:
    case, optimizer = CASES[1](6).shortened(steps).seed(0), OPTIMIZERS["momentum"]

    def of(name: str, **chosen: Any) -> torch.Tensor:
        return estimate((name, chosen), optimizer, case).hypergradient

    same = {"rtol": 1e-10, "atol": 1e-14}
    torch.testing.assert_close(of("truncated", steps=steps), of("unrolled"), **same)
    torch.testing.assert_close(of("aggregated", gamma=0.0), of("truncated", steps=1), **same)
    torch.testing.assert_close(of("neumann", terms=0), of("truncated", steps=1), **same)
    # the aggregate is a polynomial in γ: its value at γ follows from the greedy terms of shorter runs
    shorter = [
        estimate(("truncated", {"steps": 1}), optimizer, case.shortened(t)).hypergradient for t in range(1, steps + 1)
    ]
    expected = sum(gamma ** (steps - t) * shorter[t - 1] for t in range(1, steps + 1))
    torch.testing.assert_close(of("aggregated", gamma=gamma), expected, **same)


def test_neumann_converges_to_the_implicit_hypergradient() -> None:
    """At the minimum of a fixed batch, ∂L₂/∂λ − ∂²L₁/∂λ∂w (∂²L₁/∂w∂w)⁻¹ ∂L₂/∂w, with and without momentum."""
    case = CASES[0](1).seed(0)
    inner, outer = case.problem.inner_loss, case.problem.outer_loss
    (batch,) = case.batches
    w = case.params.clone()
    for _ in range(20):  # Newton's method
        hessian = torch.func.hessian(inner)(w, case.hyper, batch)
        w = w - torch.linalg.solve(hessian, torch.func.grad(inner)(w, case.hyper, batch))
    mixed = torch.func.jacrev(torch.func.grad(inner), argnums=1)(w, case.hyper, batch)
    by_w, by_h = torch.func.grad(outer, argnums=(0, 1))(w, case.hyper, case.outer_batch)
    expected = by_h - torch.linalg.solve(torch.func.hessian(inner)(w, case.hyper, batch), by_w) @ mixed
    for name in ("sgd", "momentum"):
        optimizer = OPTIMIZERS[name]
        for last_steps in (1, 4):
            result = bilevel.hypergradients.create("neumann", terms=1500, last_steps=last_steps)(
                case.problem, optimizer, optimizer.init(w), case.hyper, [batch] * 5, case.outer_batch
            )
            torch.testing.assert_close(result.hypergradient, expected, rtol=1e-9, atol=1e-10)


def test_costs_are_those_of_the_deck() -> None:
    case, optimizer = CASES[1](50).seed(0), OPTIMIZERS["momentum"]
    jvps = {
        ("truncated", 1): estimate(("truncated", {"steps": 1}), optimizer, case).cost.jvps,
        ("drmad",): estimate(("drmad", {}), optimizer, case).cost.jvps,
        ("unrolled",): estimate(("unrolled", {}), optimizer, case).cost.jvps,
        ("neumann", 9, 5): estimate(("neumann", {"terms": 9, "last_steps": 5}), optimizer, case).cost.jvps,
        ("neumann", 4, 10): estimate(("neumann", {"terms": 4, "last_steps": 10}), optimizer, case).cost.jvps,
        ("aggregated",): estimate(("aggregated", {"gamma": 0.99}), optimizer, case).cost.jvps,
        ("none",): estimate(("none", {}), optimizer, case).cost.jvps,
    }
    assert list(jvps.values()) == [1, 99, 99, 50, 50, 50, 0]
    assert estimate(("unrolled", {}), optimizer, case).cost.peak_states == 50
    assert estimate(("drmad", {}), optimizer, case).cost.peak_states == 2
    assert estimate(("aggregated", {"gamma": 0.9}), optimizer, case).cost.gradients == 100


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_ten_seeds_call_the_losses_as_often_as_one(method: tuple[str, dict[str, Any]]) -> None:
    """What a small problem costs is the number of calls: a batch of seeds shares it."""
    if method[0] == "complex_step":
        pytest.skip("runs with losses of its own")
    case, calls = CASES[1](4), []

    def counted(w: torch.Tensor, h: torch.Tensor, batch: Any) -> torch.Tensor:
        calls.append(1)
        return case.problem.inner_loss(w, h, batch)

    problem = bilevel.Problem(counted, case.problem.outer_loss)
    optimizer = OPTIMIZERS["momentum"]
    found = []
    for chosen in (case.seed(0), case):
        calls.clear()
        bilevel.hypergradients.create(method[0], **method[1])(
            problem, optimizer, optimizer.init(chosen.params), chosen.hyper, chosen.batches, chosen.outer_batch
        )
        found.append(len(calls))
    assert found[0] == found[1] > 0


def test_batches_may_be_made_when_asked_for() -> None:
    case, optimizer = CASES[1](STEPS).seed(0), OPTIMIZERS["sgd"]

    class Lazy(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return case.batches[index].clone()

    lazy = Lazy([None] * STEPS)
    result = bilevel.hypergradients.create("unrolled")(
        case.problem, optimizer, optimizer.init(case.params), case.hyper, lazy, case.outer_batch
    )
    assert torch.equal(result.hypergradient, estimate(("unrolled", {}), optimizer, case).hypergradient)


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("newton", {}, "unknown method 'newton'; there are aggregated"),
        ("aggregated", {}, "gamma: this key is required"),
        ("aggregated", {"gamma": 1.5}, "gamma: input should be less than or equal to 1, got 1.5"),
        ("aggregated", {"gamma": 0.9, "beta": 1}, "beta: unknown key"),
        ("aggregated", {"gamma": "1e-3"}, "write 1.0e-03, with a point"),
        ("truncated", {"steps": 0}, "steps: input should be greater than or equal to 1, got 0"),
        ("truncated", {"steps": 1.5}, "steps: input should be a valid integer"),
    ],
)
def test_wrong_settings_name_key_value_and_what_is_allowed(name: str, chosen: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        bilevel.hypergradients.create(name, **chosen)


def test_wrong_shapes_say_what_was_expected() -> None:
    case, optimizer = CASES[0](2), OPTIMIZERS["momentum"]
    method = bilevel.hypergradients.create("unrolled")
    with pytest.raises(ValueError, match=r"state: expected shape \(2, P\)"):
        method(case.problem, optimizer, case.params, case.hyper, case.batches, case.outer_batch)
    with pytest.raises(ValueError, match=r"hyper: expected shape \(3, H\)"):
        method(
            case.problem,
            optimizer,
            optimizer.init(case.params),
            case.hyper[0],
            case.batches,
            case.outer_batch,
        )
    vector_loss = bilevel.Problem(lambda w, h, b: w, case.problem.outer_loss)
    for batched in (case, case.seed(0)):
        with pytest.raises(ValueError, match="a loss must return one number a seed, as a tensor"):
            method(
                vector_loss,
                optimizer,
                optimizer.init(batched.params),
                batched.hyper,
                batched.batches,
                batched.outer_batch,
            )


def test_drmad_reads_the_schedule_of_each_step() -> None:
    """Where the parameters hardly move the line is the chain, so that DrMAD is exact, and schedules must agree too."""
    steps = 49

    def inner(w: torch.Tensor, h: torch.Tensor, batch: Any) -> torch.Tensor:
        return (batch * w).sum()  # no curvature: the Jacobians do not depend on the point

    def outer(w: torch.Tensor, h: torch.Tensor, batch: Any) -> torch.Tensor:
        return 0.5 * (w - 3).square().sum()

    problem = bilevel.Problem(inner, outer)
    optimizer = bilevel.optimizers.SGD(learning_rate=bilevel.optimizers.Learned(0, steps=steps, scale="log"))
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, generator=draws, dtype=torch.float64) for _ in range(steps)]
    hyper = torch.linspace(-3, -1, steps, dtype=torch.float64)
    state = optimizer.init(torch.zeros(4, dtype=torch.float64))
    found, exact = (
        bilevel.hypergradients.create(name)(problem, optimizer, state, hyper, batches, None)
        for name in ("drmad", "unrolled")
    )
    torch.testing.assert_close(found.hypergradient, exact.hypergradient, rtol=1e-12, atol=0)


def test_drmad_refuses_an_optimizer_with_a_memory_that_has_no_points_between() -> None:
    case = CASES[0](3)
    for inner in (
        bilevel.optimizers.Until(OPTIMIZERS["sgd"], gradient_norm=1e-3),
        bilevel.optimizers.LBFGS(bilevel.optimizers.Fixed(0.1)),
    ):
        with pytest.raises(ValueError, match="drmad: needs an optimizer whose step is a function of one gradient"):
            bilevel.hypergradients.create("drmad")(
                case.problem, inner, inner.init(case.params), case.hyper, case.batches, case.outer_batch
            )


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_seed_that_is_not_finite_leaves_the_others_alone(method: tuple[str, dict[str, Any]]) -> None:
    case = CASES[0](3)
    params = case.params.clone()
    params[1] = torch.nan
    found = estimate(method, OPTIMIZERS["momentum"], dataclasses.replace(case, params=params))
    expected = estimate(method, OPTIMIZERS["momentum"], case)
    others = [index for index in range(SEEDS) if index != 1]
    assert torch.equal(found.hypergradient[others], expected.hypergradient[others])
    assert torch.isfinite(found.hypergradient[others]).all()


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_no_hyperparameters(method: tuple[str, dict[str, Any]]) -> None:
    def loss(w: torch.Tensor, h: torch.Tensor, batch: Any) -> torch.Tensor:
        return 0.5 * (w - 1).square().sum()

    optimizer = OPTIMIZERS["momentum"]
    state = optimizer.init(torch.zeros(5, dtype=torch.float64))
    found = bilevel.hypergradients.create(method[0], **method[1])(
        bilevel.Problem(loss, loss), optimizer, state, torch.zeros(0, dtype=torch.float64), [None] * 3, None
    )
    assert found.hypergradient.shape == (0,)
    assert float(found.outer_loss) < 2.5
