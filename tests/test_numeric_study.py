"""The study of numeric differentiation: where the two formulas fall, where they turn, and what counts as good."""

from typing import Any

import pytest
import torch

from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method
from bilevel.tasks.numeric import Numeric

PROBLEMS = ["quadratic", "network"]


def run(problem: str, method: str, seeds: list[int] | None = None, decades: int = 20) -> Result:
    settings = Numeric.read_settings({"problem": problem, "decades": decades, "inner_steps": 4})
    task = Numeric("study", settings, None, seeds or [0, 5], torch.device("cpu"))
    return task.run(create_method("numeric", method, {"epsilon": 1e-3}), "test")


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", ["central_difference", "complex_step"])
def test_truncation_falls_with_the_square_of_the_step(problem: str, method: str) -> None:
    trace = run(problem, method, decades=4).trace
    assert [round(float(trace[k]["epsilon"][0]), 12) for k in trace] == [0.1, 0.01, 0.001, 0.0001]
    for coarse, fine in ((2, 3), (3, 4)):
        assert trace[fine]["relative_error"] == pytest.approx(trace[coarse]["relative_error"] / 100, rel=0.1)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_complex_step_stays_at_rounding_and_the_difference_does_not(problem: str) -> None:
    difference, complex_step = (run(problem, method) for method in ("central_difference", "complex_step"))
    assert (complex_step.summary["best_error"] < 1e-15).all()
    assert (complex_step.trace[20]["relative_error"] < 1e-14).all()
    assert ((difference.summary["best_error"] > 1e-13) & (difference.summary["best_error"] < 1e-7)).all()
    assert (difference.trace[14]["relative_error"] > 1e-3).all()
    assert ((difference.summary["best_epsilon"] >= 1e-7) & (difference.summary["best_epsilon"] <= 1e-4)).all()
    assert (complex_step.summary["decades"] >= 12).all()
    assert (difference.summary["decades"] <= 4).all()


def test_where_nothing_changes_there_is_no_error_and_the_seed_lives() -> None:
    result = run("network", "central_difference")
    assert result.trace[20]["relative_error"].isnan().all()
    assert result.alive.all()


def test_the_summary_counts_what_is_within_ten_times_the_best() -> None:
    result = run("quadratic", "central_difference")
    errors = torch.stack([metrics["relative_error"] for metrics in result.trace.values()])
    for index in range(2):
        column = [float(error) for error in errors[:, index] if not error.isnan()]
        assert float(result.summary["best_error"][index]) == min(column)
        assert float(result.summary["decades"][index]) == sum(error <= 10 * min(column) for error in column)
        assert float(result.summary["best_epsilon"][index]) == pytest.approx(10.0 ** -(column.index(min(column)) + 1))


def test_seeds_do_not_depend_on_their_company() -> None:
    together, alone = run("network", "central_difference", decades=4), run("network", "central_difference", [5], 4)
    for step, metrics in alone.trace.items():
        assert float(metrics["relative_error"][0]) == pytest.approx(
            float(together.trace[step]["relative_error"][1]), rel=1e-3
        )


@pytest.mark.parametrize("settings", [{}, {"problem": "cubic"}, {"problem": "network", "decades": 1}])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Numeric.read_settings(settings)


def test_only_numeric_methods_are_allowed() -> None:
    with pytest.raises(SettingsError, match="numeric has no method 'unrolled'"):
        create_method("numeric", "unrolled", {})
