"""The chain in fixed-point numbers comes back to the same bits, and its hypergradient is that of `unrolled`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from cases import CASES, OPTIMIZERS, SEEDS, Case, by_group
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import bilevel
from bilevel.fixed_point import OutOfRangeWarning
from bilevel.optimizers import SGD, Adam, Learned, Momentum, Optimizer
from bilevel.reversible_dynamics import ReversibleChain, fixed_point_distances, invert_float

MOMENTUM = {name: OPTIMIZERS[name] for name in ("momentum", "momentum_decay")} | {
    "momentum_rates": Momentum(learning_rate=Learned(0, steps=3), momentum=0.8, weight_decay=Learned(1, steps=2)),
    "momentum_rate": Momentum(learning_rate=Learned(0), momentum=0.99),
}
ADAM = {name: OPTIMIZERS[name] for name in ("adam", "adam_uncorrected", "adam_first_gradient", "adam_learned")} | {
    "adam_first_gradient_learned": Adam(
        learning_rate=Learned(0, steps=2), weight_decay=Learned(1), bias="first_gradient"
    ),
}
LEARNED_MOMENTUM = {
    "momentum_learned": OPTIMIZERS["momentum_learned"],
    "momentum_schedules": OPTIMIZERS["momentum_schedules"],
}
# velocities are resolved to 2^-44 = 6e-14; the root of Adam's average of squares to 2^-26 = 1.5e-8; learned momenta to
# 2^-21 = 5e-7
TOLERANCE = dict.fromkeys(MOMENTUM, 1e-10) | dict.fromkeys(ADAM, 1e-7) | dict.fromkeys(LEARNED_MOMENTUM, 1e-5)
INVERTIBLE = MOMENTUM | ADAM | LEARNED_MOMENTUM


def estimate(
    optimizer: Optimizer, case: Case, method: str = "reversible", **chosen: Any
) -> bilevel.hypergradients.Estimate:
    return bilevel.hypergradients.create(method, **chosen)(
        case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches, case.outer_batch
    )


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("make", CASES)
def test_hypergradient_is_that_of_the_definition(make: Any, name: str) -> None:
    case, optimizer = make(5), INVERTIBLE[name]
    result, tolerance = estimate(optimizer, case), TOLERANCE[name]
    for seed in range(SEEDS):
        ref = reference.Reference(case.seed(seed), optimizer)
        expected = reference.unrolled(ref)
        scale = float(expected.abs().max())
        torch.testing.assert_close(result.hypergradient[seed], expected, rtol=0, atol=tolerance * scale)
        large = max(1.0, float(ref.states[-1].abs().max()))  # some of these diverge
        torch.testing.assert_close(result.state[seed].flatten(), ref.states[-1], rtol=0, atol=tolerance * large)
        torch.testing.assert_close(result.outer_loss[seed], ref.outer(ref.case.hyper), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("momentum_groups", 1e-5), ("adam_groups", 1e-7)])
@pytest.mark.parametrize("make", CASES)
def test_settings_of_groups(make: Any, name: str, tolerance: float) -> None:
    case = make(5)
    optimizer = by_group(case)[name]
    found, expected = estimate(optimizer, case), estimate(optimizer, case, "unrolled")
    scale = float(expected.hypergradient.abs().max())
    torch.testing.assert_close(found.hypergradient, expected.hypergradient, rtol=0, atol=tolerance * scale)
    large = max(1.0, float(expected.state.abs().max()))
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=tolerance * large)
    arguments = case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches
    assert not fixed_point_distances(*arguments).any()


@pytest.mark.parametrize("name", MOMENTUM | ADAM)
def test_long_chains_stay_close_to_those_in_floating_point(name: str) -> None:
    case, optimizer = CASES[2](200), INVERTIBLE[name]
    found, expected = estimate(optimizer, case), estimate(optimizer, case, "unrolled")
    scale = float(expected.hypergradient.abs().max())
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=100 * TOLERANCE[name])
    torch.testing.assert_close(
        found.hypergradient, expected.hypergradient, rtol=0, atol=100 * TOLERANCE[name] * max(scale, 1)
    )


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", ["momentum_decay", "adam", "adam_first_gradient"])
@pytest.mark.parametrize("make", CASES)
def test_no_step_and_one_step(make: Any, name: str, steps: int) -> None:
    case = make(5).shortened(steps)
    found, expected = estimate(INVERTIBLE[name], case), estimate(INVERTIBLE[name], case, "unrolled")
    close = {"rtol": TOLERANCE[name], "atol": TOLERANCE[name]}
    torch.testing.assert_close(found.hypergradient, expected.hypergradient, **close)
    torch.testing.assert_close(found.state, expected.state, **close)
    # the one step is linearized on the way there
    assert found.cost.gradients == expected.cost.gradients - steps


@pytest.mark.parametrize("name", ["momentum_decay", "adam_learned"])
@pytest.mark.parametrize("make", CASES)
def test_a_seed_gives_the_same_alone_as_in_company(make: Any, name: str) -> None:
    case, optimizer = make(5), INVERTIBLE[name]
    together = estimate(optimizer, case)
    for seed in range(SEEDS):
        alone = estimate(optimizer, case.seed(seed))
        torch.testing.assert_close(together.hypergradient[seed], alone.hypergradient, rtol=1e-7, atol=TOLERANCE[name])
        torch.testing.assert_close(together.state[seed], alone.state, rtol=1e-7, atol=TOLERANCE[name])


@given(bits=st.integers(30, 50), steps=st.integers(1, 30), index=st.integers(0, len(CASES) - 1))
@settings(max_examples=20, deadline=None)
def test_error_is_of_the_order_of_the_resolution(bits: int, steps: int, index: int) -> None:
    case, optimizer = CASES[index](30).shortened(steps), OPTIMIZERS["momentum_decay"]
    found, expected = estimate(optimizer, case, fraction_bits=bits), estimate(optimizer, case, "unrolled")
    scale = float(expected.hypergradient.abs().max())
    bound = (50 + 10 * steps) * 2.0**-bits
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=bound + 1e-12)
    torch.testing.assert_close(
        found.hypergradient, expected.hypergradient, rtol=0, atol=(bound + 1e-12) * max(scale, 1)
    )


def gradient_of(params: Tensor, step: int) -> Tensor:
    """Of a bumpy function that changes from step to step; one entry stays at rest."""
    gradient = torch.sin(3 * params + step % 7) + 0.1 * params
    gradient[..., 0] = 0
    return gradient


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (Momentum(learning_rate=0.01, momentum=0.9, weight_decay=1e-3), torch.float64),
        (Adam(learning_rate=0.01, bias="first_gradient", weight_decay=1e-3), torch.float32),
    ],
)
def test_ten_thousand_steps_there_and_back(optimizer: Optimizer, kind: torch.dtype) -> None:
    steps, size = 10_000, 6
    params = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).to(kind)
    start = optimizer.init(params)
    chain = ReversibleChain(optimizer, start.new_zeros(2, 1), start)
    first = [integers.clone() for integers in chain.integers]
    middle: list[Tensor] = []
    for step in range(steps):
        params = chain.params()
        chain.advance_(params, gradient_of(params, step))
        if step == steps // 2 - 1:
            middle = [integers.clone() for integers in chain.integers]
    assert not chain.is_back_at(start)
    entropy = steps * -math.log2(0.9) if isinstance(optimizer, Momentum) else steps * -math.log2(0.9 * 0.999)
    assert entropy * size <= chain.bits <= (1.2 * entropy + 2 * 64) * size
    for step in reversed(range(steps)):
        chain.retreat_params_()
        params = chain.params()
        chain.retreat_averages_(params, gradient_of(params, step))
        if step == steps // 2:
            assert all(torch.equal(a, b) for a, b in zip(chain.integers, middle, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(chain.integers, first, strict=True))
    assert chain.is_back_at(start)
    assert chain.bits == 0


def test_long_chains_with_momenta_of_their_own_for_every_step_and_group() -> None:
    case, sizes = CASES[1](200), (5, 7)
    optimizer = Momentum(learning_rate=0.05, momentum=Learned(0, steps=6, scale="logit", sizes=sizes))
    case = replace(case, hyper=torch.linspace(-2, 4, 12, dtype=torch.float64).repeat(SEEDS, 1))
    found, expected = estimate(optimizer, case), estimate(optimizer, case, "unrolled")
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=1e-4)
    scale = float(expected.hypergradient.abs().max())
    torch.testing.assert_close(found.hypergradient, expected.hypergradient, rtol=0, atol=1e-4 * scale)
    arguments = case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches
    assert not fixed_point_distances(*arguments).any()


@pytest.mark.parametrize("name", MOMENTUM | ADAM)
def test_chain_in_fixed_point_comes_back_and_in_floating_point_does_not(name: str) -> None:
    case, optimizer = CASES[2](60), INVERTIBLE[name]
    arguments = case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches
    assert fixed_point_distances(*arguments).tolist() == [[0.0] * SEEDS] * 61
    distances = invert_float(*arguments)
    assert distances.shape == (61, SEEDS)
    assert distances[-1].tolist() == [0.0] * SEEDS
    assert (distances[0] > 0).all()
    assert distances[-4:].max() < 1e-10


def test_errors_of_the_inverse_in_floating_point_grow_by_the_factor() -> None:
    """Two hundred steps back multiply them by about 0.8^-200 = 2e19, less what the loss's curvature takes off."""
    case, optimizer = CASES[1](200), Momentum(learning_rate=1e-3, momentum=0.8)
    distances = invert_float(case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches)
    growth = (distances[50] / distances[150]).log() / 100
    torch.testing.assert_close(growth, torch.full_like(growth, -math.log(0.8)), rtol=0.1, atol=0)


