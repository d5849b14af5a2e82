"""The regularized network: its groups of weights, trainings against plain PyTorch, costs, what each method is given."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import made_images
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from bilevel.data import Dataset
from bilevel.models import perceptron
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.search_function.random import first_points
from bilevel.tasks.search_network import Evaluations, SearchNetwork, _at_end, group_sizes

SIZE = 3322
SMALL = {
    "train_size": 20,
    "validation_size": 40,
    "test_size": 30,
    "hyperparameters": [1, 3],
    "evaluations": 6,
    "inner_steps": 8,
}
HYPERGRADIENTS: dict[str, dict[str, Any]] = {
    "unrolled": {},
    "truncated": {"steps": 2},
    "conjugate_gradient": {"iterations": 3, "tolerance": 0.0, "damping": 1.0},
}


blobs = partial(made_images.blobs, noise=200, bar=50)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(90, 0)})


def build(dataset: Dataset, seeds: list[int] | None = None, **settings: Any) -> SearchNetwork:
    cls = task_class("search_network")
    task = cls("study", cls.read_settings({**SMALL, **settings}), dataset, seeds or [0, 4], torch.device("cpu"))
    assert isinstance(task, SearchNetwork)
    return task


def run(task: SearchNetwork, method: str, **settings: Any) -> Result:
    return task.run(create_method("search_network", method, settings or HYPERGRADIENTS.get(method, {})), "run")


# --- the network


def test_the_network_is_that_of_torch() -> None:
    draws = torch.Generator().manual_seed(0)
    params = perceptron.initial(draws).double() + 0.1 * torch.randn(SIZE, generator=draws, dtype=torch.float64)
    images = torch.randn(5, 196, generator=draws, dtype=torch.float64)
    module = torch.nn.Sequential(torch.nn.Linear(196, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)).double()
    p = perceptron.LAYOUT.split(params)
    ours = [p["hidden.weight"].T, p["hidden.bias"], p["output.weight"].T, p["output.bias"]]
    tensors = {name: tensor for (name, _), tensor in zip(module.named_parameters(), ours, strict=True)}
    expected = torch.func.functional_call(module, tensors, (images,))
    torch.testing.assert_close(perceptron.forward(params, images), expected, rtol=1e-12, atol=1e-12)
    assert perceptron.LAYOUT.size == SIZE


def test_pixels_go_from_the_middle_outwards() -> None:
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = perceptron.pixels(images)
    halved = avg_pool2d(images, 2).squeeze(1)
    torch.testing.assert_close(found[:, :4].sort().values, halved[:, 6:8, 6:8].flatten(1).sort().values)
    corners = halved[:, [0, 0, 13, 13], [0, 13, 0, 13]]
    torch.testing.assert_close(found[:, -4:].sort().values, corners.sort().values)
    torch.testing.assert_close(found.sort().values, halved.flatten(1).sort().values)


def test_first_weights() -> None:
    p = perceptron.LAYOUT.split(perceptron.initial(torch.Generator().manual_seed(1)))
    assert p["hidden.weight"].std().item() == pytest.approx(1 / 14, rel=0.05)
    assert p["output.weight"].std().item() == pytest.approx(1 / 4, rel=0.2)
    assert not p["hidden.bias"].any()
    assert not p["output.bias"].any()


# --- hyperparameters


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50, 197])
def test_groups_are_rings_and_the_rest(count: int) -> None:
    sizes = group_sizes(count)
    assert sizes is not None
    assert len(sizes) == count
    assert sum(sizes) == SIZE
    if count > 1:
        assert sizes[-1] == 16 + 160 + 10
        assert all(size % 16 == 0 for size in sizes[:-1])
        assert max(sizes[:-1]) - min(sizes[:-1]) <= 16


def test_every_weight_by_itself_and_what_is_between() -> None:
    assert group_sizes(SIZE) is None
    with pytest.raises(ValueError, match="at most 197, or 3322, one for every weight; got 198"):
        group_sizes(198)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyperparameters": [1, 500]}, "one for every weight; got 500"),
        ({"hyperparameters": [2, 1]}, "expected rising numbers"),
        ({"lowest": 1.0, "highest": 0.5}, "lowest 1.0 should be below highest 0.5"),
        ({"evaluations": 0}, "evaluations"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SearchNetwork.read_settings({**SMALL, **settings})


def test_sets_that_do_not_fit_are_refused(dataset: Dataset) -> None:
    with pytest.raises(SettingsError, match="do not fit made"):
        build(dataset, test_size=31)


# --- trainings, by hand


def first(task: SearchNetwork, count: int) -> Tensor:
    """The hyperparameters (S, n) that all begin with."""
    return first_points(count, task.bounds, task.search_seeds)


def training(task: SearchNetwork, index: int, hyper: Tensor) -> tuple[Tensor, Tensor]:
    """Validation and test loss of one seed after T steps of momentum, in float64, differentiable by `hyper` (n,)."""
    sizes = group_sizes(len(hyper)) or [1] * SIZE
    coefficients = hyper.exp().repeat_interleave(torch.tensor(sizes))
    sets = {name: (images[index].double(), labels[index]) for name, (images, labels) in task.sets.items()}
    params = task.start[index, 0].double().requires_grad_()
    velocity = torch.zeros_like(params)
    for _ in range(task.settings.inner_steps):
        loss = perceptron.loss(params, hyper, sets["train"]) + 0.5 * (coefficients * params**2).sum()
        (gradient,) = torch.autograd.grad(loss, params, create_graph=True)
        velocity = 0.9 * velocity + gradient
        params = params - 0.1 * velocity
    outer = [cross_entropy(perceptron.forward(params, sets[name][0]), sets[name][1]) for name in ("validation", "test")]
    return outer[0], outer[1]


@pytest.mark.parametrize("method", ["random", "sobol", "tpe", *HYPERGRADIENTS])
@pytest.mark.parametrize("count", [1, 3, SIZE])
def test_the_first_training_is_the_same_for_all(dataset: Dataset, method: str, count: int) -> None:
    task = build(dataset, hyperparameters=[count], evaluations=1)
    result = run(task, method)
    for index, hyper in enumerate(first(task, count)):
        validation, test = training(task, index, hyper)
        assert result.trace[1][f"best_{count}"][index].item() == pytest.approx(validation.item(), rel=1e-4)
        assert result.trace[1][f"test_{count}"][index].item() == pytest.approx(test.item(), rel=1e-4)


def test_descent_follows_the_exact_hypergradient(dataset: Dataset) -> None:
    """Trainings along `torch.optim.Adam` on the derivative through the whole training, in float64."""
    task = build(dataset, hyperparameters=[3], evaluations=4)
    hyper = first(task, 3)[1].clone().requires_grad_()
    outer = torch.optim.Adam([hyper], lr=0.8)
    losses = []
    for _ in range(4):
        validation, _ = training(task, 1, hyper)
        losses.append(validation.item())
        (hyper.grad,) = torch.autograd.grad(validation, hyper)
        outer.step()
        with torch.no_grad():
            hyper.clamp_(*task.bounds)
    found = [metrics["best_3"][1].item() for metrics in run(task, "unrolled").trace.values() if "best_3" in metrics]
    assert found == pytest.approx([min(losses[: index + 1]) for index in range(4)], rel=1e-3)
    assert len(set(found)) > 1


def test_descent_may_begin_in_the_middle(dataset: Dataset) -> None:
    task = build(dataset, hyperparameters=[3], evaluations=1, start="middle")
    middle = (math.log(1e-4) + math.log(10)) / 2
    expected = training(task, 0, torch.full((3,), middle, dtype=torch.float64))[0].item()
    assert run(task, "unrolled").summary["validation_loss_3"][0].item() == pytest.approx(expected, rel=1e-4)


def test_a_grid_of_one_coefficient_and_none_of_three(dataset: Dataset) -> None:
    task = build(dataset)
    result = run(task, "grid")
    places = torch.linspace(math.log(1e-4), math.log(10), 6, dtype=torch.float64)
    losses = [training(task, 0, place.view(1))[0].item() for place in places]
    assert result.summary["validation_loss_1"][0].item() == pytest.approx(min(losses), rel=1e-4)
    assert "validation_loss_3" not in result.summary
    assert "validation_loss" not in result.trace[3]


# --- costs


@pytest.mark.parametrize(
    ("method", "price"),
    # steps, the outer gradient, one more where steps are taken again, and two for each product with the Hessian
    [("random", 8), ("unrolled", 8 + 1 + 2 * 7), ("truncated", 8 + 1 + 2 * 1), ("conjugate_gradient", 8 + 1 + 2 * 3)],
)
def test_gradients_are_counted(dataset: Dataset, method: str, price: int) -> None:
    result = run(build(dataset), method)
    found = [result.trace[step]["gradients_1"][0].item() for step in range(1, 7)]
    assert found == [price * step for step in range(1, 7)]


def test_equal_cost_is_what_a_search_takes_in_all(dataset: Dataset) -> None:
    task = build(dataset)
    search, descent = run(task, "random").summary, run(task, "unrolled")
    assert torch.equal(search["validation_loss_3"], search["validation_loss_equal_cost_3"])
    # two trainings of 23 gradients fit into 48
    assert torch.equal(descent.summary["validation_loss_equal_cost_3"], descent.trace[2]["best_3"])
    assert torch.equal(descent.summary["test_loss_equal_cost_3"], descent.trace[2]["test_3"])
    assert torch.equal(descent.summary["validation_loss_3"], descent.trace[6]["best_3"])
    for kind in ("validation", "test"):
        gain = [descent.summary[f"{kind}_loss_equal_cost_{count}"] for count in (1, 3)]
        assert torch.equal(descent.summary[f"{kind}_gain_3"], gain[0] - gain[1])


def test_what_is_reported_is_what_validation_chose() -> None:
    """Of four trainings the third is best on validation images, of the first two the second; test losses differ."""
    column = torch.tensor([[3.0], [2.0], [1.0], [math.nan]])
    tests = torch.tensor([[1.0], [5.0], [6.0], [0.0]])
    evaluations = Evaluations(column, tests, tests / 10, torch.tensor([10.0, 20.0, 30.0, 40.0]))
    found = {name: values.item() for name, values in _at_end(evaluations, 20).items()}
    assert found == pytest.approx(
        {
            "validation_loss": 1,
            "test_loss": 6,
            "test_error": 0.6,
            "validation_loss_equal_cost": 2,
            "test_loss_equal_cost": 5,
            "test_error_equal_cost": 0.5,
        }
    )
    assert all(math.isnan(_at_end(evaluations, 9)[f"{name}_equal_cost"]) for name in ("validation_loss", "test_loss"))


# --- runs


@pytest.mark.parametrize("method", ["random", *HYPERGRADIENTS])
def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset, method: str) -> None:
    together, alone = (run(build(dataset, seeds), method).summary for seeds in ([0, 4], [4]))
    for name in ("validation_loss_3", "test_loss_3", "validation_loss_1"):
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["random", "unrolled"])
def test_test_images_change_nothing_but_their_metrics(dataset: Dataset, method: str) -> None:
    before, changed = build(dataset), build(dataset)
    changed.sets["test"][0].neg_()
    first_run, second = run(before, method).summary, run(changed, method).summary
    for count in (1, 3):
        assert torch.equal(first_run[f"validation_loss_{count}"], second[f"validation_loss_{count}"])
        assert (first_run[f"test_loss_{count}"] != second[f"test_loss_{count}"]).all()


@pytest.mark.parametrize(("method", "alive"), [("random", True), ("unrolled", False)])
def test_a_training_that_diverges(dataset: Dataset, method: str, alive: bool) -> None:
    """A coefficient that momentum cannot follow: a search passes over it, descent ends there."""
    task = build(dataset, hyperparameters=[1], inner_steps=60, evaluations=12, highest=1e12)
    assert (first(task, 1).exp() > 1e3).all()
    result = run(task, method)
    assert result.alive.tolist() == [alive] * 2
    if alive:
        assert torch.isfinite(result.summary["validation_loss_1"]).all()


def test_hypergradients_use_thousands_of_coefficients() -> None:
    """After as many trainings they are far below the best that one coefficient gives, from a worse start."""
    made = Dataset("made", {"all": blobs(300, 0)})
    chosen: dict[str, Any] = {
        "train_size": 40,
        "validation_size": 100,
        "test_size": 100,
        "evaluations": 30,
        "inner_steps": 20,
    }
    descent = run(build(made, **chosen, hyperparameters=[SIZE]), "unrolled").summary
    search = run(build(made, **chosen, hyperparameters=[1]), "grid").summary
    assert (descent[f"validation_loss_{SIZE}"] < 0.8 * search["validation_loss_1"]).all()
