"""The study of a learned optimizer: its method against autograd, its problems, its rows."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from cases import CASES, OPTIMIZERS, Case
from torch import Tensor

import bilevel
from bilevel.data import Dataset, Split
from bilevel.optimizers import LSTM
from bilevel.settings import SettingsError
from bilevel.tasks.learned_optimizer import TASK, LearnedOptimizer
from bilevel.tasks.learned_optimizer.problems import Quadratics
from bilevel.tasks.learned_optimizer.trajectory import Trajectory
from bilevel.tasks.learned_optimizer.tuned import OPTIMIZERS as TUNED
from bilevel.tasks.learned_optimizer.tuned import Tuned

SMALL = {
    "count": 3,
    "size": 2,
    "other_size": 3,
    "steps": 6,
    "unroll": 3,
    "units": 2,
    "outer_steps": 4,
    "evaluate_every": 2,
}
CPU = torch.device("cpu")


def made(seeds: list[int], dataset: Dataset | None = None, **settings: Any) -> LearnedOptimizer:
    return TASK("study", TASK.read_settings({**SMALL, **settings}), dataset, seeds, CPU)


def images() -> Dataset:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (300, 1, 28, 28), generator=draws, dtype=torch.uint8)
    return Dataset("mnist_5k", {"all": Split(pixels, torch.randint(10, (300,), generator=draws))})


def derivative(optimizer: Any, case: Case, *, given: bool) -> tuple[Tensor, Tensor]:
    """The mean of the outer losses of all steps and its derivative, by autograd; `given`: gradients are constants."""
    hyper = case.hyper.clone().requires_grad_()
    slots = torch.zeros(optimizer.slots, case.params.numel(), dtype=torch.float64)
    slots[0] = case.params
    rows, losses = list(slots), []
    for t, batch in enumerate(case.batches, 1):
        gradient = torch.func.grad(case.whole_inner_loss)(rows[0], hyper, batch)
        rows = reference.STEPS[type(optimizer)](
            optimizer, t, torch.stack(rows), gradient.detach() if given else gradient, hyper
        )
        rows += [torch.zeros_like(case.params)] * (optimizer.slots - len(rows))  # the count of steps, not looked at
        losses.append(case.problem.outer_loss(rows[0], hyper, case.outer_batch))
    loss = torch.stack(losses).mean() + 0 * hyper.sum()
    return loss.detach(), torch.autograd.grad(loss, hyper)[0]


@pytest.mark.parametrize("name", ["sgd_learned", "momentum", "adam_learned", "clipped_momentum"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("make", CASES[:2])
def test_trajectory_is_the_derivative_of_the_mean_loss(make: Any, given: bool, name: str) -> None:
    case, optimizer = make(4), OPTIMIZERS[name]
    found = Trajectory(second_derivatives=not given)(
        case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches, case.outer_batch
    )
    for seed in range(len(case.params)):
        loss, expected = derivative(optimizer, case.seed(seed), given=given)
        torch.testing.assert_close(found.outer_loss[seed], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.hypergradient[seed], expected, rtol=1e-9, atol=1e-12)
    assert found.cost.hessian_products == (0 if given else 3)


def test_trajectory_of_the_network() -> None:
    """Of the very problem of the study, in double precision."""
    family, optimizer = Quadratics("study", [0, 1], CPU, 2, 3), LSTM(units=2)
    draws = torch.Generator().manual_seed(0)
    hyper = 0.5 * torch.randn(2, optimizer.size, generator=draws, dtype=torch.float64)
    params = family.start("train", 0).double()
    batch = tuple(part.double() for part in family.draw("train", 0, 0, 4)[1])

    def inner(w: Tensor, h: Tensor, batch: Any) -> Tensor:
        return (torch.einsum("nij,nj->ni", batch[0], w.view(3, 2)) - batch[1]).square().sum()

    def outer(w: Tensor, h: Tensor, batch: Any) -> Tensor:
        return inner(w, h, batch) / 3

    case = Case("functions", bilevel.Problem(inner, outer), inner, params, hyper, [batch] * 4, batch)
    for given in (True, False):
        found = Trajectory(second_derivatives=not given)(
            family.problem, optimizer, optimizer.init(params), hyper, case.batches, batch
        )
        for seed in range(2):
            _, expected = derivative(optimizer, case.seed(seed), given=given)
            torch.testing.assert_close(found.hypergradient[seed], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TUNED)
def test_tuned_optimizers_are_those_of_torch(name: str) -> None:
    draws, hyper = torch.Generator().manual_seed(0), torch.tensor([[0.05]], dtype=torch.float64).log()
    gradients = torch.randn(5, 4, generator=draws, dtype=torch.float64)
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    theirs: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD([weights], 0.05),
        "momentum": lambda: torch.optim.SGD([weights], 0.05, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop([weights], 0.05, alpha=0.99),
        "adam": lambda: torch.optim.Adam([weights], 0.05),
    }[name]()
    state = TUNED[name].init(torch.zeros(1, 4, dtype=torch.float64))
    for gradient in gradients:
        weights.grad = gradient.clone()
        theirs.step()
        TUNED[name].step_(state, gradient.unsqueeze(0), hyper)
    torch.testing.assert_close(state[0, 0], weights.detach(), rtol=1e-12, atol=1e-14)


def test_functions_are_optimized_each_as_alone() -> None:
    family = Quadratics("study", [0], CPU, 2, 3)
    params, (batches, _) = family.start("test", 0)[0], family.draw("test", 0, 0, 1)
    w, y = (part[0] for part in batches[0])
    gradient = torch.func.grad(family.problem.inner_loss)(params, torch.zeros(1), (w, y)).view(3, 2)
    for place in range(3):
        alone = 2 * w[place].T @ (w[place] @ params.view(3, 2)[place] - y[place])
        torch.testing.assert_close(gradient[place], alone)
    whole = family.problem.outer_loss(params, torch.zeros(1), (w, y))
    torch.testing.assert_close(whole, family.problem.inner_loss(params, torch.zeros(1), (w, y)) / 3)


def test_optimizations_go_on_through_their_parts_and_begin_anew() -> None:
    task = made([0])
    state = torch.ones_like(task.start()[0])
    assert torch.equal(task.begin(1, state), state)
    assert not torch.equal(task.begin(2, state), state)
    assert torch.equal(task.optimizer.params(task.begin(0, state)), task.family.start("train", 0))
    first, second, third = (task.draw(step)[1][0] for step in (0, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("problem", ["quadratic", "network"])
def test_rows(problem: str) -> None:
    data = images() if problem == "network" else None
    chosen = {"problem": problem, "train_size": 100, "validation_size": 100, "batch_size": 4, "outer_batch_size": 5}
    learned = made([0, 1], data, **chosen).run(Trajectory(), "learned")
    tuned = made([0, 1], data, **chosen).run(Tuned("adam", trials=3), "adam")
    metrics = {f"{prefix}loss_{kind}" for prefix in ("", "other_") for kind in ("mean", "last", "twice")}
    assert metrics | {"lost", "training_gradients"} <= set(learned.summary) & set(tuned.summary)
    assert learned.summary["training_gradients"].tolist() == [12.0, 12.0]
    assert tuned.summary["training_gradients"].tolist() == [18.0, 18.0]
    assert [step for step, row in learned.trace.items() if "validation_loss" in row] == [0, 2, 4]
    assert {12, 6, 0} <= {step for step, row in tuned.trace.items() if {"loss", "other_loss"} <= set(row)}
    # both start at the same test problems
    assert torch.equal(learned.trace[0]["loss"], tuned.trace[0]["loss"])
    alone = made([1], data, **chosen).run(Trajectory(), "alone")
    for metric in metrics:
        torch.testing.assert_close(alone.summary[metric], learned.summary[metric][1:], rtol=1e-4, atol=1e-5)


def test_learning_lowers_the_loss() -> None:
    task = made([0, 1], size=5, count=8, steps=20, unroll=10, units=5, outer_steps=60, evaluate_every=20)
    task = LearnedOptimizer("study", task.settings.model_copy(update={"outer_learning_rate": 0.01}), None, [0, 1], CPU)
    result = task.run(Trajectory(), "learned")
    losses = [row["validation_loss"] for row in result.trace.values() if "validation_loss" in row]
    assert (losses[-1] < 0.8 * losses[0]).all()
    assert (result.summary["best_step"] > 0).all()


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"unroll": 4}, None, "unroll: 6 steps are not a whole number of parts of 4"),
        ({}, "mnist_5k", "quadratics use no data set"),
        ({"problem": "network"}, None, "a data set is needed"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], name: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TASK.check_data(TASK.read_settings({**SMALL, **settings}), name, {"all": 5000})


def test_methods_are_found() -> None:
    from bilevel.registry import own_method_names

    assert own_method_names("learned_optimizer") == ("trajectory", "tuned")
    case, lbfgs = CASES[0](2), bilevel.optimizers.LBFGS(bilevel.optimizers.Fixed(0.1))
    state = lbfgs.init(case.params)
    with pytest.raises(ValueError, match="trajectory: "):
        Trajectory()(case.problem, lbfgs, state, case.hyper, case.batches, case.outer_batch)