def test_continues_from_a_state_that_is_not_the_first() -> None:
    case = CASES[2](6)
    for optimizer in (OPTIMIZERS["momentum"], OPTIMIZERS["adam"], OPTIMIZERS["adam_first_gradient"]):
        state = estimate(optimizer, case.shortened(3), "unrolled").state
        results = [
            bilevel.hypergradients.create(method)(
                case.problem, optimizer, state, case.hyper, case.batches[3:], case.outer_batch
            )
            for method in ("reversible", "unrolled")
        ]
        torch.testing.assert_close(results[0].hypergradient, results[1].hypergradient, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(results[0].state, results[1].state, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seeds", [None, 1, 4])
@pytest.mark.parametrize("name", ["momentum_decay", "adam_first_gradient"])
def test_single_precision(name: str, seeds: int | None) -> None:
    """A network of some size in float32, with a penalty per weight: its gradients are found again bit for bit."""
    layout, draws = bilevel.Layout({"w1": (40, 30), "b1": (40,), "w2": (5, 40)}), torch.Generator().manual_seed(0)

    def loss(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        p = layout.split(params)
        return cross_entropy(linear(torch.tanh(linear(batch[0], p["w1"], p["b1"])), p["w2"]), batch[1])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*([] if seeds is None else [seeds]), *shape, generator=draws)

    def labels() -> Tensor:
        return torch.randint(5, ([] if seeds is None else [seeds]) + [16], generator=draws)

    optimizer, problem = INVERTIBLE[name], bilevel.Problem(loss, loss, bilevel.penalties.L2())
    batches = [(draw(16, 30), labels()) for _ in range(50)]
    arguments = (
        problem,
        optimizer,
        optimizer.init(0.3 * draw(layout.size)),
        draw(layout.size) - 6,
        batches,
        batches[0],
    )
    found, expected = (bilevel.hypergradients.create(method)(*arguments) for method in ("reversible", "unrolled"))
    assert found.hypergradient.dtype == found.state.dtype == torch.float32
    torch.testing.assert_close(found.state, expected.state, rtol=1e-3, atol=1e-3)
    error = (found.hypergradient - expected.hypergradient).norm() / expected.hypergradient.norm()
    assert error < 1e-3


def test_cost() -> None:
    case, size = CASES[1](50), 12
    result = estimate(OPTIMIZERS["momentum"], case)
    assert (result.cost.gradients, result.cost.hessian_products, result.cost.mixed_products) == (100, 49, 50)
    assert result.cost.peak_states == 1
    assert 50 * math.log2(10 / 9) * size <= result.cost.bits <= (1.2 * 50 * math.log2(10 / 9) + 64) * size
    assert result.cost.bits == estimate(OPTIMIZERS["momentum"], case.seed(0)).cost.bits


def test_inputs_are_left_as_they_were() -> None:
    case, optimizer = CASES[0](5), OPTIMIZERS["adam"]
    state, hyper = optimizer.init(case.params), case.hyper.clone()
    before = state.clone()
    bilevel.hypergradients.create("reversible")(case.problem, optimizer, state, hyper, case.batches, case.outer_batch)
    assert torch.equal(state, before)
    assert torch.equal(hyper, case.hyper)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            SGD(learning_rate=0.1),
            "SGD: only steps of Momentum and Adam can be undone; .* such as unrolled or checkpointed",
        ),
        (Momentum(learning_rate=0.1, nesterov=True), "nesterov: .* set nesterov=False, or use a method"),
        (Momentum(learning_rate=0.1, momentum=0.0), "momentum: .* got 0.0; a factor of 0 forgets the past"),
        (Momentum(learning_rate=0.1, momentum=0.123456789), "momentum: .* n/d with d ≤ 10000, got 0.123456789"),
        (Adam(learning_rate=0.1, beta1=0.0), "beta1: .* got 0.0"),
        (Adam(learning_rate=0.1, beta2=0.99999), "beta2: .* got 0.99999"),
    ],
)
def test_optimizers_that_cannot_be_undone_are_refused(optimizer: Optimizer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(optimizer, CASES[0](2))


def test_range() -> None:
    case = CASES[0](300)
    with pytest.warns(
        OutOfRangeWarning, match=r"of seed . at step \d+: .* is out of range: .* choose fraction_bits=\d+ or less"
    ):
        lost = estimate(Momentum(learning_rate=5.0), case)
    assert all(part.isnan().all() for part in (lost.hypergradient, lost.outer_loss))
    adam = Adam(learning_rate=0.1, bias="first_gradient")
    with pytest.warns(OutOfRangeWarning, match=r"average of squares of seed .* choose square_fraction_bits=5"):
        estimate(adam, case, square_fraction_bits=60)
    assert estimate(adam, case, square_fraction_bits=50).state.isfinite().all()


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_seed_out_of_range_does_not_touch_the_others(name: str) -> None:
    case = CASES[0](20)
    whole, params = estimate(OPTIMIZERS[name], case), case.params.clone()
    params[1] = 1e7
    with pytest.warns(OutOfRangeWarning, match="parameters of seed 1 at step 0"):
        found = estimate(OPTIMIZERS[name], replace(case, params=params))
    for ours, expected in ((found.state, whole.state), (found.hypergradient, whole.hypergradient)):
        assert torch.equal(ours[[0, 2]], expected[[0, 2]])
        assert ours[1].isnan().any()
    assert found.outer_loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("fraction_bits", {"fraction_bits": 61}), ("square_fraction_bits", {"square_fraction_bits": 7})],
)
def test_settings_out_of_range(name: str, chosen: dict[str, int]) -> None:
    with pytest.raises(bilevel.hypergradients.SettingsError, match=f"{name}: input should be"):
        bilevel.hypergradients.create("reversible", **chosen)


def test_batches_that_change_are_noticed() -> None:
    case, draws = CASES[0](5), torch.Generator().manual_seed(0)

    class Changing(Sequence[Tensor]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: Any) -> Any:
            assert index < 5
            return torch.randn(SEEDS, 5, generator=draws, dtype=torch.float64)

    optimizer = OPTIMIZERS["momentum"]
    with pytest.raises(RuntimeError, match="batches must be the same each time they are asked for"):
        bilevel.hypergradients.create("reversible")(
            case.problem, optimizer, optimizer.init(case.params), case.hyper, Changing(), case.outer_batch
        )
