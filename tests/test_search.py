"""Black-box search: deterministic, robust to failed trials, and the same as Optuna's own loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import numpy as np
import optuna
import pytest

from bilevel.search import Found, Params, Space, gaussian_process, grid, random, sobol, tpe

SPACE: Space = {"rate": (1e-4, 10.0, True), "share": (-1.0, 1.0, False)}
SEARCHES = [tpe, random, grid, sobol, gaussian_process]


def few(search: ModuleType, trials: int) -> int:
    """The number of trials; of a Gaussian process, which takes its time, two after the random ones."""
    return 12 if search is gaussian_process else trials


def bowl(params: Params) -> float:
    return (math.log10(params["rate"]) + 1) ** 2 + (params["share"] - 0.3) ** 2


def points(found: Found) -> list[tuple[float, ...]]:
    return [tuple(trial.params.values()) for trial in found.trials]


@pytest.mark.parametrize("search", SEARCHES)
def test_the_same_seed_finds_the_same(search: ModuleType) -> None:
    trials = few(search, 16)
    first, again = (search.minimize(bowl, SPACE, trials, seed=3) for _ in range(2))
    assert first == again
    assert len(first.trials) == trials
    assert first.best == min(first.trials, key=lambda trial: trial.value)
    for trial in first.trials:
        assert trial.value == bowl(trial.params)
        assert all(SPACE[name][0] <= value <= SPACE[name][1] for name, value in trial.params.items())
    other = search.minimize(bowl, SPACE, trials, seed=4)
    assert (points(other) == points(first)) == (search is grid)


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_side_by_side_are_those_alone(search: ModuleType) -> None:
    seeds, calls = [5, 0, 9], []

    def each(params: Sequence[Params]) -> list[float]:
        calls.append(len(params))
        return [bowl(one) for one in params]

    trials = few(search, 25)
    together = search.minimize_each(each, SPACE, trials, seeds)
    assert together == [search.minimize(bowl, SPACE, trials, seed) for seed in seeds]
    assert calls == [3] * trials


@pytest.mark.parametrize(
    ("search", "sampler"),
    [
        (tpe, optuna.samplers.TPESampler),
        (random, optuna.samplers.RandomSampler),
        (sobol, partial(optuna.samplers.QMCSampler, scramble=True)),
        (gaussian_process, optuna.samplers.GPSampler),
    ],
)
@pytest.mark.filterwarnings("ignore:QMCSampler is experimental")
def test_trials_are_those_of_optuna(search: ModuleType, sampler: Callable[..., optuna.samplers.BaseSampler]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler(seed=7))
    trials = few(search, 30)
    study.optimize(
        lambda trial: bowl(
            {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in SPACE.items()}
        ),
        n_trials=trials,
    )
    optuna.logging.set_verbosity(before)
    found = search.minimize(bowl, SPACE, trials, seed=7)
    assert [trial.params for trial in found.trials] == [trial.params for trial in study.trials]
    assert [trial.value for trial in found.trials] == [trial.value for trial in study.trials]


def test_tpe_is_random_search_until_it_is_told_to_learn() -> None:
    """Trials after the random ones are others than with more of these."""
    runs = {count: points(tpe.minimize(bowl, SPACE, 8, seed=2, random_trials=count)) for count in (2, 5, 8)}
    for fewer, more in ((2, 5), (5, 8)):
        assert runs[fewer][:fewer] == runs[more][:fewer]
        assert runs[fewer][fewer:] != runs[more][fewer:]


def test_tpe_learns_from_its_trials() -> None:
    medians = {
        search.__name__: np.median([trial.value for trial in search.minimize(bowl, SPACE, 60, seed=0).trials[40:]])
        for search in (tpe, random)
    }
    assert medians[tpe.__name__] < 0.2 * medians[random.__name__]


def test_the_gaussian_process_learns_from_its_trials() -> None:
    """The first ten trials are those of a random search."""
    model, blind = (search.minimize(bowl, SPACE, 15, seed=0) for search in (gaussian_process, random))
    assert model.trials[:10] == blind.trials[:10]
    assert model.best is not None
    assert model.best.value < 0.02
    assert min(trial.value for trial in blind.trials) > 5 * model.best.value


def test_sobol_points_fill_the_plane_evenly() -> None:
    """Of 64 points in a row, each of 64 squares holds one; the sequence begins with the second trial."""
    plane: Space = {"x": (0.0, 1.0, False), "y": (0.0, 1.0, False)}
    cells = {
        search: {
            (int(8 * trial.params["x"]), int(8 * trial.params["y"]))
            for trial in search.minimize(lambda params: 0.0, plane, 65, seed=2).trials[1:]
        }
        for search in (sobol, random)
    }
    assert len(cells[sobol]) == 64
    assert len(cells[random]) < 50


def test_sobol_says_how_many_parameters_it_takes() -> None:
    space: Space = {str(index): (0.0, 1.0, False) for index in range(21_202)}
    with pytest.raises(ValueError, match="at most 21201 dimensions, got 21202 parameters; use random"):
        sobol.minimize(lambda params: 0.0, space, 1, seed=0)


@pytest.mark.parametrize("search", [sobol, gaussian_process, tpe])
def test_all_but_the_grid_begin_at_the_same_point(search: ModuleType) -> None:
    assert points(search.minimize(bowl, SPACE, 1, seed=8)) == points(random.minimize(bowl, SPACE, 1, seed=8))


def test_a_logarithmic_range_is_searched_by_its_logarithm() -> None:
    rates = [trial.params["rate"] for trial in random.minimize(bowl, SPACE, 400, seed=0).trials]
    assert np.mean(np.log10(rates)) == pytest.approx(-1.5, abs=0.2)


def test_the_grid_is_every_combination_with_the_ends() -> None:
    found = grid.minimize(bowl, SPACE, 11, seed=0)
    rates, shares = np.geomspace(1e-4, 10, 3), np.linspace(-1, 1, 3)
    assert points(found) == [(rate, share) for rate in rates for share in shares]
    one: Space = {"rate": (1.0, 3.0, False)}
    assert points(grid.minimize(lambda params: params["rate"], one, 5, seed=0)) == [(1,), (1.5,), (2,), (2.5,), (3,)]
    with pytest.raises(ValueError, match="a grid over 2 parameters needs at least 4 trials, got 3"):
        grid.minimize(bowl, SPACE, 3, seed=0)


@pytest.mark.parametrize("search", SEARCHES)
def test_failed_trials_are_passed_over(search: ModuleType) -> None:
    trials = few(search, 25)
    found = search.minimize(lambda params: math.nan if params["share"] < 0 else bowl(params), SPACE, trials, seed=1)
    failed = [trial for trial in found.trials if math.isnan(trial.value)]
    assert len(found.trials) == trials
    assert 0 < len(failed) < trials
    assert all((trial.params["share"] < 0) == math.isnan(trial.value) for trial in found.trials)
    assert found.best is not None
    assert found.best.params["share"] >= 0
    nothing = search.minimize(lambda params: math.nan, SPACE, 4, seed=1)
    assert nothing.best is None
    assert len(nothing.trials) == 4


@pytest.mark.parametrize("search", SEARCHES)
def test_a_failed_trial_of_one_search_does_not_touch_another(search: ModuleType) -> None:
    trials = few(search, 16)
    found = search.minimize_each(lambda params: [math.nan, bowl(params[1])], SPACE, trials, [1, 2])
    assert found[0].best is None
    assert found[1] == search.minimize(bowl, SPACE, trials, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_says_nothing(capfd: pytest.CaptureFixture[str], search: ModuleType) -> None:
    before = optuna.logging.get_verbosity()
    search.minimize(bowl, SPACE, 11, seed=0)
    search.minimize(lambda params: math.nan, SPACE, 4, seed=0)
    with pytest.raises(ZeroDivisionError):
        search.minimize(lambda params: 1 / 0, SPACE, 4, seed=0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("space", "trials", "message"),
    [
        ({}, 4, "expected a mapping from names"),
        ({"rate": (1.0, 1.0, False)}, 4, r"rate should go .* got \(1.0, 1.0, False\)"),
        ({"rate": (0.0, 1.0, True)}, 4, "both above 0 where log is true"),
        ({"rate": (0.0, math.inf, False)}, 4, "rate should go from a number"),
        ({"rate": (0.0, 1.0, False)}, 0, r"trials: .* at least"),
    ],
)
@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_no_search_is_refused(search: ModuleType, space: Space, trials: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search.minimize(lambda params: 0.0, space, trials, seed=0)


def test_an_objective_with_too_few_values_is_refused() -> None:
    with pytest.raises(ValueError, match="gave 1 values for 2 trials"):
        tpe.minimize_each(lambda params: [0.0], SPACE, 2, [0, 1])
