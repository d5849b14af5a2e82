"""Kernel logistic regression: objective, derivatives and solutions against plain ones; the two loops; what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import softplus

from bilevel.derivatives import Derivatives
from bilevel.metrics import auc
from bilevel.results import Result
from bilevel.runs import solve
from bilevel.settings import SettingsError
from bilevel.tasks import create_method
from bilevel.tasks.kernel_logistic import LEVELS, KernelLogistic, objective
from bilevel.tasks.kernel_logistic.data import MINORITY, RADII, SPREAD, draw
from bilevel.tasks.kernel_logistic.kernel import JITTER, KERNELS

SEEDS = [0, 3]
SMALL = {"train_size": 30, "validation_size": 40, "test_size": 60, "outer_steps": 6, "outer_tolerance": 1e-6}
NAMES = ["linear", "rbf", "mixture"]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("conjugate_gradient", {"iterations": 60, "tolerance": 1e-10}),
    ("neumann", {"terms": 30}),
    ("unrolled", {}),
    ("truncated", {"steps": 3}),
]


def task(kernel: str = "mixture", seeds: Sequence[int] = SEEDS, **changes: Any) -> KernelLogistic:
    checked = KernelLogistic.read_settings({"kernel": kernel, **SMALL, **changes})
    return KernelLogistic("study", checked, None, seeds, torch.device("cpu"))


def run(chosen: KernelLogistic, method: str = "conjugate_gradient") -> Result:
    return chosen.run(create_method("kernel_logistic", method, dict(METHODS)[method]), "test")


@cache
def honest_run(kernel: str) -> Result:
    return run(task(kernel))


def spread(chosen: KernelLogistic, scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """Parameters and hyperparameters about the start, λ = 0.01."""
    draws = torch.Generator().manual_seed(0)
    state, hyper = chosen.start()
    params = chosen.optimizer.params(state)
    return (
        torch.randn(params.shape, generator=draws, dtype=params.dtype),
        hyper + scale * torch.randn(hyper.shape, generator=draws, dtype=hyper.dtype),
    )


def plain_parts(points: Tensor, kernel: str, hyper: Tensor) -> Tensor:
    """K of training points (n, 2), written out."""
    square = (points[:, None] - points[None]).square().sum(-1)
    median = torch.quantile(square[*torch.triu_indices(len(points), len(points), 1)], 0.5, interpolation="lower")
    linear = points @ points.T
    mean = linear.trace() / len(points)
    quadratic = (1 + linear / mean) ** 2
    quadratic = quadratic / (quadratic.trace() / len(points))
    if kernel == "linear":
        return linear / mean
    if kernel == "rbf":
        return torch.exp(-square / (2 * median))
    weights = hyper[1:6].exp() / hyper[1:6].exp().sum()
    radial = [torch.exp(-square / (2 * median * width.exp() ** 2)) for width in hyper[6:]]
    return sum(weight * part for weight, part in zip(weights, [*radial, linear / mean, quadratic], strict=True))


def plain_objective(matrix: Tensor, labels: Tensor, level: Tensor, expansion: Tensor, bias: Tensor) -> Tensor:
    """The slide's objective with its bias, over n."""
    decision = matrix @ expansion + bias
    loss = -labels @ decision + torch.log1p(decision.exp()).sum()
    return loss / len(labels) + 0.5 * level * expansion @ matrix @ expansion


def in_our_parameters(chosen: KernelLogistic, index: int) -> Any:
    """The same with K a = L u, as a function of our parameters (P,) and hyperparameters (H,) of one seed."""
    points, labels = (part[index] for part in chosen.train)
    unit = JITTER * torch.eye(len(points), dtype=points.dtype)

    def value(params: Tensor, hyper: Tensor) -> Tensor:
        matrix = plain_parts(points, chosen.settings.kernel, hyper) + unit  # type: ignore[attr-defined]
        factor = torch.linalg.cholesky(matrix)
        features = torch.cat([factor, torch.ones_like(labels)[:, None]], dim=1)
        decay = torch.diag(torch.cat([hyper[:1].exp().expand(len(labels)), torch.zeros_like(hyper[:1])]))
        root = torch.linalg.cholesky(features.T @ features / (4 * len(labels)) + decay)
        scaled = torch.linalg.inv(root.T) @ params
        decision = factor @ scaled[:-1] + scaled[-1]
        loss = -labels @ decision + torch.log1p(decision.exp()).sum()
        return loss / len(labels) + 0.5 * hyper[0].exp() * scaled[:-1] @ scaled[:-1]

    return value


