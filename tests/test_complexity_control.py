"""Control of complexity by λ: networks, objectives, hypernetworks, pruning, draws, quirks of the published run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import made_images
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients.none import NoHypergradient
from bilevel.models import complexity
from bilevel.problem import map_batch
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import task_class
from bilevel.tasks.complexity_control import ComplexityControl
from bilevel.tasks.complexity_control.clamped import ClampedAdam
from bilevel.tasks.complexity_control.pruning import SHARES, Pruning, accuracies

CPU = torch.device("cpu")
SIZE = 39_760
SMALL = {"train_size": 60, "test_size": 40, "epochs": 2, "batch_size": 25, "lambdas_per_step": 2}
LEVELS = [-3.0, -1.0, 2.0]
FAMILIES = ("base", "var", "rep")


blobs = partial(made_images.blobs, random_labels=True)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(100, 0)})


def build(
    dataset: Dataset, seeds: tuple[int, ...] = (0,), name: str = "complexity_control", **settings: Any
) -> ComplexityControl:
    cls = task_class(name)
    chosen = cls.read_settings({**SMALL, "log_lambda": LEVELS, **settings})
    task = cls("study", chosen, dataset, seeds, CPU)
    assert isinstance(task, ComplexityControl)
    return task


def run(task: ComplexityControl) -> Result:
    return task.run(NoHypergradient(), "run")


def doubled(task: ComplexityControl, step: int = 0) -> tuple[Tensor, Tensor, Any]:
    """Parameters (S, P) away from their start, λ and a batch in double precision."""
    state, hyper = task.start()
    params = task.optimizer.params(state).double()
    params += 0.1 * torch.randn(params.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = task.draw(step)[0][0]
    return params, hyper.double(), map_batch(lambda part: part.double() if part.is_floating_point() else part, batch)


# --- the network, and what is learned


def plain_logits(means: Tensor, images: Tensor) -> Tensor:
    """One network (39760,) as modules have it."""
    model = torch.nn.Sequential(torch.nn.Linear(784, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10)).double()
    torch.nn.utils.vector_to_parameters(means, model.parameters())
    result: Tensor = model(images)
    return result


def test_networks_are_the_plain_one() -> None:
    draws = torch.Generator().manual_seed(0)
    networks = torch.randn(3, SIZE, generator=draws, dtype=torch.float64) / 10
    images = torch.randn(7, 784, generator=draws, dtype=torch.float64)
    found = complexity.logits(networks, images)
    expected = torch.stack([plain_logits(row, images) for row in networks])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("knots", [2, 6])
def test_interpolation_is_linear_between_knots(knots: int) -> None:
    places = torch.linspace(0, 1, 31, dtype=torch.float64)
    values = torch.randn(knots, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = complexity.interpolation(places, knots) @ values
    at = torch.linspace(0, 1, knots, dtype=torch.float64).tolist()
    for place, value in zip(places.tolist(), found.tolist(), strict=True):
        left = min(max(k for k in range(knots) if at[k] <= place + 1e-12), knots - 2)
        share = (place - at[left]) / (at[left + 1] - at[left])
        assert value == pytest.approx(float((1 - share) * values[left] + share * values[left + 1]), abs=1e-9)


def test_interpolation_goes_on_beyond_the_knots() -> None:
    found = complexity.interpolation(torch.tensor([-0.5, 1.25]), 2)
    torch.testing.assert_close(found, torch.tensor([[1.5, -0.5], [-0.25, 1.25]]))


def test_divergence_is_that_of_normal_distributions() -> None:
    draws = torch.Generator().manual_seed(2)
    means, log_deviations = torch.randn(2, 3, SIZE, generator=draws, dtype=torch.float64)
    log_variance = torch.tensor([0.0, -2.0, 4.0], dtype=torch.float64)
    found = complexity.divergence(means, log_deviations, log_deviations.exp(), log_variance)
    for index in range(3):
        prior = Normal(torch.zeros(SIZE, dtype=torch.float64), (log_variance[index] / 2).exp())
        expected = kl_divergence(Normal(means[index], log_deviations[index].exp()), prior).sum()
        torch.testing.assert_close(found[index], expected, rtol=1e-10, atol=0)


def test_first_parameters() -> None:
    params = complexity.initial(2, True, torch.Generator().manual_seed(0))
    first, second = complexity.at_knots(params, 2)
    means, log_deviations = complexity.divided(first)
    assert bool((log_deviations == -3).all())
    assert not torch.equal(means, complexity.means_of(second))
    parts = complexity.LAYOUT.split(means)
    assert not parts["hidden.bias"].any()
    assert not parts["output.bias"].any()
    for name in ("hidden.weight", "output.weight"):
        bound = math.sqrt(6 / sum(parts[name].shape))
        assert parts[name].abs().max().item() == pytest.approx(bound, rel=0.02)


# --- objectives


def plain_objective(family: str, learned: Tensor, level: float, images: Tensor, labels: Tensor, noise: Any) -> Tensor:
    """One network's, from its formula."""
    means, strength = learned[:SIZE], 10**level
    weights = means if family == "base" else means + learned[SIZE:].exp() * noise
    w1, b1, w2, b2 = torch.split(weights, [39_200, 50, 500, 10])
    logits = (images @ w1.view(50, 784).T + b1).clamp(min=0) @ w2.view(10, 50).T + b2
    if family == "base":
        penalty = strength * (learned**2).sum()
    else:
        prior = Normal(torch.zeros(SIZE, dtype=torch.float64), strength**-0.5 if family == "rep" else 1.0)
        penalty = kl_divergence(Normal(means, learned[SIZE:].exp()), prior).sum() * (1 if family == "rep" else strength)
    return cross_entropy(logits, labels) + penalty / 60_000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_separate_networks_descend_their_own_objectives(dataset: Dataset, family: str, seeds: tuple[int, ...]) -> None:
    """The gradient of each is that of its objective alone, as if there were no others and no other seed."""
    task = build(dataset, seeds, family=family)
    params, hyper, batch = doubled(task)
    found = Derivatives(task.problem, hyper).inner_gradient(params, batch)
    for index in range(len(seeds)):
        for learned, level, gradient in zip(params[index].view(3, -1), LEVELS, found[index].view(3, -1), strict=True):
            leaf = learned.clone().requires_grad_()
            noise = None if batch.noise is None else batch.noise[index, 0]
            value = plain_objective(family, leaf, level, batch.images[index], batch.labels[index], noise)
            (expected,) = torch.autograd.grad(value, [leaf])
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["linear", "piecewise"])
def test_hypernetworks_descend_the_mean_over_drawn_lambda(dataset: Dataset, family: str, kind: str) -> None:
    task = build(dataset, (0, 1), family=family, hypernetwork=kind)
    params, hyper, batch = doubled(task)
    found = Derivatives(task.problem, hyper).inner_gradient(params, batch)
    knots = {"linear": 2, "piecewise": 6}[kind]
    for index in range(2):
        leaf, values = params[index].clone().requires_grad_(), []
        assert batch.log_lambda.shape == (2, 2)
        for number, level in enumerate(batch.log_lambda[index].tolist()):
            assert -3 <= level <= 2
            place = (level + 3) / 5 * (knots - 1)
            left = min(int(place), knots - 2)
            rows = leaf.view(knots, -1)
            learned = (left + 1 - place) * rows[left] + (place - left) * rows[left + 1]
            noise = None if batch.noise is None else batch.noise[index, number]
            values.append(plain_objective(family, learned, level, batch.images[index], batch.labels[index], noise))
        (expected,) = torch.autograd.grad(sum(values, torch.zeros(())) / 2, [leaf])
        # weights of knots are made in single precision
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-6)


