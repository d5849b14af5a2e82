"""The study of learned schedules: what is learned, which draws it sees, its rows; and the network they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel import hypergradients
from bilevel.data import Dataset, Split
from bilevel.models.mlp import MLP
from bilevel.optimizers import Learned, Momentum
from bilevel.settings import SettingsError
from bilevel.tasks.rmad import RMAD, TASK
from bilevel.tasks.rmad.grid import Grid

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "train_size": 120,
    "validation_size": 60,
    "pool": 4,
    "hidden": [4],
    "inner_steps": 6,
    "batch_size": 10,
    "outer_steps": 4,
    "evaluate_every": 2,
    "runs": 2,
}
METRICS = {"validation_loss", "training_loss", "test_loss", "test_error"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Noisy images with a bright bar whose place tells the label."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    images = torch.randint(80, (300, 1, 28, 28), generator=draws)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 2 * label + 3 : 2 * label + 6, 4:24] += 150
    return Dataset("mnist_5k", {"all": Split(images.to(torch.uint8), labels)})


def made(dataset: Dataset, seeds: list[int], **settings: Any) -> RMAD:
    return TASK("study", TASK.read_settings({**SMALL, **settings}), dataset, seeds, CPU)


def test_network() -> None:
    network, draws = MLP([5, 4, 3], "sigmoid"), torch.Generator().manual_seed(0)
    params, images = network.initial(draws), torch.randn(6, 5, generator=draws)
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Sigmoid(), torch.nn.Linear(4, 3))
    torch.nn.utils.vector_to_parameters(params, module.parameters())
    torch.testing.assert_close(network.logits(params, images), module(images))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    found = network.loss(params, torch.zeros(0), (images, labels))
    torch.testing.assert_close(found, cross_entropy(module(images), labels))
    assert network.layout.sizes == [20, 4, 12, 3]


@pytest.mark.parametrize(
    ("schedule", "expected", "count"),
    [
        ("constant", (Learned(0), Learned(1, scale="logit")), 2),
        ("step", (Learned(0, steps=6), Learned(6, steps=6, scale="logit")), 12),
        (
            "layer",
            (
                Learned(0, steps=6, sizes=(196, 4, 40, 10)),
                Learned(24, steps=6, sizes=(196, 4, 40, 10), scale="logit"),
            ),
            48,
        ),
    ],
)
def test_what_is_learned(dataset: Dataset, schedule: str, expected: tuple[Learned, Learned], count: int) -> None:
    task = made(dataset, [0, 1], schedule=schedule)
    assert task.optimizer == Momentum(learning_rate=expected[0], momentum=expected[1])
    state, hyper = task.start()
    assert hyper.shape == (2, count)
    assert state.shape[-1] == 250
    for name, value in (("learning_rate", 0.1), ("momentum", 0.9)):
        values = task.values(hyper)[name]
        torch.testing.assert_close(values, torch.full_like(values, value), rtol=1e-6, atol=0)


def test_all_schedules_begin_as_the_same_training(dataset: Dataset) -> None:
    found = []
    for schedule in ("constant", "step", "layer"):
        task = made(dataset, [0], schedule=schedule)
        found.append(task.train(task.start()[1], 0))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outer_set", ["validation", "train"])
def test_hypergradients_of_both_exact_methods(dataset: Dataset, outer_set: str) -> None:
    """Of the whole training, against central differences of it in single precision, in the steepest direction."""
    task = made(dataset, [0, 1], outer_set=outer_set)
    (state, hyper), (batches, outer_batch) = task.start(), task.draw(0)
    found = [
        hypergradients.create(name)(task.problem, task.optimizer, state, hyper, batches, outer_batch)
        for name in ("unrolled", "reversible")
    ]
    scale = found[0].hypergradient.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found[1].hypergradient / scale, found[0].hypergradient / scale, rtol=0, atol=1e-3)
    direction = found[0].hypergradient / scale
    above, below = (task.trial(hyper + sign * 0.05 * direction)[0] for sign in (1, -1))
    torch.testing.assert_close((above - below) / 0.1, scale.squeeze(-1), rtol=0.02, atol=1e-4)


def test_every_outer_step_is_a_training_of_its_own(dataset: Dataset) -> None:
    task = made(dataset, [0])
    state = task.start()[0]
    assert torch.equal(task.begin(0, state), state)
    assert not torch.equal(task.begin(1, state), state)
    assert torch.equal(task.begin(1, state), task.begin(1, state + 1))
    batches = [task.draw(step)[0] for step in (0, 0, 1)]
    assert [len(each) for each in batches] == [6, 6, 6]
    assert torch.equal(batches[0][3][0], batches[1][3][0])
    assert not torch.equal(batches[0][3][0], batches[2][3][0])


def test_batches_of_a_pass_do_not_repeat(dataset: Dataset) -> None:
    task = made(dataset, [0], inner_steps=15)
    ids = task._batches("training", 0)._ids.squeeze(1)
    assert ids.shape == (15, 10)
    assert ids[:12].flatten().sort().values.tolist() == list(range(120))
    assert len(set(ids[12:].flatten().tolist())) == 30


@pytest.mark.parametrize("method", ["none", "unrolled", "reversible", "grid"])
def test_rows(dataset: Dataset, method: str) -> None:
    chosen = Grid(trials=4) if method == "grid" else hypergradients.create(method)
    schedule = "constant" if method == "grid" else "layer"
    result = made(dataset, [0, 1], schedule=schedule).run(chosen, method)
    assert {*METRICS, "learning_rate_mean", "momentum_mean"} <= set(result.summary)
    outer = [step for step, row in result.trace.items() if set(row) >= METRICS]
    assert outer == ([0, 4] if method == "grid" else [0, 2, 4])
    inner = {"inner_validation_loss", "inner_learning_rate", "inner_momentum"}
    assert [step for step, row in result.trace.items() if set(row) >= inner] == list(range(7))
    for name in METRICS:
        assert torch.equal(result.trace[4][name], result.summary[name])
    if schedule == "layer":
        rates = [p for p in result.points if p.quantity == "learning_rate:bias2" and p.seed == 1]
        assert [(p.x, p.y) for p in rates] == [(float(step), 4.0) for step in range(6)]
        moved = len({p.value for p in rates}) > 1
        assert moved == (method != "none")
    else:
        assert not result.points


def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset) -> None:
    method = hypergradients.create("unrolled")
    together, alone = (made(dataset, seeds).run(method, "run") for seeds in ([0, 1], [1]))
    for name in METRICS:
        torch.testing.assert_close(together.summary[name][1:], alone.summary[name], rtol=1e-3, atol=1e-4)


def test_learning_lowers_the_loss(dataset: Dataset) -> None:
    task = made(dataset, [0, 1], outer_steps=15, evaluate_every=15, outer_learning_rate=0.1)
    result = task.run(hypergradients.create("reversible"), "run")
    assert (result.trace[15]["validation_loss"] < result.trace[0]["validation_loss"]).all()


def test_grid_keeps_the_best_of_its_points(dataset: Dataset) -> None:
    task = made(dataset, [0], schedule="constant")
    losses = {}
    for rate in (0.01, 1.0):
        for gap in (0.01, 1.0):
            losses[rate, gap] = float(task.trial(task.hyper_of([{"learning_rate": rate, "momentum_gap": gap}]))[0])
    rate, gap = min(losses, key=lambda place: losses[place])
    summary = task.run(Grid(trials=4), "grid").summary
    assert float(summary["learning_rate_mean"]) == pytest.approx(rate, rel=1e-5)
    assert float(summary["momentum_mean"]) == pytest.approx(1 - gap, abs=2e-6)


def test_grid_of_points_without_momentum_is_finite(dataset: Dataset) -> None:
    task = made(dataset, [0], schedule="constant")
    hyper = task.hyper_of([{"learning_rate": 0.1, "momentum_gap": 1.0}])
    assert isinstance(hyper, Tensor)
    assert torch.isfinite(hyper).all()
    assert float(task.values(hyper)["momentum"]) < 2e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 121}, "batch_size: batches of 121 are drawn from 120 training images"),
        ({"train_size": 290}, "do not fit"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TASK.check_data(TASK.read_settings({**SMALL, **settings}), "mnist_5k", {"all": 300})