# --- data


def test_the_posterior_separates_the_classes_as_well_as_stated() -> None:
    radius, width = np.linspace(0, 6, 300_001, retstep=True)

    def folded(center: float) -> Any:
        return norm.pdf(radius, center, SPREAD) + norm.pdf(-radius, center, SPREAD)

    one = MINORITY * folded(RADII[0])
    zero = (1 - MINORITY) * (folded(RADII[1]) + folded(RADII[2])) / 2
    posterior = one / (one + zero)
    order = np.argsort(posterior)
    below = np.cumsum(zero[order]) * width / (1 - MINORITY)
    assert -width * (one * np.log(posterior) + zero * np.log1p(-posterior)).sum() == pytest.approx(0.381, abs=5e-4)
    assert width * np.minimum(one, zero).sum() == pytest.approx(0.168, abs=5e-4)
    assert (one[order] * below).sum() * width / MINORITY == pytest.approx(0.895, abs=5e-4)

    samples = draw(40_000, torch.Generator().manual_seed(0))
    lengths = samples.points.norm(dim=-1)
    scores = torch.from_numpy(np.interp(lengths.numpy(), radius, posterior))
    assert auc(scores, samples.labels == 1) == pytest.approx(0.895, abs=0.006)
    assert float(samples.labels.mean()) == pytest.approx(1 / 3, abs=0.01)
    for slope in ([1.0, 0.0], [0.3, -1.0]):
        linear = samples.points @ torch.tensor(slope, dtype=torch.float64)
        assert auc(linear, samples.labels == 1) == pytest.approx(0.5, abs=0.01)


def test_sets_are_disjoint_and_the_same_for_all_kernels_and_sizes_of_the_test_set() -> None:
    first, *others = [task(name) for name in NAMES] + [task("rbf", [3, 0], test_size=30)]
    for index in range(len(SEEDS)):
        rows = [
            tuple(row) for part in (first.train, first.validation, first.test) for row in part.points[index].tolist()
        ]
        assert len(set(rows)) == len(rows)
    for other in others:
        order = [other.seeds.index(seed) for seed in SEEDS]
        for ours, theirs in ((first.train, other.train), (first.validation, other.validation)):
            assert torch.equal(ours.points, theirs.points[order])
            assert torch.equal(ours.labels, theirs.labels[order])
    assert not torch.equal(first.train.points[0], first.train.points[1])


# --- kernel and objective


@pytest.mark.parametrize("kernel", NAMES)
def test_kernels_are_those_written_out_and_have_a_unit_diagonal_in_the_mean(kernel: str) -> None:
    chosen = task(kernel)
    _, hyper = spread(chosen)
    found = KERNELS[kernel].matrix(hyper, chosen._outer_batch.train)
    for index in range(len(SEEDS)):
        expected = plain_parts(chosen.train.points[index], kernel, hyper[index])
        torch.testing.assert_close(found[index], expected, rtol=1e-12, atol=1e-14)
        assert float(found[index].diagonal().mean()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kernel", NAMES)
def test_values_and_derivatives_are_those_of_the_plain_objective(kernel: str) -> None:
    chosen = task(kernel)
    params, hyper = spread(chosen)
    vector = torch.randn(params.shape, generator=torch.Generator().manual_seed(1), dtype=params.dtype)
    derivatives = Derivatives(chosen.problem, hyper)
    inner = derivatives.linearize(params, None)
    to_params, to_hyper = torch.zeros_like(params), torch.zeros_like(hyper)
    inner.add_products(vector, to_params, to_hyper)
    unit = torch.eye(hyper.shape[1], dtype=hyper.dtype)[:, None].repeat(1, len(SEEDS), 1)
    tangents = derivatives.push_forward(params, None).along(hyper_directions=unit)
    value = derivatives.inner_loss(params, None)
    for index in range(len(SEEDS)):
        plain, where = in_our_parameters(chosen, index), (params[index], hyper[index])
        gradient, across = torch.func.grad(plain), torch.func.jacrev(torch.func.grad(plain), 1)(*where)
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(value[index], plain(*where), **tolerance)
        torch.testing.assert_close(inner.gradient[index], gradient(*where), **tolerance)
        torch.testing.assert_close(to_params[index], torch.func.hessian(plain)(*where) @ vector[index], **tolerance)
        torch.testing.assert_close(to_hyper[index], vector[index] @ across, **tolerance)
        torch.testing.assert_close(tangents[:, index], across.T, **tolerance)


@settings(deadline=None, max_examples=25)
@given(
    st.floats(-14, 3),
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.floats(-3, 1), min_size=3, max_size=3),
    st.floats(0, 10),
)
def test_the_inner_problem_is_convex_and_bounded_whatever_the_hyperparameters(
    level: float, weights: list[float], widths: list[float], scale: float
) -> None:
    chosen = task(seeds=[0])
    hyper = torch.tensor([[level, *weights, *widths]], dtype=torch.float64)
    params = scale * spread(chosen)[0]
    inner = Derivatives(chosen.problem, hyper).linearize(params, None)
    hessian = torch.zeros(params.shape[1], params.shape[1], dtype=torch.float64)
    for row, unit in zip(hessian, torch.eye(len(hessian), dtype=torch.float64), strict=True):
        inner.add_products(unit[None], row[None], None)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(hessian)
    assert float(values.min()) > -1e-12
    assert float(values.max()) < 1 + 1e-12