def test_drawn_lambda_fill_the_range(dataset: Dataset) -> None:
    task = build(dataset, hypernetwork="linear", family="base", lambdas_per_step=2000)
    levels = task.draw(0)[0][0].log_lambda.flatten()
    assert levels.min().item() == pytest.approx(-3, abs=0.02)
    assert levels.max().item() == pytest.approx(2, abs=0.02)
    assert levels.mean().item() == pytest.approx(-0.5, abs=0.15)


# --- pruning


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("one_more", [False, True])
def test_pruning_zeroes_the_least_relevant_of_each_layer(variational: bool, one_more: bool) -> None:
    draws = torch.Generator().manual_seed(4)
    learned = torch.randn(2, 2 * SIZE if variational else SIZE, generator=draws, dtype=torch.float64)
    pruning = Pruning(learned, variational)
    for percent in SHARES:
        for row, network in zip(learned, pruning.at(percent, one_more), strict=True):
            means = row[:SIZE]
            rank = (means / row[SIZE:].exp()) ** 2 if variational else means**2
            for start, end in ((0, 39_200), (39_250, 39_750)):
                kept = network[start:end] != 0
                count = (end - start) * percent // 100 + one_more
                assert int((~kept).sum()) == count
                assert torch.equal(network[start:end][kept], means[start:end][kept])
                if count > 0:
                    assert rank[start:end][~kept].max() <= rank[start:end][kept].min()
            for start, end in ((39_200, 39_250), (39_750, SIZE)):
                assert torch.equal(network[start:end], means[start:end])


