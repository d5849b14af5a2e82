"""The recurrent network as an optimizer: its steps and its hypergradients against dense Jacobians."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import reference
import torch
from analytic import analytic
from cases import CASES, SEEDS, Case

import bilevel
from bilevel.optimizers import LSTM

OPTIMIZERS = {
    "plain": LSTM(units=2, start=3, scale=0.3),
    "log_sign": LSTM(units=1, start=3, scale=0.3, preprocessing="log_sign"),
}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("unrolled", {}),
    ("checkpointed", {"snapshots": 2}),
    ("truncated", {"steps": 1}),
    ("drmad", {}),
    ("aggregated", {"gamma": 0.9}),
    ("forward", {}),
    ("complex_step", {}),
]


def extended(case: Case, size: int) -> Case:
    """The same losses, which see the first hyperparameters only; three, and weights of a network, come before them."""

    def seeing(loss: Any) -> Any:
        return lambda w, h, batch: loss(w, h[..., 3 + size :], batch)

    penalty = case.problem.inner_penalty
    if penalty is not None:
        assert isinstance(penalty, bilevel.penalties.L2)
        penalty = bilevel.penalties.L2(penalty.sizes, start=3 + size)
    draws = torch.Generator().manual_seed(7)
    weights = 0.5 * torch.randn(SEEDS, 3 + size, generator=draws, dtype=torch.float64)
    problem = bilevel.Problem(seeing(case.problem.inner_loss), seeing(case.problem.outer_loss), penalty)
    return replace(
        case,
        problem=problem,
        whole_inner_loss=seeing(case.whole_inner_loss),
        hyper=torch.cat([weights, case.hyper], -1),
    )


@cache
def references(make: Any, name: str) -> list[reference.Reference]:
    case = extended(make(3), OPTIMIZERS[name].size)
    return [reference.Reference(case.seed(seed), OPTIMIZERS[name]) for seed in range(SEEDS)]


@pytest.mark.parametrize(("make", "name"), [(CASES[0], "plain"), (CASES[0], "log_sign"), (CASES[1], "log_sign")])
def test_definition(make: Any, name: str) -> None:
    optimizer, refs = OPTIMIZERS[name], references(make, name)
    for method, chosen in METHODS:
        case = extended(analytic(make(3)) if method == "complex_step" else make(3), optimizer.size)
        result = bilevel.hypergradients.create(method, **chosen)(
            case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches, case.outer_batch
        )
        for seed, ref in enumerate(refs):
            expected = getattr(reference, method)(ref, **chosen)
            torch.testing.assert_close(result.state[seed].flatten(), ref.states[-1], rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(result.hypergradient[seed], expected, rtol=1e-9, atol=1e-11, msg=method)


def test_small_gradients_are_seen_through_their_logarithm() -> None:
    """Where they are so small that they are not, the step is continuous and the adjoint that of the other branch."""
    optimizer = OPTIMIZERS["log_sign"]
    draws = torch.Generator().manual_seed(0)
    hyper = torch.randn(1, 3 + optimizer.size, generator=draws, dtype=torch.float64)
    bound = float(torch.exp(torch.tensor(-10.0, dtype=torch.float64)))
    gradient = torch.tensor([[0.0, 0.3 * bound, -0.5 * bound, bound * (1 - 1e-9), bound * (1 + 1e-9), -2.0, 1e9]])
    gradient = gradient.double()
    taped = 0.5 * torch.randn(1, optimizer.slots, 7, generator=draws, dtype=torch.float64)
    after = optimizer.step(taped, gradient, hyper)[0]
    expected = torch.stack(reference.lstm(optimizer, 1, taped[0], gradient[0], hyper[0]))
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-9)
    cotangent = torch.randn(1, optimizer.slots, 7, generator=draws, dtype=torch.float64)
    found = optimizer.adjoint_(cotangent.clone(), taped, gradient, hyper, None)
    slopes = torch.autograd.functional.vjp(
        lambda g: torch.stack(reference.lstm(optimizer, 1, taped[0], g, hyper[0])), gradient[0], cotangent[0]
    )[1]
    torch.testing.assert_close(found[0], slopes, rtol=1e-6, atol=1e-9)


def test_coordinates_do_not_mix() -> None:
    optimizer = OPTIMIZERS["plain"]
    draws = torch.Generator().manual_seed(0)
    hyper = torch.randn(2, 3 + optimizer.size, generator=draws)
    state, gradient = torch.randn(2, optimizer.slots, 5, generator=draws), torch.randn(2, 5, generator=draws)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        optimizer.step(state[..., order], gradient[..., order], hyper),
        optimizer.step(state, gradient, hyper)[..., order],
        rtol=0,
        atol=1e-6,
    )


def test_too_few_hyperparameters() -> None:
    optimizer = OPTIMIZERS["plain"]
    state = optimizer.init(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="its 75 weights stand from entry 3 on, but there are 77 hyperparameters"):
        optimizer.step(state, torch.zeros(1, 5), torch.zeros(1, 77))
