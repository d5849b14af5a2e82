"""Hypernetworks as best responses: the network, losses and true responses against plain ones; training; surrogates."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import blobs
from scipy.linalg import solve
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.models.hypernetwork import Hypernetwork
from bilevel.optimizers import SGD, Adam
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.hypernetwork import HyperTraining
from bilevel.tasks.hypernetwork.best_response import BestResponse
from bilevel.tasks.hypernetwork.linear_model import (
    Images,
    Moments,
    Regularizer,
    images_of,
    losses_on_images,
    losses_on_moments,
    moments_of,
    penalty,
)
from bilevel.tasks.hypernetwork_scatter import HypernetworkScatter
from bilevel.tasks.hypernetwork_scatter.gaussian_process import GaussianProcess, likeliest_length

CPU = torch.device("cpu")
KINDS: list[Regularizer] = ["norm", "squared_norm"]
SIZES = {"train_size": 10, "validation_size": 40, "test_size": 30}
LOCAL = {**SIZES, "outer_steps": 5, "evaluate_every": 2}
GLOBAL = {**SIZES, "outer_steps": 5, "evaluate_every": 2, "hidden": 3, "steps": 4, "samples": 2}
SCATTER = {"train_size": 30, "validation_size": 40, "evaluations": [3, 5, 7], "candidates": 20, "steps": 3}
SCATTER |= {"batch_size": 10, "most_samples": 5}
TRACE = {"level", "predicted_loss", "true_loss", "gap", "distance", "excess"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(100)})


@pytest.fixture(scope="module")
def sets() -> tuple[Images, Images]:
    split = blobs(100)
    return tuple(
        Images(*(part.double() for part in images_of(split, ids, CPU))) for ids in torch.arange(100).split([12, 88])
    )  # type: ignore[return-value]


def build(dataset: Dataset, name: str, seeds: tuple[int, ...] = (0, 2), **changed: Any) -> Any:
    cls = task_class(name)
    return cls("study", cls.read_settings(changed), dataset, list(seeds), CPU)


def run(task: Any, name: str, method: str, **changed: Any) -> Result:
    result: Result = task.run(create_method(name, method, changed), "test")
    return result


# --- the hypernetwork


def test_hypernetwork_is_a_network_of_torch() -> None:
    draws, levels = torch.Generator().manual_seed(0), torch.randn(5, 2, dtype=torch.float64)
    for hidden, size in ((0, 3 * 7), (4, 4 * 3 + 5 * 7)):
        network = Hypernetwork(2, 7, hidden)
        assert network.layout.size == size
        params = network.initial(0.1, draws).double()
        parts = network.layout.split(params)
        values = levels if not hidden else torch.relu(levels @ parts["hidden.weight"].T + parts["hidden.bias"])
        expected = values @ parts["output.weight"].T + parts["output.bias"]
        torch.testing.assert_close(network.forward(params, levels), expected)
        torch.testing.assert_close(network.forward(params, levels[0]), expected[0])
    assert Hypernetwork(1, 7850, 50).layout.size == 400_450
    assert Hypernetwork(1, 7850).layout.size == 15_700
    assert Hypernetwork(10, 7850).layout.size == 86_350
    assert float(Hypernetwork(1, 7850).initial(0.01, draws).std()) == pytest.approx(0.01, rel=0.03)


# --- losses


def test_losses_are_gaussian_likelihoods(sets: tuple[Images, Images]) -> None:
    weights = 0.1 * torch.randn(3, 10, 785, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for images in sets:
        outputs = torch.einsum("jcf,nf->jnc", weights, images.features)
        plain = -norm.logpdf(outputs.numpy(), images.targets.numpy(), 0.1).mean(1)
        np.testing.assert_allclose(losses_on_images(weights, images).numpy(), plain, rtol=1e-10)
        np.testing.assert_allclose(losses_on_moments(weights, moments_of(images)).numpy(), plain, rtol=1e-9)


def test_features_are_pixels_and_one() -> None:
    split = blobs(20)
    images = images_of(split, torch.tensor([3, 17]), CPU)
    assert images.features.shape == (2, 785)
    assert torch.equal(images.features[:, -1], torch.ones(2))
    assert torch.equal(images.features[1, :-1] * 255, split.images[17].flatten().float())
    assert images.targets.argmax(-1).tolist() == [3, 7]
    assert torch.equal(images.targets.sum(-1), torch.ones(2))


def test_penalties() -> None:
    weights = torch.randn(2, 10, 785, dtype=torch.float64)
    one, each = torch.tensor([[0.3], [-1.0]]).double(), torch.randn(2, 10).double()
    for index in range(2):
        whole, rows = weights[index].square().sum(), weights[index, :, :-1].square().sum(-1)
        assert penalty(weights, one, "norm")[index] == pytest.approx(float(one[index].exp() * whole.sqrt()))
        assert penalty(weights, one, "squared_norm")[index] == pytest.approx(float(one[index].exp() * whole))
        assert penalty(weights, each, "norm")[index] == pytest.approx(float((each[index].exp() * rows.sqrt()).mean()))
        assert penalty(weights, each, "squared_norm")[index] == pytest.approx(float((each[index].exp() * rows).mean()))


# --- best responses


def objective(weights: Tensor, level: Tensor, images: Images, kind: Regularizer) -> Tensor:
    return losses_on_images(weights, images).mean() + penalty(weights, level, kind).squeeze()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_class", [False, True])
def test_best_responses_are_stationary(sets: tuple[Images, Images], kind: Regularizer, by_class: bool) -> None:
    images = sets[0]
    response = BestResponse(moments_of(images), kind, by_class=by_class)
    draws = torch.Generator().manual_seed(3)
    levels = (
        (torch.rand(6, 10, generator=draws) * 5 - 3).double()
        if by_class
        else torch.linspace(-3, 1, 6)[:, None].double()
    )
    weights = response.weights(levels)
    for index in range(6):
        assert bool((weights[index, :, :-1].norm(dim=-1) > 1e-3).all())  # the norm is differentiable there
        leaf = weights[index : index + 1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(leaf, levels[index : index + 1], images, kind), leaf)
        assert float(gradient.abs().max()) < 1e-9
    np.testing.assert_allclose(
        response.losses(levels, moments_of(sets[1])).numpy(), losses_on_images(weights, sets[1]).numpy(), rtol=1e-9
    )


def test_best_response_is_what_a_minimizer_finds(sets: tuple[Images, Images]) -> None:
    images, level = sets[0], torch.tensor([[0.7]], dtype=torch.float64)

    def function(values: Any) -> tuple[float, Any]:
        leaf = torch.from_numpy(values).view(1, 10, 785).requires_grad_(True)
        value = objective(leaf, level, images, "norm")
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy().ravel()

    start = 0.01 * np.random.default_rng(0).standard_normal(7850)
    found = minimize(
        function, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-8}
    )
    weights = BestResponse(moments_of(images), "norm", by_class=False).weights(level)
    assert float(objective(weights, level, images, "norm")) == pytest.approx(found.fun, abs=1e-9)
    np.testing.assert_allclose(weights.numpy().ravel(), found.x, atol=2e-5)


def test_the_norm_makes_weights_vanish_and_the_square_does_not(sets: tuple[Images, Images]) -> None:
    moments = moments_of(sets[0])
    # the slope of the loss at w = 0
    threshold = math.log(float(2 * 50 / 10 * moments.cross.norm()))
    levels = torch.tensor([[threshold - 1e-3], [threshold + 1e-3]], dtype=torch.float64)
    for kind, vanishing in (("norm", [False, True]), ("squared_norm", [False, False])):
        weights = BestResponse(moments, kind, by_class=False).weights(levels)  # type: ignore[arg-type]
        assert (weights.flatten(1).norm(dim=-1) == 0).tolist() == vanishing


def test_biases_of_ten_levels_are_free(sets: tuple[Images, Images]) -> None:
    weights = BestResponse(moments_of(sets[0]), "norm", by_class=True).weights(torch.full((1, 10), 15.0))
    assert torch.equal(weights[..., :-1], torch.zeros(1, 10, 784, dtype=torch.float64))
    np.testing.assert_allclose(weights[0, :, -1].numpy(), sets[0].targets.mean(0).numpy())


@cache
def responses() -> list[BestResponse]:
    moments = moments_of(images_of(blobs(15), torch.arange(15), CPU))
    return [BestResponse(moments, kind, by_class=False) for kind in KINDS]


@settings(max_examples=50, deadline=None)
@given(st.floats(-6, 2), st.floats(0.01, 3))
def test_more_regularization_makes_shorter_weights(level: float, more: float) -> None:
    for response in responses():
        lengths = response.weights(torch.tensor([[level], [level + more]])).flatten(1).norm(dim=-1)
        assert lengths[1] < lengths[0]


# --- hyper-training


@pytest.mark.parametrize("name", ["hypernetwork_local", "hypernetwork_global"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_losses_written_out(dataset: Dataset, name: str, kind: Regularizer) -> None:
    changed = LOCAL if name == "hypernetwork_local" else GLOBAL
    task: HyperTraining = build(dataset, name, **changed, regularizer=kind)
    params = 0.1 * torch.randn(2, task.hypernetwork.layout.size, generator=torch.Generator().manual_seed(0))
    hyper = torch.tensor([[-0.5], [1.3]])
    batch = task.inner(3, 1)[0]
    derivatives = Derivatives(task.problem, hyper)
    found, outer = derivatives.inner_gradient(params, batch), derivatives.outer_gradient(params, task.outer_batch)
    for index, draws in enumerate(batch.draws):
        leaf, at = params[index].clone().requires_grad_(True), hyper[index].clone().requires_grad_(True)
        levels = hyper[index] + 0.5 * draws if name == "hypernetwork_local" else (1 + 3 * draws).clamp(max=4)
        images = Images(*(part[index] for part in batch.images))
        total = torch.zeros(())
        for level in levels:
            weights = task.hypernetwork.forward(leaf, level).view(10, 785)
            length = weights.norm() if kind == "norm" else weights.square().sum()
            residuals = images.features @ weights.T - images.targets
            total = total + 50 * residuals.square().mean() + level.exp().squeeze() * length
        (expected,) = torch.autograd.grad(total / len(levels), leaf)
        torch.testing.assert_close(found[index], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        weights = task.hypernetwork.forward(params[index], at).view(1, 10, 785)
        validation = Moments(*(part[index] for part in task.outer_batch))
        (slope,) = torch.autograd.grad(losses_on_moments(weights, validation).mean(), at)
        torch.testing.assert_close(outer.hyper[index], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["hypernetwork_local", "hypernetwork_global"])
def test_metrics_of_a_run(dataset: Dataset, name: str) -> None:
    changed = LOCAL if name == "hypernetwork_local" else GLOBAL
    task: HyperTraining = build(dataset, name, **changed)
    result = run(task, name, "first_order")
    assert bool(result.alive.all())
    assert list(result.trace) == [0, 2, 4, 5]
    for metrics in result.trace.values():
        assert set(metrics) >= TRACE
        assert bool((metrics["excess"] > -1e-4).all())
        torch.testing.assert_close(metrics["distance"], (metrics["level"] - result.summary["optimal_level"]).abs())
    grid = torch.linspace(-4, 8, 49, dtype=torch.float64).unsqueeze(-1)
    for index, share in enumerate(task.shares):
        curve = share.response.losses(grid, share.validation).mean(-1)
        assert float(result.summary["optimal_loss"][index]) <= float(curve.min()) + 1e-9
        assert abs(float(grid[curve.argmin(), 0]) - float(result.summary["optimal_level"][index])) < 0.26
    rows = {(p.seed, p.quantity, p.x): p.y for p in result.points}
    for seed, index in ((0, 0), (2, 1)):
        for quantity, level, loss in (
            ("found", "level", "predicted_loss"),
            ("optimal", "optimal_level", "optimal_loss"),
        ):
            where = {x: y for (of, name, x), y in rows.items() if (of, name) == (seed, quantity)}
            assert list(where) == [pytest.approx(float(result.summary[level][index]), abs=1e-6)]
            assert list(where.values()) == [pytest.approx(float(result.summary[loss][index]), abs=1e-5)]
        gaps = [
            abs(rows[seed, "predicted", x] - y) for (of, name, x), y in rows.items() if (of, name) == (seed, "true")
        ]
        assert len(gaps) == 76
        assert sum(gaps) / 76 == pytest.approx(float(result.summary["response_error"][index]), rel=1e-4)


def test_slopes_are_derivatives(dataset: Dataset) -> None:
    task: HyperTraining = build(dataset, "hypernetwork_local", **LOCAL)
    state, hyper = task.start()
    summary = task.summarize(state, hyper, [])
    exact = Derivatives(task.problem, hyper).outer_gradient(task.optimizer.params(state), task.outer_batch).hyper
    torch.testing.assert_close(summary["slope"].float(), exact[:, 0], rtol=1e-3, atol=1e-3)
    width = 1e-2
    for index, share in enumerate(task.shares):
        ends = hyper[index].double() + torch.tensor([[-width], [width]], dtype=torch.float64)
        low, high = share.response.losses(ends, share.validation).mean(-1).tolist()
        assert float(summary["true_slope"][index]) == pytest.approx((high - low) / (2 * width), rel=1e-2, abs=1e-6)


def test_a_seed_is_the_same_alone_as_in_company(dataset: Dataset) -> None:
    for name, changed in (("hypernetwork_local", LOCAL), ("hypernetwork_global", GLOBAL)):
        both, alone = (run(build(dataset, name, seeds, **changed), name, "first_order") for seeds in ((0, 2), (2,)))
        for metric in ("level", "predicted_loss", "optimal_level", "true_loss"):
            torch.testing.assert_close(both.summary[metric][1], alone.summary[metric][0], rtol=1e-4, atol=1e-4)


def test_sets_are_disjoint_and_regularizers_share_draws(dataset: Dataset) -> None:
    first, second = (build(dataset, "hypernetwork_local", **LOCAL, regularizer=kind) for kind in KINDS)
    assert torch.equal(first._train.features, second._train.features)
    assert torch.equal(first.start()[0], second.start()[0])
    assert torch.equal(first.inner(4, 2)[1].draws, second.inner(5, 1)[0].draws)
    assert not torch.equal(first._train.features[0], first._train.features[1])


def test_optimizers_of_the_hypernetwork(dataset: Dataset) -> None:
    assert build(dataset, "hypernetwork_local", **LOCAL, optimizer="sgd").optimizer == SGD(learning_rate=1e-3)
    assert build(dataset, "hypernetwork_local", **LOCAL).optimizer == Adam(learning_rate=1e-3)


def test_draws_of_the_global_distribution(dataset: Dataset) -> None:
    task: Any = build(dataset, "hypernetwork_global", **GLOBAL | {"samples": 400})
    levels = torch.cat([task.levels(torch.zeros(1), batch.draws[0]) for batch in task.inner(0, 5)])
    assert float(levels.max()) == 4.0
    assert float(levels.median()) == pytest.approx(1.0, abs=0.25)
    assert float(levels.quantile(0.1)) == pytest.approx(1 + 3 * norm.ppf(0.1), abs=0.4)


def test_hyper_training_approaches_the_best_response(dataset: Dataset) -> None:
    changed = {**SIZES, "outer_steps": 1, "evaluate_every": 1, "hidden": 10, "samples": 10}
    early, late = (
        run(build(dataset, "hypernetwork_global", **changed, steps=steps), "hypernetwork_global", "first_order")
        for steps in (10, 80)
    )
    assert bool((late.summary["response_error"] < 0.7 * early.summary["response_error"]).all())


def test_a_point_teaches_no_slope_and_a_spread_does(dataset: Dataset) -> None:
    """With σ = 0 gradient descent changes A by λ times what it changes b by, whatever the best response is."""
    for spread, tied in ((0.0, True), (0.5, False)):
        changed = {**LOCAL, "initial_level": 0.5, "spread": spread, "optimizer": "sgd", "learning_rate": 1e-4}
        task: HyperTraining = build(dataset, "hypernetwork_local", **changed, inner_steps=20)
        state, hyper = task.start()
        method: Any = create_method("hypernetwork_local", "none", {})
        batches, outer_batch = task.draw(0)
        last = method(task.problem, task.optimizer, state, hyper, batches, outer_batch).state
        slope, bias = (last - state)[:, 0].tensor_split(2, dim=-1)
        assert float(bias.abs().max()) > 1e-3
        assert torch.allclose(slope, 0.5 * bias, rtol=1e-3, atol=1e-6) == tied


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("hypernetwork_local", {"train_size": 90}, "train_size 90"),
        ("hypernetwork_local", {"regularizer": "lasso"}, "regularizer"),
        ("hypernetwork_local", {"spread": -1.0}, "spread"),
        ("hypernetwork_global", {"hidden": 0}, "hidden"),
        ("hypernetwork_scatter", {**SCATTER, "batch_size": 31}, "batch_size"),
        ("hypernetwork_scatter", {**SCATTER, "evaluations": [5, 3]}, "ascending"),
        ("hypernetwork_scatter", {**SCATTER, "lowest": 3.0}, "lowest"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    dataset: Dataset, name: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        build(dataset, name, **{**(LOCAL if name == "hypernetwork_local" else {}), **changed})


# --- the scatter


def test_losses_of_candidates_are_those_of_best_responses(dataset: Dataset) -> None:
    for kind in KINDS:
        task: HypernetworkScatter = build(dataset, "hypernetwork_scatter", **SCATTER, regularizer=kind)
        for index in range(2):
            response = BestResponse(task._moments["train"][index], kind, by_class=True)
            exact = response.losses(task.candidates[index], task._moments["validation"][index]).mean(-1)
            np.testing.assert_allclose(task.true_losses[index].numpy(), exact.numpy(), atol=3e-4)


def test_gaussian_process_against_conditional_normals() -> None:
    rng = np.random.default_rng(0)
    known, places = rng.uniform(-3, 3, (12, 3)), rng.uniform(-3, 3, (7, 3))
    losses = np.sin(known).sum(1) + 2

    def covariance(left: Any, right: Any, length: float) -> Any:
        return np.exp(-np.square(left[:, None] - right[None]).sum(-1) / (2 * length**2))

    def likelihood(log_length: float, values: Any) -> float:
        matrix = covariance(known, known, math.exp(log_length)) + 1e-8 * np.eye(12)
        return float(multivariate_normal(np.zeros(12), matrix).logpdf(values))

    for standardize in (True, False):
        values = (losses - losses.mean()) / losses.std() if standardize else losses
        squares = np.square(known[:, None] - known[None]).sum(-1)
        length = likeliest_length(squares, values)
        best = max(likelihood(log, values) for log in np.linspace(-3, 5, 400))
        assert likelihood(math.log(length), values) >= best - 1e-6
        matrix = covariance(known, known, length) + 1e-8 * np.eye(12)
        mean = covariance(places, known, length) @ solve(matrix, values)
        expected = losses.mean() + losses.std() * mean if standardize else mean
        process = GaussianProcess(standardize=standardize)
        np.testing.assert_allclose(process.fit_predict(known, losses, places), expected, rtol=1e-6)
        np.testing.assert_allclose(process.fit_predict(known, losses, known), losses, rtol=1e-5)


def test_a_gaussian_process_on_equal_losses_predicts_them() -> None:
    known = np.random.default_rng(0).uniform(-3, 3, (5, 2))
    np.testing.assert_allclose(GaussianProcess().fit_predict(known, np.full(5, 0.7), known + 1), 0.7)


@pytest.mark.parametrize("method", ["gaussian_process", "fixed", "stochastic"])
def test_surrogates(dataset: Dataset, method: str) -> None:
    task: HypernetworkScatter = build(dataset, "hypernetwork_scatter", **SCATTER)
    result = run(task, "hypernetwork_scatter", method)
    assert bool(result.alive.all())
    assert list(result.trace) == [3, 5, 7]
    predicted = create_method("hypernetwork_scatter", method, {}).predict(task, 5)  # type: ignore[attr-defined]
    for index in range(2):
        guess, true = predicted[index].numpy(), task.true_losses[index].numpy()
        row = {metric: float(values[index]) for metric, values in result.trace[5].items()}
        assert row["found_loss"] == true[guess.argmin()]
        assert row["promised_loss"] == guess.min()
        assert row["excess"] == pytest.approx(row["found_loss"] - true.min())
        expected = np.corrcoef(guess, true)[0, 1] if guess.std() > 1e-12 else 0.0
        assert row["correlation"] == pytest.approx(expected, abs=1e-6)
        assert row["bias"] == pytest.approx((guess - true).mean())
        assert row["error"] == pytest.approx(np.sqrt(np.square(guess - true).mean()))
        assert float(result.summary["found_loss_5"][index]) == row["found_loss"]
        assert float(result.summary["best_loss"][index]) == true.min()
    assert len(result.points) == 40


def test_surrogates_see_the_same_and_what_they_should(dataset: Dataset) -> None:
    task: HypernetworkScatter = build(dataset, "hypernetwork_scatter", **SCATTER)
    again: HypernetworkScatter = build(dataset, "hypernetwork_scatter", **SCATTER)
    assert torch.equal(task.known, again.known)
    seen: list[Tensor] = []
    task.train = lambda levels, _: seen.append(torch.stack([levels(0), levels(1)])) or torch.zeros(2, 86_350)  # type: ignore[method-assign, func-returns-value]
    of = partial(create_method, "hypernetwork_scatter")
    of("fixed", {}).predict(task, 3)  # type: ignore[attr-defined]
    assert torch.equal(seen[0][0], task.known[:, :3])
    assert torch.equal(seen[0][1], task.known[:, :3])
    of("fixed", {}).predict(task, 7)  # type: ignore[attr-defined]
    assert seen[1].shape == (2, 2, 5, 10)
    assert bool((seen[1].unsqueeze(3) == task.known[:, None, :7].unsqueeze(0)).all(-1).any(-1).all())
    of("stochastic", {}).predict(task, 7)  # type: ignore[attr-defined]
    assert seen[2].shape == (2, 2, 5, 10)
    assert not torch.equal(seen[2][0], seen[2][1])
    assert float(seen[2].abs().max()) <= 3


def test_predicted_losses_are_those_of_the_hypernetworks_weights(dataset: Dataset) -> None:
    task: HypernetworkScatter = build(dataset, "hypernetwork_scatter", **SCATTER)
    params = 0.01 * torch.randn(2, 86_350, generator=torch.Generator().manual_seed(0))
    found = task.predicted(params)
    for index in range(2):
        weights = task.hypernetwork.forward(params[index], task.candidates[index]).view(-1, 10, 785)
        exact = losses_on_moments(weights.double(), task._moments["validation"][index]).mean(-1)
        torch.testing.assert_close(found[index], exact, rtol=1e-4, atol=1e-4)