def test_accuracies_are_those_of_each_pruned_network() -> None:
    draws = torch.Generator().manual_seed(5)
    learned = torch.randn(2, SIZE, generator=draws, dtype=torch.float64)
    images = torch.randn(30, 784, generator=draws, dtype=torch.float64)
    labels = plain_logits(learned[0], images).argmax(-1)
    found = accuracies(learned, False, images, labels)
    assert found[0][0] == 1
    for percent in (0, 50, 90):
        networks = Pruning(learned, False).at(percent)
        for value, network in zip(found[percent], networks, strict=True):
            right = plain_logits(network, images).argmax(-1) == labels
            assert value == pytest.approx(float(right.double().mean()))


# --- runs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["none", "linear", "piecewise"])
def test_a_run(dataset: Dataset, family: str, kind: str) -> None:
    result = run(build(dataset, (0, 1), family=family, hypernetwork=kind))
    names = {"accuracy_-3", "accuracy_-1", "accuracy_2", "accuracy_mean"}
    assert list(result.trace) == list(range(0, 100, 10))
    assert all(set(metrics) == names for metrics in result.trace.values())
    for percent in (0, 50, 70, 80, 90):
        for name in names:
            assert torch.equal(result.summary[f"{name}_pruned_{percent}"], result.trace[percent][name])
    values = torch.stack([result.trace[50][name] for name in sorted(names - {"accuracy_mean"})])
    torch.testing.assert_close(values.mean(0), result.trace[50]["accuracy_mean"])
    assert result.summary["gradients"].tolist() == [2, 2]
    assert bool(result.alive.all())


def test_a_seed_alone_is_as_in_company(dataset: Dataset) -> None:
    settings = {"family": "var", "hypernetwork": "piecewise"}
    alone, company = (run(build(dataset, seeds, **settings)) for seeds in ((1,), (0, 1)))
    torch.testing.assert_close(alone.summary["train_loss"][0], company.summary["train_loss"][1], rtol=1e-4, atol=0)


def test_separate_networks_do_not_know_of_one_another(dataset: Dataset) -> None:
    """The first of three is what it is alone: it has the same first parameters, batches and draws."""
    task, alone = (build(dataset, family="var", log_lambda=levels) for levels in (LEVELS, LEVELS[:1]))
    states = []
    for one in (task, alone):
        state, hyper = one.start()
        batches, outer = one.draw(0)
        states.append(NoHypergradient()(one.problem, one.optimizer, state, hyper, batches, outer).state)
    torch.testing.assert_close(states[0][..., 0, : 2 * SIZE], states[1][..., 0, :], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "linear", "piecewise"])
