"""Functions of low effective dimension: their minimum and scale, what searches and descent find, what is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel.results import Result
from bilevel.search import grid, random
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.search_function import SearchFunction
from bilevel.tasks.search_function.base import best_so_far
from bilevel.tasks.search_function.functions import Functions, draw
from bilevel.tasks.search_function.random import first_points

SEEDS = [0, 3]
ALL = ["grid", "random", "sobol", "tpe", "gaussian_process", "gradient"]


def build(seeds: list[int] | None = None, **settings: Any) -> SearchFunction:
    cls = task_class("search_function")
    chosen = cls.read_settings({"dimensions": [1, 2, 4], "evaluations": 11, **settings})
    task = cls("study", chosen, None, seeds or SEEDS, torch.device("cpu"))
    assert isinstance(task, SearchFunction)
    return task


def run(method: str, seeds: list[int] | None = None, own: dict[str, Any] | None = None, **settings: Any) -> Result:
    return build(seeds, **settings).run(create_method("search_function", method, own or {}), method)


def functions(dimension: int, effective: int | None, small: float = 0.1, ripple: float = 0.05) -> Functions:
    return draw(dimension, effective, small, ripple, SEEDS)


# --- the functions


def written_out(function: Functions, seed: int, point: list[float]) -> float:
    """The formula, in numpy."""
    away = np.array(point) - function.centers[seed].numpy()
    waves = 0.5 * function.ripple * (1 - np.cos(8 * np.pi * away))
    return float((function.weights[seed].numpy() * (away**2 + waves)).sum())


def test_values_are_those_of_the_formula() -> None:
    function = functions(5, 2)
    points = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [written_out(function, seed, points[seed].tolist()) for seed in range(2)]
    assert function(points).tolist() == pytest.approx(expected, rel=1e-12)
    assert (function(function.centers) == 0).all()
    assert ((function.centers > 0) & (function.centers < 1)).all()


@pytest.mark.parametrize(("dimension", "effective"), [(1, 1), (2, 1), (6, 2), (6, None), (2, 5)])
def test_a_random_point_has_the_mean_that_is_promised(dimension: int, effective: int | None) -> None:
    """By the midpoint rule along each axis, which the terms are a sum over."""
    function = functions(dimension, effective)
    places = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    means = torch.stack([function.parts(place.expand(2, dimension)) for place in places]).mean(0)
    matter = means.sort(descending=True).values[:, : min(effective or dimension, dimension)]
    small = 0.0 if effective is None or effective >= dimension else 0.1
    assert means.sum(-1).tolist() == pytest.approx([1 + small] * 2, abs=1e-6)
    assert matter.sum(-1).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_what_matters_is_the_same_in_every_dimension() -> None:
    shallow, deep = functions(2, 1), functions(30, 1)
    for seed in range(2):
        axes = [int(function.weights[seed].argmax()) for function in (shallow, deep)]
        for tensors in ((shallow.weights, deep.weights), (shallow.centers, deep.centers)):
            assert tensors[0][seed, axes[0]] == tensors[1][seed, axes[1]]
    places = {
        int(functions(30, 1).weights[0].argmax()),
        *(int(functions(d, 1).weights[0].argmax()) for d in range(9, 30)),
    }
    assert len(places) > 3


def test_seeds_have_functions_of_their_own() -> None:
    together, alone = functions(4, 2), draw(4, 2, 0.1, 0.05, [3])
    assert torch.equal(together.weights[1:], alone.weights)
    assert torch.equal(together.centers[1:], alone.centers)
    assert not torch.equal(together.centers[0], together.centers[1])


# --- searches and descent


@pytest.mark.parametrize("method", ALL)
def test_regret_never_rises_and_ends_as_the_summary_says(method: str) -> None:
    result = run(method, dimensions=[1, 3])
    assert result.alive.all()
    for dimension in (1, 3):
        name = f"regret_{dimension}"
        values = torch.stack([metrics[name] for step, metrics in result.trace.items() if name in metrics])
        assert len(values) == 11
        paid = values[2:] if method == "gradient" else values
        assert torch.isnan(values[:2]).all() == (method == "gradient")
        assert (paid >= 0).all()
        assert (paid.diff(dim=0) <= 0).all()
        assert torch.equal(values[-1], result.summary[name])
        assert torch.equal(result.trace[dimension]["regret"], result.summary[name])
    growth = result.summary["regret_3"] - result.summary["regret_1"]
    assert torch.equal(result.summary["regret_growth"], growth)


def by_hand(task: SearchFunction, dimension: int, search: Any) -> Tensor:
    """Least values of searches one seed after the other."""
    function = task.functions(dimension, task.settings.effective)
    space = {f"x{axis:05d}": (0.0, 1.0, False) for axis in range(dimension)}
    least = []
    for index, seed in enumerate(task.search_seeds):
        found = search.minimize(
            lambda params, index=index: written_out(function, index, list(params.values())), space, 11, seed
        )
        least.append(found.best.value)
    return torch.tensor(least, dtype=torch.float64)


@pytest.mark.parametrize(("method", "search"), [("random", random), ("grid", grid)])
@pytest.mark.parametrize("effective", [1, None])
def test_a_search_is_that_of_the_library(method: str, search: Any, effective: int | None) -> None:
    result, task = run(method, dimensions=[1, 2], effective=effective), build(effective=effective)
    for dimension in (1, 2):
        torch.testing.assert_close(
            result.summary[f"regret_{dimension}"], by_hand(task, dimension, search), rtol=1e-9, atol=0
        )


def test_descent_is_adam_in_the_cube() -> None:
    """With `torch.optim.Adam` and autograd, for eleven evaluations: three gradients."""
    task = build(dimensions=[3], effective=None)
    function, points = task.functions(3, None), first_points(3, (0.0, 1.0), task.search_seeds)
    least = torch.full((2,), math.inf, dtype=torch.float64)
    for seed in range(2):
        at = points[seed].clone().requires_grad_()
        optimizer = torch.optim.Adam([at], lr=0.3)
        for _ in range(3):
            away = at - function.centers[seed]
            value = (function.weights[seed] * (away**2 + 0.025 * (1 - torch.cos(8 * math.pi * away)))).sum()
            least[seed] = min(least[seed], value.detach())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                at.clamp_(0, 1)
    found = run("gradient", own={"learning_rate": 0.3}, dimensions=[3], effective=None)
    torch.testing.assert_close(found.summary["regret_3"], least, rtol=1e-9, atol=0)


def test_descent_begins_where_random_search_does() -> None:
    blind, descent = (run(method, dimensions=[4]) for method in ("random", "gradient"))
    torch.testing.assert_close(blind.trace[1]["regret_4"], descent.trace[3]["regret_4"], rtol=1e-12, atol=0)


def test_a_grid_ends_where_two_places_an_axis_are_too_many() -> None:
    result = run("grid", dimensions=[1, 3, 4])
    assert {"regret_1", "regret_3"} < set(result.summary)
    assert "regret_4" not in result.summary
    assert "regret" not in result.trace[4]
    assert torch.equal(result.summary["regret_growth"], result.summary["regret_3"] - result.summary["regret_1"])
    assert "regret_3" in run("grid", dimensions=[1, 3], evaluations=8).summary
    assert "regret_3" not in run("grid", dimensions=[1, 3], evaluations=7).summary


def test_a_grid_of_middles() -> None:
    found = run("grid", own={"places": "middles"}, dimensions=[1], evaluations=4)
    function = functions(1, 1)
    least = [min(written_out(function, seed, [place]) for place in (1 / 8, 3 / 8, 5 / 8, 7 / 8)) for seed in range(2)]
    assert found.summary["regret_1"].tolist() == pytest.approx(least, rel=1e-9)


def test_random_beats_the_grid_where_one_of_four_matters_and_gradients_where_all_of_many_do() -> None:
    seeds = list(range(12))
    low = {
        method: run(method, seeds, dimensions=[4], evaluations=16).summary["regret_4"] for method in ("grid", "random")
    }
    assert low["random"].mean() < 0.3 * low["grid"].mean()
    high = {
        method: run(method, seeds, dimensions=[40], effective=None, evaluations=32).summary["regret_40"]
        for method in ("gradient", "random")
    }
    assert (high["gradient"] < 0.5 * high["random"]).all()


def test_a_seed_gives_the_same_alone_as_in_company() -> None:
    for method in ("tpe", "gradient"):
        together, alone = run(method), run(method, [3])
        for name, values in alone.summary.items():
            torch.testing.assert_close(together.summary[name][1:], values, rtol=1e-12, atol=0)


def test_failed_trials_are_passed_over() -> None:
    least, places = best_so_far(torch.tensor([[math.nan, 2.0], [3.0, math.nan], [4.0, 1.0]]))
    assert least.tolist() == [[math.inf, 2], [3, 2], [3, 1]]
    assert places.tolist() == [[0, 0], [1, 0], [1, 2]]


# --- the picture


@pytest.mark.parametrize(("method", "distinct"), [("grid", 3), ("random", 9), ("sobol", 9)])
def test_the_picture_has_nine_points_and_their_projections(method: str, distinct: int) -> None:
    """Nine points of a grid have three places on each axis, nine random ones have nine."""
    rows = run(method).points
    quantities = {row.quantity for row in rows}
    assert quantities == {"point", *(f"{k}_{p}" for k in ("projection", "curve") for p in ("important", "unimportant"))}
    assert {row.seed for row in rows} == {SEEDS[0]}
    of = {quantity: [row for row in rows if row.quantity == quantity] for quantity in quantities}
    assert [len(of[q]) for q in ("point", "projection_important", "curve_unimportant")] == [9, distinct, 101]
    assert len({round(row.x, 9) for row in of["point"]}) == distinct
    function = draw(2, 1, 0.05, 0.05, SEEDS[:1])
    important = int(function.weights[0].argmax())
    along = {row.x: row.value for row in of["projection_important"]}
    across = {row.y: row.value for row in of["projection_unimportant"]}
    for row in of["point"]:
        assert along[row.x] + across[row.y] == pytest.approx(row.value, rel=1e-12)
        place = [row.x, row.y] if important == 0 else [row.y, row.x]
        assert row.value == pytest.approx(written_out(function, 0, place), rel=1e-9)
    mean = np.mean([row.value for row in of["curve_important"]])
    assert mean == pytest.approx(1, abs=0.05)


def test_there_is_no_picture_of_points_that_follow_what_is_found() -> None:
    assert not run("tpe").points
    assert not run("gradient").points


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": [2, 1]}, "expected rising numbers"),
        ({"dimensions": []}, "dimensions"),
        ({"evaluations": 2}, "evaluations"),
        ({"effective": 0}, "effective"),
        ({"ripple": -0.1}, "ripple"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SearchFunction.read_settings(settings)


def test_searches_have_no_settings() -> None:
    with pytest.raises(SettingsError, match="trials: unknown key"):
        create_method("search_function", "tpe", {"trials": 3})


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("search_function", {"dimensions": [10, 50], "evaluations": 32}),
        ("search_network", {"hyperparameters": [10, 50], "evaluations": 32}),
    ],
)
def test_a_grid_that_cannot_be_afforded_anywhere_is_refused(task: str, settings: dict[str, Any]) -> None:
    cls = task_class(task)
    with pytest.raises(
        SettingsError, match=rf"{next(iter(settings))}: in 10 dimensions or more a grid has more than 32"
    ):
        cls.check_method(cls.read_settings(settings), create_method(task, "grid", {}))
    cls.check_method(cls.read_settings(settings), create_method(task, "random", {}))
