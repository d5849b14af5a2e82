"""Networks with mixtures of activations and of priors: values, hypergradients, and the rows of the study."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from cases import Case
from made_images import blobs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bilevel import hypergradients
from bilevel.data import Dataset
from bilevel.optimizers import SGD
from bilevel.problem import Problem
from bilevel.settings import SettingsError
from bilevel.tasks.activations import METRICS, TASK, Activations
from bilevel.tasks.activations.network import ROUND, MixedNetwork
from bilevel.tracing import traced

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "train_size": 60,
    "validation_size": 50,
    "test_size": 40,
    "pool": 4,
    "hidden": [4, 3],
    "inner_steps": 5,
    "outer_steps": 4,
    "evaluate_every": 2,
}
MODULES: dict[str, Any] = {
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "identity": nn.Identity(),
    "sine": torch.sin,
}
ALL = ["mixture", "equal", *MODULES]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("mnist_5k", {"all": blobs(200)})


def made(dataset: Dataset, seeds: list[int], **settings: Any) -> Activations:
    return TASK("study", TASK.read_settings({**SMALL, **settings}), dataset, seeds, CPU)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network_and_values(activation: Any, prior: Any) -> tuple[MixedNetwork, Tensor, Tensor]:
    network = MixedNetwork([5, 4, 3, 2], activation, prior)
    return network, randn(network.layout.size, seed=0), randn(network.hyper_layout.size, seed=1)


def batch(seed: int, *seeds: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(2, (*seeds, 6), generator=torch.Generator().manual_seed(seed))
    return randn(*seeds, 6, 5, seed=seed), labels


@pytest.mark.parametrize("activation", ALL)
def test_logits(activation: str) -> None:
    network, params, hyper = network_and_values(activation, "none")
    images = batch(2)[0]
    linears = [nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2)]
    nn.utils.vector_to_parameters(params, nn.Sequential(*linears).double().parameters())
    values = images
    for number, layer in enumerate(linears):
        values = layer(values)
        if number == 2:
            break
        outcomes = torch.stack([function(values) for function in MODULES.values()])
        if activation == "mixture":
            shares = hyper[5 * number : 5 * number + 5].exp() / hyper[5 * number : 5 * number + 5].exp().sum()
        else:
            parts = [0.2 if activation == "equal" else float(name == activation) for name in MODULES]
            shares = torch.tensor(parts, dtype=torch.float64)
        values = torch.einsum("j,jnk->nk", shares, outcomes)
    torch.testing.assert_close(network.logits(params, hyper, images), values.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior", ["mixture", "l2", "l1", "none"])
def test_penalty(prior: str) -> None:
    network, params, hyper = network_and_values("tanh", prior)
    data = batch(2)
    weights = [params[:20], params[24:36], params[39:45]]
    expected = 0.0
    for number, weight in enumerate(weights if prior != "none" else []):
        kinds = [weight.square().sum() / 2, ((weight**2 + ROUND**2) ** 0.5 - ROUND).sum(), torch.tensor(0.0)]
        logits = hyper[3 + 3 * number : 6 + 3 * number]
        shares = {"l2": [1.0, 0.0, 0.0], "l1": [0.0, 1.0, 0.0]}.get(prior, (logits.exp() / logits.exp().sum()).tolist())
        mixed = sum(share * float(kind) for share, kind in zip(shares, kinds, strict=True))
        expected += float(hyper[number].exp()) * mixed
    found = network.penalized_loss(params, hyper, data) - network.loss(params, hyper, data)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    whole = cross_entropy(network.logits(params, hyper, data[0]), data[1])
    torch.testing.assert_close(network.loss(params, hyper, data), whole)


@pytest.mark.parametrize(
    ("activation", "prior", "recorded"),
    [("mixture", "mixture", True), ("mixture", "mixture", False), ("mixture", "l1", False), ("sine", "mixture", False)],
)
def test_hypergradients(activation: str, prior: str, recorded: bool) -> None:
    network, *_ = network_and_values(activation, prior)
    problem, seeds, steps = Problem(network.penalized_loss, network.loss), 2, 3
    params = randn(seeds, network.layout.size, seed=3)
    hyper = 0.5 * randn(seeds, network.hyper_layout.size, seed=4)
    batches = [batch(10 + t, seeds) for t in range(steps)]
    case = Case("mixtures", problem, network.penalized_loss, params, hyper, batches, batch(20, seeds))
    optimizer = SGD(learning_rate=0.2)
    found = hypergradients.create("unrolled")(
        traced(problem) if recorded else problem, optimizer, optimizer.init(params), hyper, batches, case.outer_batch
    )
    for seed in range(seeds):
        leaf = hyper[seed].clone().requires_grad_()
        value = reference.Reference(case.seed(seed), optimizer).outer(leaf)
        (expected,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(found.hypergradient[seed], expected, rtol=1e-9, atol=1e-12)
        assert (expected != 0).all()


def test_first_mixture_counts_all_alike(dataset: Dataset) -> None:
    mixture, equal = (made(dataset, [0, 1], activation=activation) for activation in ("mixture", "equal"))
    for name in METRICS:
        left, right = (task.evaluate(*task.start())[name] for task in (mixture, equal))
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_strengths_stay_in_their_bounds(dataset: Dataset) -> None:
    task = made(dataset, [0, 1], prior="mixture")
    hyper = task.start()[1]
    names = task.network.hyper_layout
    found = names.split(task.project(hyper + 100))
    assert (found["levels"] == 2).all()
    assert (found["activations"] == 100).all()
    assert (found["kinds"] == 100).all()
    assert (names.split(task.project(hyper - 100))["levels"] == -14).all()
    assert torch.equal(task.project(hyper), hyper)


@pytest.mark.parametrize(
    ("method", "settings", "learned"),
    [
        ("unrolled", {"prior": "mixture"}, {"weight_sine_2", "weight_l1_3", "weight_none_1", "level_3"}),
        ("truncated", {"activation": "relu"}, {"level_1", "level_3"}),
        ("none", {"activation": "relu", "prior": "none"}, set()),
    ],
)
def test_rows(dataset: Dataset, method: str, settings: dict[str, Any], learned: set[str]) -> None:
    task = made(dataset, [0, 1], **settings)
    result = task.run(hypergradients.create(method), method)
    assert bool(result.alive.all())
    assert {*METRICS, *learned} <= set(result.summary)
    assert list(result.trace) == [0, 2, 4]
    for name in (*METRICS, *learned):
        assert torch.equal(result.trace[4][name], result.summary[name])
        if name in learned:
            assert not torch.equal(result.trace[0][name], result.trace[4][name])
    for kinds, layers in ((MODULES, 2), (("l2", "l1", "none"), 3)):
        for layer in range(1, layers + 1):
            shares = [result.summary[f"weight_{k}_{layer}"] for k in kinds if f"weight_{k}_{layer}" in result.summary]
            assert not shares or torch.allclose(torch.stack(shares).sum(0), torch.ones(2, dtype=torch.float64))


def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset) -> None:
    method = hypergradients.create("unrolled")
    together, alone = (made(dataset, seeds).run(method, "run").summary for seeds in ([0, 1], [1]))
    for name in (*METRICS, "weight_tanh_1"):
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-3, atol=1e-4)


def test_arms_share_their_draws(dataset: Dataset) -> None:
    one, other = made(dataset, [0], prior="mixture"), made(dataset, [0], activation="relu", prior="none")
    assert torch.equal(one.start()[0], other.start()[0])
    assert torch.equal(one.begin(3, one.start()[0]), other.begin(3, one.start()[0]))
    assert not torch.equal(one.begin(3, one.start()[0]), one.start()[0])
    assert torch.equal(one.sets["test"].images, other.sets["test"].images)


def test_learning_lowers_the_loss(dataset: Dataset) -> None:
    task = made(dataset, [0, 1], outer_steps=15, evaluate_every=15, inner_steps=15, hidden=[6])
    result = task.run(hypergradients.create("unrolled"), "run")
    assert (result.trace[15]["validation_loss"] < result.trace[0]["validation_loss"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"activation": "cosine"}, "activation"), ({"level": 3.0}, "level"), ({"hidden": []}, "hidden")],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TASK.read_settings({**SMALL, **settings})


def test_sets_must_fit() -> None:
    with pytest.raises(SettingsError, match="do not fit"):
        TASK.check_data(TASK.read_settings({**SMALL, "train_size": 290}), "mnist_5k", {"all": 300})
