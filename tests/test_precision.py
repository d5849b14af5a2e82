"""Adam where its derivative is delicate: gradients of exactly zero, gradients near ε, single precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import bilevel
from bilevel.derivatives import Derivatives

LAYOUT = bilevel.Layout({"w1": (128, 784), "b1": (128,), "w2": (10, 128), "b2": (10,)})


def loss(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    p = LAYOUT.split(params)
    return cross_entropy(linear(torch.tanh(linear(batch[0], p["w1"], p["b1"])), p["w2"], p["b2"]), batch[1])


def hypergradient(dtype: torch.dtype, steps: int, method: str = "unrolled") -> Tensor:
    draws = torch.Generator().manual_seed(0)
    batches: list[Any] = [
        (torch.randn(64, 784, generator=draws).to(dtype), torch.randint(10, (64,), generator=draws))
        for _ in range(steps)
    ]
    params = (torch.randn(LAYOUT.size, generator=draws) * 0.03).to(dtype)
    hyper = torch.full((LAYOUT.size,), -6.0, dtype=dtype)
    problem = bilevel.traced(bilevel.Problem(loss, loss, bilevel.penalties.L2()))
    optimizer = bilevel.optimizers.Adam(learning_rate=1e-3)
    state = optimizer.init(params)
    found = bilevel.hypergradients.create(method)(problem, optimizer, state, hyper, batches, batches[0])
    return found.hypergradient.double()


@pytest.mark.parametrize("method", ["unrolled", "checkpointed"])
def test_adam_in_single_precision_is_within_one_percent_at_its_default_epsilon(method: str) -> None:
    expected = hypergradient(torch.float64, 200)
    error = (hypergradient(torch.float32, 200, method) - expected).abs().max() / expected.abs().max()
    assert error < 1e-3, f"{error:.1e}"


def test_without_double_precision_for_the_delicate_step_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hypergradient(torch.float64, 5)
    good = (hypergradient(torch.float32, 5) - expected).abs().max() / expected.abs().max()
    monkeypatch.setattr(bilevel.optimizers.Adam, "is_sensitive", lambda *_: False)
    bad = (hypergradient(torch.float32, 5) - expected).abs().max() / expected.abs().max()
    assert good < 1e-3
    assert bad > 10 * good


def test_a_loss_with_a_tensor_of_its_own_is_differentiated_in_its_own_precision() -> None:
    matrix = torch.eye(3)

    def own(w: Tensor, h: Tensor, batch: None) -> Tensor:
        return ((matrix @ w) ** 2).sum()

    derivatives = Derivatives(bilevel.Problem(own, own), torch.zeros(1, 1))
    assert derivatives.precise_gradient(torch.ones(1, 3), None).dtype == torch.float32


@pytest.mark.parametrize("bias", ["corrected", "uncorrected", "first_gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("unrolled", {}),
        ("checkpointed", {}),
        ("forward", {}),
        ("truncated", {"steps": 1}),
        ("drmad", {}),
        ("neumann", {"terms": 2}),
        ("aggregated", {"gamma": 0.9}),
        ("darts", {}),
        ("hyperdistill", {"gamma": 0.9}),
        ("reversible", {}),
    ],
)
def test_no_nan_where_gradient_entries_are_exactly_zero(
    method: str, settings: dict[str, Any], dtype: torch.dtype, bias: Any
) -> None:
    """Inputs that are always zero: their weights never see a gradient, and their hypergradient is zero."""
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[:, 2:4] = 0
    labels = torch.arange(8) % 2

    def own(w: Tensor, h: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(batch[0] * h.exp() @ w.view(6, 2), batch[1])

    batches = [(features, labels)] * 6
    optimizer = bilevel.optimizers.Adam(learning_rate=0.01, bias=bias)
    state = optimizer.init(torch.full((12,), 0.1, dtype=dtype))
    problem = bilevel.Problem(own, own)
    hyper = torch.zeros(6, dtype=dtype)
    found = bilevel.hypergradients.create(method, **settings)(problem, optimizer, state, hyper, batches, batches[0])
    assert torch.isfinite(found.hypergradient).all()
    assert found.hypergradient[2:4].tolist() == [0.0, 0.0]
    assert found.hypergradient.abs().max() > 0