def test_only_differences_of_log_weights_matter() -> None:
    chosen = task()
    params, hyper = spread(chosen)
    shifted = hyper.clone()
    shifted[:, 1:6] += 2.5
    losses = [Derivatives(chosen.problem, each).inner_loss(params, None) for each in (hyper, shifted)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


# --- solutions


def newton(matrix: Any, labels: Any, level: float) -> tuple[Any, float]:
    """a and b by iteratively reweighted least squares on the slide's objective, in another program and system."""
    count = len(labels)
    expansion, bias = np.zeros(count), 0.0
    for _ in range(50):
        decision = matrix @ expansion + bias
        probability = 1 / (1 + np.exp(-decision))
        curvature = probability * (1 - probability)
        target = decision + (labels - probability) / curvature
        system = np.ones((count + 1, count + 1))
        system[:count, :count] = matrix + count * level * np.diag(1 / curvature)
        system[count, count] = 0
        solution = np.linalg.solve(system, np.append(target, 0))
        expansion, bias = solution[:count], solution[count]
    return expansion, bias


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("level", [-8.0, -4.6, 1.0])
def test_the_solution_is_that_of_the_slides_objective(kernel: str, level: float) -> None:
    chosen = task(kernel)
    state, hyper = chosen.start()
    hyper[:, 0] = level
    found = solve(chosen, state, hyper, 0)
    assert found.metrics["solved"].tolist() == [1, 1]
    params = chosen.optimizer.params(found.state)
    expansion, bias = objective.coordinates(chosen.kernel, hyper, chosen._outer_batch.train).coefficients(params)
    for index in range(len(SEEDS)):
        points, labels = (part[index] for part in chosen.train)
        matrix = plain_parts(points, kernel, hyper[index])
        independent, constant = newton(matrix.numpy(), labels.numpy(), math.exp(level))
        decision = matrix @ expansion[index] + bias[index]
        torch.testing.assert_close(decision, matrix @ torch.from_numpy(independent) + constant, rtol=0, atol=2e-6)

        def plain(a: Tensor, b: Tensor, matrix: Tensor = matrix, labels: Tensor = labels) -> Tensor:
            return plain_objective(matrix, labels, hyper[0, 0].exp(), a, b)

        # without the jitter, which moves z by ε a and so the gradient by K times a quarter of that, over n
        slopes = torch.func.grad(plain, argnums=(0, 1))(expansion[index], bias[index, 0])
        assert float(slopes[0].norm()) < 1e-7
        assert float(slopes[1].abs()) < 1e-8
        value, least = (
            plain(*at) for at in ((expansion[index], bias[index, 0]), (torch.from_numpy(independent), constant))
        )
        assert float(value) == pytest.approx(float(least), rel=1e-9)


@pytest.mark.parametrize("kernel", NAMES)
def test_the_hypergradient_is_the_slope_of_solved_problems(kernel: str) -> None:
    chosen = task(kernel, inner_tolerance=1e-12)
    state, hyper = chosen.start()
    hyper = hyper + 0.2 * torch.randn(hyper.shape, generator=torch.Generator().manual_seed(2), dtype=hyper.dtype)

    def loss(at: Tensor) -> Tensor:
        params = chosen.optimizer.params(solve(chosen, state, at, 0).state)
        return Derivatives(chosen.problem, at).outer_loss(params, chosen._outer_batch)

    method = create_method("kernel_logistic", "conjugate_gradient", {"iterations": 100, "tolerance": 1e-12})
    solved = solve(chosen, state, hyper, 0).state
    found = method(chosen.problem, chosen.optimizer, solved, hyper, *chosen.draw(0)).hypergradient  # type: ignore[operator]
    width, numeric = 1e-4, torch.zeros_like(hyper)
    for index, unit in enumerate(torch.eye(hyper.shape[1], dtype=hyper.dtype)):
        near, far = (
            (loss(hyper + step * unit) - loss(hyper - step * unit)) / (2 * step) for step in (width, 2 * width)
        )
        numeric[:, index] = (4 * near - far) / 3
    for index in range(len(SEEDS)):
        error = (found[index] - numeric[index]).norm() / numeric[index].norm()
        assert float(error) < 1e-5


def test_what_depends_on_hyperparameters_alone_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = task(inner_steps=5)
    calls = []
    original = objective.coordinates
    monkeypatch.setattr(objective, "coordinates", lambda *arguments: (calls.append(None), original(*arguments))[1])
    state, hyper = chosen.start()
    hyper, _ = hyper + 0.2, calls.clear()  # nothing is solved there yet
    method = create_method("kernel_logistic", "conjugate_gradient", {"iterations": 30})
    found = solve(chosen, state, hyper, 0)
    assert int(found.metrics["inner_steps"].min()) > 1
    method(chosen.problem, chosen.optimizer, found.state, hyper, *chosen.draw(0))  # type: ignore[operator]
    chosen.evaluate(state, hyper)
    assert len(calls) == 2  # the objective's own, and that of the validation loss
    solve(chosen, state, hyper + 0.1, 0)
    assert len(calls) == 3


def test_a_seed_without_a_number_leaves_the_others_alone() -> None:
    chosen = task()
    params, hyper = spread(chosen)
    broken = hyper.clone()
    broken[1, 2] = math.nan
    whole, part = (Derivatives(chosen.problem, each) for each in (hyper, broken))
    assert torch.equal(whole.inner_gradient(params, None)[0], part.inner_gradient(params, None)[0])
    assert bool(part.inner_gradient(params, None)[1].isnan().any())
    assert bool(part.outer_gradient(params, chosen._outer_batch).loss[1].isnan())
    assert bool(part.outer_gradient(params, chosen._outer_batch).hyper[0].isfinite().all())
    with pytest.raises(ValueError, match="the data are those of 2 seeds, hyper of 1"):
        Derivatives(chosen.problem, hyper[:1])


# --- runs


@pytest.mark.parametrize("kernel", NAMES)
def test_an_honest_run_solves_every_problem_and_starts_at_a_solution(kernel: str) -> None:
    result, chosen = honest_run(kernel), task(kernel)
    assert result.summary["unsolved"].tolist() == [0, 0]
    assert result.summary["solved"].tolist() == [1, 1]
    state, hyper = chosen.start()
    params = chosen.optimizer.params(solve(chosen, state, hyper, 0).state)
    derivatives = Derivatives(chosen.problem, hyper)
    start = derivatives.outer_loss(params, chosen._outer_batch)
    torch.testing.assert_close(result.summary["validation_cross_entropy_start"], start, rtol=1e-12, atol=0)
    for metric in ("cross_entropy", "auc"):
        assert torch.equal(result.trace[0][f"test_{metric}"], result.summary[f"{metric}_start"])
        torch.testing.assert_close(
            result.trace[len(result.trace) - 1][f"test_{metric}"], result.summary[metric], rtol=1e-6, atol=0
        )
    # the outer loss of the step is that of the trace's solution before it
    torch.testing.assert_close(
        result.trace[2]["outer_loss"], result.trace[1]["validation_cross_entropy"], rtol=1e-6, atol=0
    )
    assert result.trace[0]["log_lambda"].tolist() == hyper[:, 0].tolist()
    assert (result.summary["start_inner_steps"] > 0).all()


def test_test_metrics_are_those_of_the_decision_function_written_out() -> None:
    chosen, result = task("rbf"), honest_run("rbf")
    state, hyper = chosen.start()
    params = chosen.optimizer.params(solve(chosen, state, hyper, 0).state)
    expansion, bias = objective.coordinates(chosen.kernel, hyper, chosen._outer_batch.train).coefficients(params)
    for index in range(len(SEEDS)):
        points, tested = chosen.train.points[index], chosen.test.points[index]
        square = (points[:, None] - points[None]).square().sum(-1)
        median = torch.quantile(square[*torch.triu_indices(len(points), len(points), 1)], 0.5, interpolation="lower")
        across = torch.exp(-(tested[:, None] - points[None]).square().sum(-1) / (2 * median))
        decision = across @ expansion[index] + bias[index]
        labels = chosen.test.labels[index]
        expected = (softplus(decision) - labels * decision).mean()
        assert float(result.summary["cross_entropy_start"][index]) == pytest.approx(float(expected), rel=1e-9)
        assert float(result.summary["auc_start"][index]) == pytest.approx(auc(decision, labels == 1), rel=1e-9)
        wrong = ((decision > 0) != (labels == 1)).double().mean()
        assert float(result.summary["error_start"][index]) == pytest.approx(float(wrong), rel=1e-9)


def test_a_learned_mixture_improves_validation_and_says_what_it_chose() -> None:
    summary, chosen = honest_run("mixture").summary, task("mixture")
    assert (summary["validation_cross_entropy"] < summary["validation_cross_entropy_start"] - 1e-3).all()
    names = chosen.kernel.names
    assert names == ["rbf_1", "rbf_2", "rbf_3", "linear", "quadratic"]
    for kind in ("weight", "share"):
        total = torch.stack([summary[f"{kind}_{name}"] for name in names])
        assert bool((total >= 0).all())
        torch.testing.assert_close(total.sum(0), torch.ones(2, dtype=torch.float64))
    assert {name for name in summary if name.startswith("width_")} == {"width_rbf_1", "width_rbf_2", "width_rbf_3"}
    assert not any(name.startswith(("weight_", "width_")) for name in honest_run("rbf").summary)


def test_a_seed_has_the_same_numbers_alone_and_in_company() -> None:
    together = honest_run("mixture")
    for index, seed in enumerate(SEEDS):
        alone = run(task("mixture", [seed]))
        for metric in (*(f"{name}_{end}" for name in ("weight", "share") for end in task().kernel.names), "log_lambda"):
            assert float(alone.summary[metric][0]) == pytest.approx(float(together.summary[metric][index]), abs=1e-6)
        for step, metrics in alone.trace.items():
            for metric in ("test_cross_entropy", "test_auc", "validation_cross_entropy", "log_lambda"):
                assert float(metrics[metric][0]) == pytest.approx(float(together.trace[step][metric][index]), abs=1e-6)


def test_test_data_are_not_looked_at() -> None:
    other = run(task("mixture", test_size=30))
    for metric in ("log_lambda", "validation_cross_entropy"):
        assert torch.equal(honest_run("mixture").summary[metric], other.summary[metric])


def test_early_exits_are_recorded() -> None:
    result = run(task("linear", outer_steps=60, outer_tolerance=3e-3))
    done = result.summary["outer_steps_done"]
    assert (done < 60).all()
    assert len(result.trace) == int(done.max()) + 2
    for index, steps in enumerate(done.int().tolist()):
        norms = [float(result.trace[step]["hypergradient_norm"][index]) for step in range(1, steps + 2)]
        assert norms[-1] <= 3e-3 < min(norms[:-1], default=math.inf)


def test_what_is_not_solved_is_counted() -> None:
    summary = run(task("rbf", most_steps=2, outer_steps=3)).summary
    assert summary["unsolved"].tolist() == [3, 3]
    assert summary["solved"].tolist() == [0, 0]


@pytest.mark.parametrize("method", [name for name, _ in METHODS])
def test_any_method_improves_validation_in_both_loops(method: str) -> None:
    for loop in ("honest", "greedy"):
        chosen = task("mixture", loop=loop, inner_steps=10, outer_steps=5)
        result = run(chosen, method)
        assert result.alive.tolist() == [True, True]
        summary = result.summary
        assert (summary["validation_cross_entropy"] < summary["validation_cross_entropy_start"]).all()
        assert torch.equal(
            summary["validation_cross_entropy_start"], honest_run("mixture").summary["validation_cross_entropy_start"]
        )
        start = result.trace[0]["validation_cross_entropy"]
        if loop == "greedy":  # from no decision function
            assert start.tolist() == pytest.approx([math.log(2)] * 2)
            assert "unsolved" not in summary
        else:
            assert summary["unsolved"].tolist() == [0, 0]


def test_the_greedy_loops_steps_come_close_to_solutions() -> None:
    chosen = task("rbf", loop="greedy", inner_steps=20)
    last = run(chosen, "unrolled")
    trace = last.trace[len(last.trace) - 1]["validation_cross_entropy"]
    torch.testing.assert_close(trace, last.summary["validation_cross_entropy"], rtol=1e-2, atol=0)


def test_points() -> None:
    chosen, result = task("mixture"), honest_run("mixture")
    kinds = ["train", "center", "decision_start", "kernel_start", "decision_end", "kernel_end"]
    assert list(dict.fromkeys(point.quantity for point in result.points)) == kinds
    by_kind = {kind: [point for point in result.points if point.quantity == kind] for kind in kinds}
    assert {point.seed for point in result.points} == {0}
    assert [len(by_kind[kind]) for kind in kinds] == [30, 1, 1681, 1681, 1681, 1681]
    assert [point.value for point in by_kind["train"]] == chosen.train.labels[0].tolist()
    assert by_kind["train"][0].x == pytest.approx(float(chosen.train.points[0, 0, 0]), abs=1e-6)
    for when in ("start", "end"):
        assert all(0 <= point.value <= 1 for point in by_kind[f"decision_{when}"])
        x, y = by_kind[f"kernel_{when}"][0].x, by_kind["train"]
        assert x == pytest.approx(min(point.x for point in y), abs=1e-6)
    # the learned decision function tells the training points apart better than the first one does
    places = torch.tensor([[point.x, point.y] for point in by_kind["decision_end"]])
    train = torch.tensor([[point.x, point.y] for point in by_kind["train"]])
    nearest = torch.cdist(train, places).argmin(-1).tolist()
    positive = chosen.train.labels[0] == 1
    found = {
        when: auc(torch.tensor([by_kind[f"decision_{when}"][place].value for place in nearest]), positive)
        for when in ("start", "end")
    }
    assert found["end"] >= found["start"] > 0.5
    (center,) = by_kind["center"]
    assert (center.x, center.y, center.value) == (1, 0, 1)
    at_center = min(by_kind["kernel_end"], key=lambda point: (point.x - 1) ** 2 + point.y**2)
    assert at_center.value == pytest.approx(1, abs=0.3)
    assert all(round(point.value, 6) == point.value for point in result.points)


def test_points_are_those_of_the_smallest_seed() -> None:
    points = run(task("linear", [5, 3], outer_steps=1)).points
    assert {point.seed for point in points} == {3}
    train = [point.value for point in points if point.quantity == "train"]
    assert train == task("linear", [5, 3]).train.labels[1].tolist()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_search_for_lambda_ends_where_a_dense_grid_does(kernel: str) -> None:
    """Seeds 0 and 7 are those in which the hypergradient at λ = 0.01 leads to a constant decision function."""
    chosen = task(kernel, [0, 2, 7], train_size=200, validation_size=200, outer_steps=30)
    found = run(chosen).summary["validation_cross_entropy"]
    state, hyper = chosen.start()
    losses = []
    for level in np.linspace(LEVELS[0] - 1, LEVELS[-1] + 2, 40):
        hyper[:, 0] = float(level)
        params = chosen.optimizer.params(solve(chosen, state, hyper, 0).state)
        losses.append(Derivatives(chosen.problem, hyper).outer_loss(params, chosen._outer_batch))
    assert (found - torch.stack(losses).amin(0) < 1e-3).all()
    if kernel == "rbf":
        assert (found < 0.5).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": "cubic"}, "kernel: input should be 'linear', 'rbf' or 'mixture'"),
        ({"loop": "eager"}, "loop: input should be 'honest' or 'greedy'"),
        ({"train_size": 5}, "train_size: input should be greater than or equal to 20"),
        ({"inner_tolerance": 0.0}, "inner_tolerance: input should be greater than 0"),
        ({"outer_tolerance": -1.0}, "outer_tolerance: input should be greater than 0"),
        ({"momentum": 0.9}, "momentum: unknown key"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        KernelLogistic.read_settings(wrong)


def test_a_set_of_one_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bilevel.tasks.kernel_logistic.data.MINORITY", 0.0)
    with pytest.raises(SettingsError, match="train_size: all 30 samples of seed 0 are of one class; take more"):
        task()


def test_methods_that_cannot_work_are_refused() -> None:
    for name in ("complex_step", "reversible"):
        with pytest.raises(SettingsError, match=f"kernel_logistic has no method '{name}'"):
            create_method("kernel_logistic", name, {})
