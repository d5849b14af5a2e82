"""Flat parameters, and modules as functions of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

import bilevel
from bilevel.derivatives import Derivatives


def test_layout_splits_and_joins() -> None:
    layout = bilevel.Layout({"a": (2, 3), "b": (), "c": (4,)})
    flat = torch.arange(2 * 11.0).view(2, 11)
    parts = layout.split(flat)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {"a": (2, 2, 3), "b": (2,), "c": (2, 4)}
    assert torch.equal(layout.join(layout.split(flat[1])), flat[1])
    with pytest.raises(ValueError, match="expected a last axis of 11 entries"):
        layout.split(flat[:, 1:])
    with pytest.raises(ValueError, match="expected tensors named"):
        layout.join({"a": flat})
    with pytest.raises(ValueError, match=r"a: expected shape \(2, 3\)"):
        layout.join({**layout.split(flat[0]), "a": flat})


def test_functional_is_the_module_at_given_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    layout, forward = bilevel.functional(module)
    params = layout.join({name: p.detach() for name, p in module.named_parameters()})
    x = torch.randn(6, 3, dtype=torch.float64)
    first = forward(params, x)
    torch.testing.assert_close(first, module(x))
    assert torch.equal(forward(params, x), first)  # no running statistics
    assert module[1].num_batches_tracked == 1  # the original goes on as it was
    both = torch.func.vmap(forward)(torch.stack([params, params]), torch.stack([x, x]))
    torch.testing.assert_close(both[1], first)


def test_functional_refuses_dropout() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="dropout draws random numbers"):
        bilevel.functional(module)
    bilevel.functional(module.eval())
    with pytest.raises(ValueError, match="dropout draws random numbers"):
        bilevel.functional(nn.LSTM(4, 4, 2, dropout=0.5))


def test_functional_forgets_what_a_module_writes_into_its_buffers() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return (self.weight * x).sum() * self.seen

    _, forward = bilevel.functional(Counting())
    assert [forward(torch.ones(2), torch.ones(2)).item() for _ in range(3)] == [2.0, 2.0, 2.0]


def test_methods_work_without_grad_mode_on_named_batches_and_constant_losses() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    problem = bilevel.Problem(
        lambda w, h, b: ((w * b.x - b.y) ** 2).sum() * h.exp().sum(), lambda w, h, b: torch.ones(())
    )
    optimizer = bilevel.optimizers.Momentum(learning_rate=0.1)
    state, batch = optimizer.init(torch.ones(2)).requires_grad_(), Pair(torch.ones(2), torch.zeros(2))
    for name in ("unrolled", "drmad", "none"):
        with torch.no_grad():
            estimate = bilevel.hypergradients.create(name)(problem, optimizer, state, torch.zeros(1), [batch] * 2, None)
        assert torch.equal(estimate.hypergradient, torch.zeros(1))


def test_functional_module_through_a_method() -> None:
    layout, forward = bilevel.functional(nn.Linear(3, 1).double())

    def loss(w: torch.Tensor, h: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ((forward(w, batch[0]) - batch[1]) ** 2).mean()

    problem = bilevel.Problem(loss, loss, bilevel.penalties.L2([layout.size]))
    optimizer = bilevel.optimizers.SGD(learning_rate=0.1)
    draws = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(5, 3, generator=draws, dtype=torch.float64),
        torch.randn(5, 1, generator=draws, dtype=torch.float64),
    )
    state = optimizer.init(torch.zeros(layout.size, dtype=torch.float64))

    def outer(h: torch.Tensor) -> float:
        method = bilevel.hypergradients.create("none")
        return method(problem, optimizer, state, h, [batch] * 10, batch).outer_loss.item()

    hyper = torch.zeros(1, dtype=torch.float64)
    estimate = bilevel.hypergradients.create("unrolled")(problem, optimizer, state, hyper, [batch] * 10, batch)
    numeric = (outer(hyper + 1e-6) - outer(hyper - 1e-6)) / 2e-6
    assert estimate.hypergradient.item() == pytest.approx(numeric, rel=1e-6)


def test_losses_that_do_not_depend_on_something_have_zero_derivatives() -> None:
    problem = bilevel.Problem(lambda w, h, b: (w * b).sum(), lambda w, h, b: (h * h).sum())
    derivatives = Derivatives(problem, torch.ones(1, 2))
    outer = derivatives.outer_gradient(torch.ones(1, 3), None)
    assert torch.equal(outer.params, torch.zeros(1, 3))
    assert torch.equal(outer.hyper, torch.full((1, 2), 2.0))
    inner = derivatives.linearize(torch.ones(1, 3), torch.ones(1, 3))
    to = torch.zeros(1, 2)
    inner.add_products(torch.ones(1, 3), None, to)
    assert torch.equal(to, torch.zeros(1, 2))


def test_penalty_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match="2 coefficients from index 0 do not fit 1 hyperparameters"):
        bilevel.penalties.L2([3, 4]).at(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="coefficients for 7 weights, but 8 parameters"):
        bilevel.penalties.L2([3, 4]).at(torch.zeros(1, 2)).value(torch.zeros(1, 8))
    values = bilevel.penalties.L2([3, 4]).at(torch.zeros(1, 2)).value(torch.ones(1, 7))
    assert torch.equal(values, torch.tensor([3.5]))
