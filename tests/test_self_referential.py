"""The network that changes its own weights, against its formulas weight by weight; its sequences, the study's rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import reference
import torch
from cases import Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilevel import hypergradients
from bilevel.models.self_referential import SelfReferential
from bilevel.optimizers import SGD, Adam, Clipped
from bilevel.problem import Problem
from bilevel.settings import SettingsError
from bilevel.tasks.self_referential import TASK, SelfReferentialTask
from bilevel.tasks.self_referential.sequences import codes, draw_sequences
from bilevel.tracing import traced

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "symbols": 2,
    "length": 4,
    "hidden": 2,
    "batch_size": 3,
    "inner_steps": 2,
    "outer_steps": 4,
    "outer_batch_size": 5,
    "test_size": 20,
    "evaluate_every": 2,
}


def made(seeds: list[int], **settings: Any) -> SelfReferentialTask:
    return TASK("study", TASK.read_settings({**SMALL, **settings}), None, seeds, CPU)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(*shape: int, seed: int) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def address(column: int, row: int, columns: int, rows: int) -> list[int]:
    """Binary digits of the column, then of the row, each as long as the largest number."""
    lengths = [len(bin(count - 1)) - 2 for count in (columns, rows)]
    texts = [format(number, f"0{length}b") for number, length in zip((column, row), lengths, strict=True)]
    return [int(digit) for digit in "".join(texts)]


def plain(network: SelfReferential, params: Tensor, hyper: Tensor, inputs: Tensor, targets: Tensor) -> Any:
    """One sequence, (T, n) and (T,), weight by weight: losses, margins, the last weights."""
    columns, rows, h = network.columns, network.rows, network.hidden
    names = list(itertools.product(range(columns), range(rows)))
    places = torch.tensor([address(*name, columns, rows) for name in names], dtype=torch.float64)
    bits = places.shape[1]
    width, scale = hyper.exp()
    w = params.view(columns, rows)
    hidden, value, evaluation = torch.zeros(h), torch.zeros(1), torch.zeros(2)
    losses, margins = [], []
    for x, target in zip(inputs, targets, strict=True):
        for _ in range(network.ticks):
            units = torch.cat([x, evaluation, value, torch.ones(1), hidden])
            u = w.T @ units
            hidden, output = torch.tanh(u[:h]), u[h]
            reading, changing = (torch.sigmoid(part) for part in u[h + 1 : h + 1 + 2 * bits].view(2, bits))
            near, far = (
                torch.exp(-(places - where).square().sum(-1) / (2 * width**2)) for where in (reading, changing)
            )
            value = (near * w.reshape(-1)).sum().view(1)
            if network.modifies:
                w = w + scale * torch.tanh(u[-1]) * far.view(columns, rows)
        probability = torch.sigmoid(output if target > 0 else -output)
        losses.append(-torch.log(probability))
        margins.append(target * output)
        given = torch.sigmoid(output)
        evaluation = torch.stack([losses[-1], (1.0 if target > 0 else 0.0) - given])
    return torch.stack(losses), torch.stack(margins), w


@pytest.mark.parametrize(("ticks", "modifies"), [(1, True), (2, True), (2, False)])
def test_network_does_what_its_formulas_say(ticks: int, modifies: bool) -> None:
    network = SelfReferential(3, 4, ticks, modifies)
    params, hyper = 0.7 * randn(network.layout.size, seed=0), torch.tensor([-0.3, 0.4], dtype=torch.float64)
    inputs, targets = randn(5, 6, 3, seed=1), signs(5, 6, seed=2)
    found = network.run(params, hyper, inputs, targets)
    for index in range(5):
        losses, margins, weights = plain(network, params, hyper, inputs[index], targets[index])
        torch.testing.assert_close(found.losses[index], losses, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.margins[index], margins, rtol=1e-10, atol=1e-12)
        own = found.weights[index] if modifies else found.weights
        torch.testing.assert_close(own, weights, rtol=1e-10, atol=1e-12)
    moved = not torch.equal(found.weights.expand(5, -1, -1)[0], params.view(network.columns, network.rows))
    assert moved == modifies


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_narrow_kernel_picks_one_weight_by_its_address(inputs: int, hidden: int, data: st.DataObject) -> None:
    network = SelfReferential(inputs, hidden)
    assert network.layout.size == network.columns * network.rows
    assert network.rows == hidden + 2 + 2 * network.addresses.bits
    column, row = (data.draw(st.integers(0, count - 1)) for count in (network.columns, network.rows))
    name = torch.tensor(address(column, row, network.columns, network.rows), dtype=torch.float64)
    kernel = network.addresses.kernel(torch.tensor(0.1, dtype=torch.float64))
    for found, chosen in zip(network.addresses.nearness(name, kernel), (column, row), strict=True):
        torch.testing.assert_close(found, torch.eye(len(found), dtype=torch.float64)[chosen], rtol=0, atol=1e-12)


def test_modification_off_is_the_same_network_otherwise() -> None:
    on, off = SelfReferential(4, 3), SelfReferential(4, 3, modifies=False)
    assert on.layout.shapes == off.layout.shapes
    params, inputs, targets = randn(on.layout.size, seed=0), randn(2, 5, 4, seed=1), signs(2, 5, seed=2)
    still = on.run(params, torch.tensor([0.0, -math.inf], dtype=torch.float64), inputs, targets)
    for scale in (0.0, 3.0):
        found = off.run(params, torch.tensor([0.0, scale], dtype=torch.float64), inputs, targets)
        torch.testing.assert_close(found.losses, still.losses, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("modifies", "name"), [(True, "unrolled"), (True, "truncated"), (False, "unrolled")])
def test_hypergradients(modifies: bool, name: str, recorded: bool) -> None:
    """Through the training and through what the network does to itself, against dense Jacobians."""
    network = SelfReferential(2, 1, modifies=modifies)

    def loss(params: Tensor, hyper: Tensor, batch: Any) -> Tensor:
        return network.run(params, hyper, *batch).losses.mean()

    steps, seeds = 3, 2
    problem = Problem(loss, loss)
    batches = [(randn(seeds, 2, 3, 2, seed=10 + t), signs(seeds, 2, 3, seed=20 + t)) for t in range(steps)]
    params, hyper = 0.7 * randn(seeds, network.layout.size, seed=0), 0.3 * randn(seeds, 2, seed=1)
    case = Case("self-referential", problem, loss, params, hyper, batches, batches[0])
    optimizer = SGD(learning_rate=0.5)
    settings = {"steps": steps} if name == "truncated" else {}
    found = hypergradients.create(name, **settings)(
        traced(problem) if recorded else problem, optimizer, optimizer.init(params), hyper, batches, batches[0]
    )
    for seed in range(seeds):
        leaf = hyper[seed].clone().requires_grad_()
        value = reference.Reference(case.seed(seed), optimizer).outer(leaf)
        (expected,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(found.outer_loss[seed], value.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(found.hypergradient[seed], expected, rtol=1e-9, atol=1e-12)
        assert bool(expected[1] == 0) != modifies


@given(st.sampled_from([("one_hot", 3), ("one_hot", 8), ("binary", 2), ("binary", 8)]), st.integers(2, 12))
def test_sequences_tell_one_function_each(kind: tuple[Any, int], length: int) -> None:
    encoding, symbols = kind
    found = draw_sequences(6, length, symbols, encoding, torch.Generator().manual_seed(0))
    names = codes(symbols, encoding)
    assert len({tuple(row) for row in names.tolist()}) == symbols
    now, before = found.inputs.chunk(2, -1)
    assert torch.equal(before[:, 1:], now[:, :-1])
    assert not before[:, 0].any()
    for row in range(6):
        known: dict[tuple[float, ...], float] = {}
        for place in range(length):
            symbol, target = tuple(now[row, place].tolist()), float(found.targets[row, place])
            assert bool(found.repeated[row, place]) == (symbol in known)
            assert known.setdefault(symbol, target) == target
            assert abs(target) == 1


def test_draws_are_those_of_the_step() -> None:
    task = made([0, 1])
    batches, outer = task.draw(0)
    assert [tuple(part.shape) for part in batches[0]] == [(2, 3, 4, 4), (2, 3, 4)]
    assert tuple(outer[0].shape) == (2, 5, 4, 4)
    assert torch.equal(batches[1][0], task.draw(0)[0][1][0])
    seen = [batches[0][1], batches[1][1], *(batch[1] for batch in task.draw(1)[0])]
    assert not any(torch.equal(left, right) for left, right in itertools.combinations(seen, 2))


@pytest.mark.parametrize(("method", "modifies"), [("none", True), ("none", False), ("first_order", True)])
def test_rows(method: str, modifies: bool) -> None:
    result = made([0, 1], modifies=modifies).run(hypergradients.create(method), method)
    own = {"test_loss", "repeated_loss", "repeated_error", "least_loss", "change", "width", "scale"}
    assert own | {"excess_loss"} <= set(result.summary)
    assert [step for step, row in result.trace.items() if own <= set(row)] == [0, 2, 4]
    assert [step for step, row in result.trace.items() if {"place_loss", "place_least"} <= set(row)] == [1, 2, 3, 4]
    for name in own:
        assert torch.equal(result.trace[4][name], result.summary[name])
    mean = torch.stack([result.trace[place]["place_loss"] for place in range(1, 5)]).mean(0)
    torch.testing.assert_close(mean, result.summary["test_loss"])
    least = torch.stack([result.trace[place]["place_least"] for place in range(1, 5)])
    torch.testing.assert_close(least.mean(0), result.summary["least_loss"])
    assert (least[0] == math.log(2)).all()
    assert (result.summary["change"] > 0).all() == modifies
    moved = [not torch.equal(result.trace[0][name], result.trace[4][name]) for name in ("width", "scale")]
    assert moved == [method != "none", method != "none"]


def test_arms_share_their_draws() -> None:
    tasks = [made([0, 1], modifies=modifies) for modifies in (True, False)]
    assert torch.equal(*(task.start()[0] for task in tasks))
    assert torch.equal(*(task.draw(1)[0][1][0] for task in tasks))
    assert torch.equal(*(task.tests[1].targets for task in tasks))


def test_a_seed_gives_the_same_alone_as_in_company() -> None:
    method = hypergradients.create("first_order")
    together, alone = (made(seeds).run(method, "run").summary for seeds in ([0, 1], [1]))
    for name in ("test_loss", "change", "width"):
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-5)


def test_bounds_hold() -> None:
    task = made([0])
    found = task.project(torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-0.5, 0.5]])).exp()
    torch.testing.assert_close(found[:2], torch.tensor([[2.0, 0.01], [0.1, 10.0]]))
    torch.testing.assert_close(found[2], torch.tensor([-0.5, 0.5]).exp())


def test_training_lowers_the_loss() -> None:
    longer = {"outer_steps": 15, "inner_steps": 10, "batch_size": 32, "learning_rate": 0.02, "evaluate_every": 15}
    result = made([0, 1], **longer).run(hypergradients.create("none"), "run")
    assert (result.trace[15]["test_loss"] < result.trace[0]["test_loss"] - 0.05).all()
    assert (result.summary["test_loss"] > result.summary["least_loss"] - 0.02).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "binary", "symbols": 6}, "expected a power of two, at least 2, for encoding binary, got 6"),
        ({"symbols": 1}, "symbols: expected at least 2, got 1"),
        ({"length": 1}, "length: expected at least 2"),
        ({"width": 0.0}, "width"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TASK.read_settings({**SMALL, **settings})


def test_takes_no_data() -> None:
    with pytest.raises(SettingsError, match="uses no data set"):
        TASK.check_data(TASK.read_settings(SMALL), "mnist_5k", {"all": 5000})


def test_clipping_is_part_of_the_optimizer() -> None:
    assert made([0]).optimizer == Clipped(Adam(learning_rate=0.02), norm=1.0)
