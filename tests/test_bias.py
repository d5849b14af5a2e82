"""The study of deck 000's theorem: constants against dense derivatives, errors against closed forms, the bound."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method
from bilevel.tasks.bias import Bias, BiasSettings, Constants, Logistic, Quadratic, contraction, minimum, slide_bound

SMALL = {"steps": [1, 3, 20], "outer_steps": [0, 2, 5], "inner_steps": 3, "size": 4, "samples": 12}
SEEDS = [0, 3, 8]
PROBLEMS = ["quadratic", "logistic"]


def task(problem: str, seeds: list[int] | None = None, **settings: Any) -> Bias:
    checked = Bias.read_settings({"problem": problem, **SMALL, **settings})
    return Bias("study", checked, None, SEEDS if seeds is None else seeds, torch.device("cpu"))


def run(problem: str, method: str, seeds: list[int] | None = None, **settings: Any) -> Result:
    known = {"aggregated", "truncated", "unrolled", "conjugate_gradient"}
    assert method.split(":")[0] in known
    name, _, value = method.partition(":")
    own = {"aggregated": "gamma", "truncated": "steps", "conjugate_gradient": "iterations"}
    number = float(value) if name == "aggregated" else int(value or 0)
    chosen = create_method("bias", name, {own[name]: number} if name in own else {})
    return task(problem, seeds, **settings).run(chosen, "test")


@pytest.mark.parametrize("kind", [Quadratic, Logistic])
def test_the_constants_hold_for_both_losses(kind: Any) -> None:
    name = kind.__name__.lower()
    settings = BiasSettings(problem=name, steps=[1, 2, 3], size=4, samples=12)
    instance = kind(settings, SEEDS)
    constants, problem = instance.constants, instance.problem
    torch.manual_seed(0)
    for index in range(len(SEEDS)):
        smooth, convex = float(constants.smoothness[index]), float(constants.strong_convexity[index])
        mixed, lipschitz = float(constants.mixed[index]), float(constants.hessian_lipschitz[index])
        assert smooth <= settings.smoothness * (1 + 1e-12)
        assert convex == pytest.approx(settings.strong_convexity, rel=1e-9)
        batch = instance.inner_batch[index]
        outer = instance.outer_batch
        outer_batch = (outer[0][index], outer[1][index]) if name == "quadratic" else outer[index]
        for scale in (0.0, 0.3, 3.0):
            w, other, h = scale * torch.randn(3, 4, dtype=torch.float64)
            inner = torch.func.hessian(problem.inner_loss)(w, h, batch)
            for hessian in (inner, torch.func.hessian(problem.outer_loss)(w, h, outer_batch)):
                values = torch.linalg.eigvalsh(hessian)
                assert convex * (1 - 1e-9) <= float(values.min())
                assert float(values.max()) <= smooth * (1 + 1e-9)
            across = torch.func.jacrev(torch.func.grad(problem.inner_loss), argnums=1)(w, h, batch)
            assert float(torch.linalg.matrix_norm(across, 2)) == pytest.approx(mixed, rel=1e-9)
            elsewhere = torch.func.hessian(problem.inner_loss)(other, h, batch)
            change = float(torch.linalg.matrix_norm(inner - elsewhere, 2))
            assert change <= lipschitz * float((w - other).norm()) * (1 + 1e-9) + 1e-12


def quadratic_by_hand(gamma: float, steps: int, index: int) -> tuple[Tensor, Tensor]:
    """Aggregated and exact hypergradient at the start, from powers of matrices."""
    chosen = task("quadratic")
    curvature = chosen._instance.inner_batch[index]
    outer, target = (part[index] for part in chosen._instance.outer_batch)
    rate, w = 0.8, chosen._start[index, 0]
    through = torch.eye(4, dtype=torch.float64) - rate * curvature
    trajectory = [torch.linalg.matrix_power(through, t) @ w for t in range(steps + 1)]  # λ = 0
    slopes = [outer @ (point - target) for point in trajectory]
    aggregated = sum(gamma ** (steps - t) * rate * curvature @ slopes[t] for t in range(1, steps + 1))
    exact = sum(rate * curvature @ torch.linalg.matrix_power(through, k) @ slopes[steps] for k in range(steps))
    return torch.as_tensor(aggregated), torch.as_tensor(exact)


@pytest.mark.parametrize("gamma", [0.2, 0.9])
def test_errors_at_fixed_hyperparameters_are_those_of_the_closed_form(gamma: float) -> None:
    trace = run("quadratic", f"aggregated:{gamma}").trace
    for steps in SMALL["steps"]:  # type: ignore[attr-defined]
        for index in range(len(SEEDS)):
            aggregated, exact = quadratic_by_hand(gamma, steps, index)
            assert float(trace[steps]["exact"][index]) == pytest.approx(float(exact.norm()), rel=1e-9)
            expected = float((aggregated - exact).norm())
            assert float(trace[steps]["error"][index]) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_newton_finds_the_minimum(problem: str) -> None:
    chosen = task(problem)
    hyper = torch.ones_like(chosen._hyper)
    derivatives = Derivatives(chosen._instance.problem, hyper)
    found = minimum(derivatives, 5 + chosen._start[:, 0], chosen._instance.inner_batch)
    assert float(derivatives.inner_gradient(found, chosen._instance.inner_batch).norm()) < 1e-12
    if problem == "quadratic":
        assert found == pytest.approx(hyper, abs=1e-12)


def test_the_bound_is_the_slides() -> None:
    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    # 1 − ημ = 0.81, q = 0.9, T = 3
    found = slide_bound(
        Constants(one(2.0), one(0.38), hessian_lipschitz=one(7.0), mixed=one(5.0)), 0.5, 3, one(11.0), one(13.0)
    )
    first = 2 * 2 * 5 * 11 * 0.729 / (1 / 0.9 - 1)
    level = (1 / 0.38 - 1 / 2 + 0.81**3 / 2) / 0.5
    varying = 2 * 0.5 * 7 * (2 * 0.729 - (0.81 - 0.81**3) / (1 / 0.9 - 1))
    assert float(found) == pytest.approx(first + 5 * 13 * (level + varying), rel=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("gamma", [0.2, 0.7])
def test_the_bound_holds_for_a_step_below_one_and_is_told_apart_from_its_breach(problem: str, gamma: float) -> None:
    summary = run(problem, f"aggregated:{gamma}").summary
    assert summary["bound_violations"].tolist() == [0, 0, 0]
    assert summary["outer_bound_violations"].tolist() == [0, 0, 0]
    assert (run(problem, "aggregated:1.0", steps=[1, 50, 80]).summary["bound_violations"] == 2).all()


def test_other_units_leave_relative_errors_and_move_the_bound() -> None:
    unit, other = (run("quadratic", "aggregated:0.7", smoothness=smoothness) for smoothness in (1.0, 0.01))
    for steps in SMALL["steps"]:  # type: ignore[attr-defined]
        assert other.trace[steps]["error"] == pytest.approx(unit.trace[steps]["error"] / 100, rel=1e-9, abs=1e-15)
        assert other.trace[steps]["bound"] == pytest.approx(unit.trace[steps]["bound"] / 1e4, rel=1e-9)
    assert other.trace[5]["outer_error"] == pytest.approx(unit.trace[5]["outer_error"] / 100, rel=1e-9)
    assert (other.summary["bound_violations"] > 0).all()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_exact_method_has_no_error_and_the_implicit_one_contracts(problem: str) -> None:
    exact = run(problem, "unrolled").summary
    assert not exact["error_last"].any()
    assert not exact["outer_error_last"].any()
    assert not exact["error_floor"].any()
    assert exact["rate"].isnan().all()
    assert "bound_violations" not in exact
    implicit = run(problem, "conjugate_gradient:4", steps=[1, 5, 10, 15, 20, 25])
    assert (implicit.summary["rate"] < 0.705).all()  # 1 − ημ is 0.7
    assert (implicit.summary["error_last"] < 1e-3).all()


def test_one_step_of_truncation_settles_away_from_zero() -> None:
    summary = run("quadratic", "truncated:1", steps=[1, 40, 60, 80]).summary
    assert (summary["error_floor"] > 0.1).all()
    assert torch.equal(summary["error_floor"], summary["error_last"])
    assert summary["rate"].isnan().all()


def test_along_the_outer_axis_the_error_and_the_hypergradient_vanish_together() -> None:
    result = run("quadratic", "aggregated:0.7", outer_steps=[0, 60, 120], inner_steps=5)
    assert (result.summary["outer_error_last"] < 1e-6).all()
    assert (result.trace[120]["outer_exact"] < 1e-6 * result.trace[0]["outer_exact"]).all()
    assert (result.summary["outer_relative_error_last"] > 0.01).all()


def test_seeds_do_not_depend_on_their_company() -> None:
    together, alone = run("logistic", "aggregated:0.5"), run("logistic", "aggregated:0.5", [3])
    for metric, values in alone.summary.items():
        assert values[0].item() == pytest.approx(together.summary[metric][1].item(), rel=1e-9, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.05])
def test_the_rate_of_a_geometric_sequence_is_its_factor(factor: float) -> None:
    steps = [0, 1, 2, 5, 10, 20]
    assert contraction(steps, [7 * factor**step for step in steps]) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("errors", [[1.0, 0.5, 0.5, 0.5], [1.0, 0.1, 1e-14, 0.0], [0.0] * 4])
def test_there_is_no_rate_of_constants_and_rounding(errors: list[float]) -> None:
    assert math.isnan(contraction([1, 2, 3, 4], errors))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": [3, 2, 1]}, "expected increasing numbers"),
        ({"steps": [0, 1, 2]}, "greater than or equal to 1"),
        ({"step": 1.5}, "less than or equal to 1"),
        ({"problem": "cubic"}, "quadratic"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Bias.read_settings({"problem": "quadratic", **settings})