def test_networks_learn(kind: str) -> None:
    data = Dataset("made", {"all": blobs(400, 0)})
    settings: dict[str, Any] = {"train_size": 300, "test_size": 100, "epochs": 20, "learning_rate": 3e-3}
    found = run(build(data, family="var", hypernetwork=kind, **settings)).summary
    assert found["accuracy_-3_pruned_0"].item() > 0.8


def test_methods_share_images_batches_and_lambda(dataset: Dataset) -> None:
    steps = [
        build(dataset, family=family, hypernetwork=kind).draw(1)[0][1]
        for family, kind in (("base", "none"), ("base", "linear"), ("var", "piecewise"))
    ]
    for one in steps[1:]:
        assert torch.equal(one.images, steps[0].images)
    assert torch.equal(steps[1].log_lambda, steps[2].log_lambda)
    assert not torch.equal(steps[0].images, build(dataset).draw(0)[0][1].images)


def test_a_pass_has_every_image_once(dataset: Dataset) -> None:
    task = build(dataset, train_size=50)
    ids = torch.cat(task.epoch(0, 0))
    assert torch.equal(ids.sort().values, torch.arange(50))
    assert [len(batch) for batch in build(dataset).epoch(0, 0)] == [25, 25]  # of 60


def test_sets_are_disjoint(dataset: Dataset) -> None:
    ids = build(dataset).divide(dataset, 0)
    assert not set(ids["train"].tolist()) & set(ids["test"].tolist())
    share = build(dataset).shares[0]
    pixels = dataset.splits["all"].images[ids["test"]].double().flatten(1) / 127.5 - 1
    torch.testing.assert_close(share.test.images.double(), pixels, rtol=1e-6, atol=1e-6)


