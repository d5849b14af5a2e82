"""Recorded derivatives against the same derivatives by autograd at each call."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from cases import CASES, OPTIMIZERS, SEEDS
from test_hypergradients import METHODS, estimate, label
from torch import Tensor
from torch.nn.functional import linear

import bilevel
from bilevel.derivatives import Derivatives, Replayed
from bilevel.tracing import Unrecordable, _made


def recorded(case: Any) -> Any:
    from dataclasses import replace

    return replace(case, problem=bilevel.traced(case.problem))


@pytest.fixture(autouse=True)
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Unrecordable)
        yield


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "together"])
@pytest.mark.parametrize("make", CASES, ids=label)
def test_every_method_gives_the_same(make: Any, alone: bool) -> None:
    case = make(4).seed(1) if alone else make(4)
    traced = recorded(case)
    optimizer = OPTIMIZERS["momentum_decay"]
    for method in METHODS:
        expected, found = estimate(method, optimizer, case), estimate(method, optimizer, traced)
        torch.testing.assert_close(found.hypergradient, expected.hypergradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.state, expected.state, rtol=1e-11, atol=1e-13)


def test_adam_and_learned_settings_give_the_same() -> None:
    for name in ("adam", "momentum_learned", "nesterov_learned", "sgd_learned"):
        case = CASES[2](4).seed(0)
        for method in (("unrolled", {}), ("aggregated", {"gamma": 0.9})):
            expected = estimate(method, OPTIMIZERS[name], case).hypergradient
            found = estimate(method, OPTIMIZERS[name], recorded(case)).hypergradient
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_products_that_share_what_the_gradient_computed_are_the_same_as_those_that_do_not() -> None:
    case = recorded(CASES[2](1))
    derivatives = Derivatives(case.problem, case.hyper)
    vector = torch.randn(SEEDS, case.params.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for look in (True, False):
        inner = derivatives.linearize(case.params, case.batches[0])
        assert isinstance(inner, Replayed)
        if look:
            assert inner.gradient.shape == case.params.shape
            inner.forget_gradient()
        to = torch.zeros_like(case.params), torch.zeros_like(case.hyper)
        inner.add_products(vector, *to)
        inner.add_products(vector, to[0], None)
        inner.add_products(vector, None, to[1])
        found.append(to)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
    assert derivatives.kept_bytes(case.params, case.batches[0])


def network(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Layers, a concatenation of overlapping parts, and weights used more than once: sums of many kinds."""
    first, second, bias = params[:30].view(5, 6), params[30:78].view(12, 4), params[78:]
    hidden = torch.tanh(batch[0] @ first + hyper.sum() * (batch[0] @ first.square()))
    pairs = torch.cat([hidden, hidden[:, 1:4], hidden[:, 3:]], dim=1)
    values = torch.tanh(pairs @ second + bias) + hidden[:, :4] * bias
    return (values - batch[1]).square().mean() + (linear(values, second[:4]) * hyper[0]).pow(3).sum()


@pytest.mark.parametrize("seeds", [1, 2])
def test_sums_and_products_in_one_operation_are_the_same(seeds: int) -> None:
    draws = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(seeds, *shape, generator=draws, dtype=torch.float64)

    params, hyper, batch, vector = draw(82), draw(2), (draw(7, 5), draw(7, 4)), draw(82)
    problem, found = bilevel.Problem(network, network), []
    for each in (problem, bilevel.traced(problem)):
        derivatives = Derivatives(each, hyper)
        inner = derivatives.linearize(params, batch)
        assert isinstance(inner, Replayed) == (each is not problem)
        to = torch.ones_like(params), torch.ones_like(hyper)
        inner.add_products(vector, *to)  # before the gradient is asked for, and after
        found.append((inner.gradient, *to, derivatives.repeatable_gradient(params, batch)))
        inner.add_products(vector, *to)
    for expected, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, expected, rtol=1e-12, atol=1e-14)