def test_a_seed_that_diverges_has_no_numbers(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build(dataset, (0, 1), family="base")
    make: Callable[[int, Tensor], Any] = task.make_step

    def broken(number: int, ids: Tensor) -> Any:
        step = make(number, ids)
        step.images[1] *= torch.inf if number == 1 else 1
        return step

    monkeypatch.setattr(task, "make_step", broken)
    result = run(task)
    assert result.alive.tolist() == [True, False]
    assert math.isnan(result.summary["accuracy_2_pruned_50"][1])
    assert math.isnan(result.trace[0]["accuracy_2"][1])
    assert not math.isnan(result.trace[0]["accuracy_2"][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_lambda": [2.0, 1.0]}, "log_lambda: .*rising order"),
        ({"log_lambda": [1.0], "hypernetwork": "linear"}, "a hypernetwork needs two or more"),
        ({"batch_size": 61}, "batch_size: batches of 61 are drawn from the 60 training images"),
        ({"train_size": 100}, "do not fit made"),
    ],
)
def test_settings_that_do_not_fit(dataset: Dataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(dataset, **settings)


# --- the published run


def published(dataset: Dataset, seeds: tuple[int, ...] = (0,), **settings: Any) -> ComplexityControl:
    return build(dataset, seeds, "complexity_control_published", **settings)


def test_published_batches_are_always_the_same(dataset: Dataset) -> None:
    task = published(dataset, (0, 1), family="base")
    for epoch in range(2):
        batches, _ = task.draw(epoch)
        assert [batch.labels.shape for batch in batches] == [(2, 25), (2, 25), (2, 10)]
        whole = torch.cat([batch.images for batch in batches], dim=1)
        assert torch.equal(whole[0], task.shares[0].train.images)
        assert torch.equal(whole[1], whole[0])


def test_published_images_are_the_first_official_ones() -> None:
    data = Dataset("official", {"train": blobs(80, 0), "test": blobs(50, 1)})
    share = published(data, (3,)).shares[0]
    assert torch.equal(share.train.labels, data.splits["train"].labels[:60])
    assert torch.equal(share.test.labels, data.splits["test"].labels[:40])
    assert len(published(data, (3,), test_size=None).shares[0].test.labels) == 50


@pytest.mark.parametrize(
    ("family", "kind", "low"),
    [("base", "linear", -2), ("rep", "linear", -2), ("var", "linear", -3), ("base", "piecewise", -3)],
)
def test_published_range_of_lambda(dataset: Dataset, family: str, kind: str, low: float) -> None:
    task = published(dataset, family=family, hypernetwork=kind, lambdas_per_step=500)
    levels = task.draw(0)[0][0].log_lambda
    assert levels.min().item() == pytest.approx(low, abs=0.1)
    assert levels.max().item() == pytest.approx(2, abs=0.1)


def test_published_first_parameters(dataset: Dataset) -> None:
    def parts(number: int, **settings: Any) -> dict[str, Tensor]:
        task = published(dataset, **settings)
        rows = task.optimizer.params(task.start()[0])[0].view(task.settings.knots, -1)
        return complexity.LAYOUT.split(complexity.means_of(rows[number]))

    assert parts(0, family="var")["hidden.bias"].std().item() == pytest.approx(1, abs=0.35)
    assert bool((parts(0, family="var", hypernetwork="linear")["hidden.bias"] == 1).all())
    assert parts(1, family="var", hypernetwork="linear")["hidden.bias"].std().item() == pytest.approx(1, abs=0.35)
    wide = parts(3, family="base", hypernetwork="piecewise")["hidden.weight"]
    assert wide.abs().max().item() == pytest.approx(50**-0.5, rel=0.01)
    assert parts(3, family="var", hypernetwork="piecewise")["hidden.weight"].abs().max().item() < 0.09


def test_published_pruning_zeroes_a_weight_of_each_layer_at_no_share(dataset: Dataset) -> None:
    assert published(dataset).prunes_one_more
    assert not build(dataset).prunes_one_more
    result = run(published(dataset, (0, 1), family="rep", hypernetwork="linear"))
    assert bool(result.alive.all())


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_clamped_adam(scale: float) -> None:
    """A step and its adjoint, against Adam on cut gradients and autograd through it."""
    draws = torch.Generator().manual_seed(6)
    optimizer = ClampedAdam(learning_rate=0.1, bound=1.0)
    state = optimizer.init(torch.randn(1, 9, generator=draws, dtype=torch.float64))
    hyper = state.new_zeros(1, 0)
    for _ in range(3):
        optimizer.step_(state, torch.randn(1, 9, generator=draws, dtype=torch.float64), hyper)
    gradient = scale * torch.randn(1, 9, generator=draws, dtype=torch.float64)
    leaves = [state.clone().requires_grad_(), gradient.clone().requires_grad_()]
    params, mean, square, count = leaves[0].unbind(1)
    cut = leaves[1].clamp(-1, 1)
    mean, square, number = 0.9 * mean + 0.1 * cut, 0.999 * square + 0.001 * cut**2, count[:, :1].detach() + 1
    params = params - 0.1 * (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
    torch.testing.assert_close(optimizer.step(state, gradient, hyper)[:, 0], params.detach(), rtol=1e-9, atol=0)
    cotangent = torch.randn(state.shape, generator=draws, dtype=torch.float64)
    value = (cotangent[:, :3] * torch.stack([params, mean, square], 1)).sum()
    by_state, by_gradient = torch.autograd.grad(value, leaves)
    found = optimizer.adjoint_(cotangent, state, gradient, hyper, None)
    torch.testing.assert_close(found, by_gradient, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(cotangent[:, :3], by_state[:, :3], rtol=1e-8, atol=1e-12)