def test_what_is_made_one_operation() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b, c, d, e = (torch.randn(4, 4, generator=draws, dtype=torch.float64) for _ in range(5))
    padded = torch.ops.aten.slice_backward

    def function(w: Tensor, h: Tensor, *rest: Tensor) -> list[Tensor]:
        x, y, z = rest
        parts = padded(x[:, 1:], (4, 6), 1, 3, 9, 1) + padded(y[:, :2], (4, 6), 1, 0, 2, 1)
        return [
            w @ h + x * y,  # a product that is added
            (w @ x).t() + (h @ y).t() + z.t(),
            parts + padded(z[:, 1:2], (4, 6), 1, 2, 3, 1),  # next to each other
            padded(x[:, 1:], (4, 6), 1, 2, 5, 1) + padded(y, (4, 6), 1, 0, 4, 1),  # one upon the other
            padded(x[:, 1:], (4, 6), 1, 3, 6, 1) + padded(y[:, 2:], (4, 6), 1, 0, 3, 2),  # with gaps
        ]

    module = _made(function, [a, b, c, d, e])
    for found, expected in zip(module(a, b, c, d, e), function(a, b, c, d, e), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
        assert found.is_contiguous() == expected.is_contiguous()
    targets = [node.target for node in module.graph.nodes]
    aten = torch.ops.aten
    assert [targets.count(op.default) for op in (aten.addmm, aten.addcmul, aten.cat)] == [1, 1, 1]
    assert targets.count(aten.add.Tensor) == 3  # z to the sum of products, and the two that do not fit


def test_a_recording_is_made_once_for_each_shape() -> None:
    calls = []

    def loss(w: Any, h: Any, batch: Any) -> Any:
        calls.append(batch.shape)
        return ((batch @ w) ** 2).mean() + h.sum() * w.sum()

    problem = bilevel.traced(bilevel.Problem(loss, loss))
    optimizer = bilevel.optimizers.SGD(learning_rate=0.01)
    state, hyper = optimizer.init(torch.ones(3)), torch.ones(2)
    method = bilevel.hypergradients.create("unrolled")
    batches = [torch.ones(4, 3)] * 5
    method(problem, optimizer, state, hyper, batches, batches[0])
    first = len(calls)
    method(problem, optimizer, state, hyper, batches * 3, batches[0])
    assert len(calls) == first
    method(problem, optimizer, state, hyper, [torch.ones(5, 3)], batches[0])
    assert len(calls) > first


def test_a_tensor_of_an_enclosing_scope_is_seen_as_it_is_now() -> None:
    target = torch.zeros(3, dtype=torch.float64)

    def loss(w: Any, h: Any, batch: Any) -> Any:
        return ((w - target) ** 2).sum() * h.exp().sum()

    derivatives = Derivatives(bilevel.traced(bilevel.Problem(loss, loss)), torch.zeros(1, 1, dtype=torch.float64))
    params = torch.ones(1, 3, dtype=torch.float64)
    assert derivatives.inner_gradient(params, None).tolist() == [[2.0] * 3]
    target.add_(1)
    assert derivatives.inner_gradient(params, None).tolist() == [[0.0] * 3]


LOOKING: dict[str, Any] = {
    "branch": lambda w, h, x: (w * w).sum() * h.sum() if bool(w.sum() > 0) else (w**4).sum() * h.sum(),
    "tolist": lambda w, h, x: (w * w).sum() * h.sum() * (2.0 if w.tolist()[0] > 0 else 1.0),
    "number": lambda w, h, x: (w * w).sum() * h.sum() * x.tolist()[0],
    "numpy": lambda w, h, x: (w * w).sum() * h.sum() * float(x.numpy()[0]),
    "mask": lambda w, h, x: (w * w)[x > 0].sum() * h.sum(),
    "masked_select": lambda w, h, x: (w * w).masked_select(x > 0).sum() * h.sum(),
    "count": lambda w, h, x: (w * w).sum() * h.sum() * (x > 0).nonzero().shape[0],
}


@pytest.mark.parametrize("kind", LOOKING)
def test_a_loss_that_looks_at_values_is_differentiated_at_each_call(kind: str) -> None:
    loss = LOOKING[kind]
    problem = bilevel.Problem(loss, loss)
    optimizer = bilevel.optimizers.SGD(learning_rate=0.1)
    state, hyper = optimizer.init(torch.ones(3, dtype=torch.float64)), torch.ones(2, dtype=torch.float64)
    method = bilevel.hypergradients.create("unrolled")
    batches = [torch.tensor([first, second, 1.0], dtype=torch.float64) for first, second in ((1, 1), (-1, 1), (2, -3))]
    expected = method(problem, optimizer, state, hyper, batches, batches[0])
    with pytest.warns(Unrecordable, match="not recorded"):
        found = method(bilevel.traced(problem), optimizer, state, hyper, batches, batches[0])
    assert torch.equal(found.hypergradient, expected.hypergradient)


def test_an_operation_in_place_is_replayed_as_it_was() -> None:
    def loss(w: Any, h: Any, batch: Any) -> Any:
        spread = torch.zeros(4, dtype=w.dtype).index_put((batch,), w[:3] * h[0], accumulate=True)
        return (spread**3).sum() + (w[1:] ** 2).sum()

    problem = bilevel.Problem(loss, loss)
    params = torch.tensor([[0.3, -0.4, 0.5, 0.6]], dtype=torch.float64)
    hyper, batch = torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([[0, 0, 2]])
    vector, found = torch.ones_like(params), []
    for chosen in (problem, bilevel.traced(problem)):
        inner = Derivatives(chosen, hyper).linearize(params, batch)
        to = inner.gradient.clone(), torch.zeros_like(params), torch.zeros_like(hyper)
        inner.add_products(vector, to[1], to[2])
        inner.add_products(vector, to[1], to[2])
        found.append(to)
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=0)


def test_parameters_with_gaps_between_seeds() -> None:
    def loss(params: torch.Tensor, hyper: torch.Tensor, batch: Any) -> torch.Tensor:
        # a batch of products over seeds and rows at once, which without gaps is recorded as a view
        return (params.view(2, 3, 4) @ hyper.view(2, 4, 1)).sin().square().sum()

    draws = torch.Generator().manual_seed(0)
    state = torch.randn(SEEDS, 2, 24, generator=draws, dtype=torch.float64)
    hyper = torch.randn(SEEDS, 8, generator=draws, dtype=torch.float64)
    batch = torch.zeros(SEEDS, 1, dtype=torch.float64)
    problem = bilevel.Problem(loss, loss)
    expected = Derivatives(problem, hyper).inner_gradient(state[:, 0], batch)
    found = Derivatives(bilevel.traced(problem), hyper)
    for params in (state[:, 0].contiguous(), state[:, 0]):
        torch.testing.assert_close(found.inner_gradient(params, batch), expected)
