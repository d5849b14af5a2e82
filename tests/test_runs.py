"""The two outer loops, on ridge regression, whose best hyperparameter is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel import hypergradients
from bilevel.optimizers import LBFGS, SGD, Fixed, Until
from bilevel.outer import Adam
from bilevel.penalties import L2
from bilevel.problem import Batch, Problem
from bilevel.results import Metrics, Result
from bilevel.runs import HonestLoop, greedy, honest, solve
from bilevel.trajectory import LocallyLinear

SIZE = 4


def loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    inputs, targets = batch
    return 0.5 * (inputs @ params - targets).square().mean()


class Ridge(HonestLoop):
    """Linear regression with one learned L2 coefficient for all weights."""

    def __init__(self, seeds: Sequence[int] = (0, 1), outer_steps: int = 60, tolerance: float | None = None) -> None:
        self.problem = Problem(loss, loss, L2(sizes=[SIZE]))
        self.optimizer = SGD(learning_rate=0.1)
        self.solver = Until(LBFGS(step_size=Fixed(1.0)), gradient_norm=1e-10)
        self.most_steps = 50
        self.outer_steps, self.outer_tolerance = outer_steps, tolerance
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        truth = torch.ones(SIZE, dtype=torch.float64)
        self.sets = [self._set(draws, truth, count) for count in (8, 40)]

    def _set(self, draws: list[torch.Generator], truth: Tensor, count: int) -> Batch:
        inputs = torch.stack([torch.randn(count, SIZE, generator=draw, dtype=torch.float64) for draw in draws])
        noise = torch.stack([torch.randn(count, generator=draw, dtype=torch.float64) for draw in draws])
        return inputs, inputs @ truth + 2 * noise

    def start(self) -> tuple[Tensor, Tensor]:
        count = len(self.sets[0][0])
        params = torch.zeros(count, SIZE, dtype=torch.float64)
        return self.optimizer.init(params), torch.zeros(count, 1, dtype=torch.float64)

    def outer_optimizer(self) -> Adam:
        return Adam(0.1)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        return [self.sets[0]], self.sets[1]

    def inner_batch(self, step: int) -> Batch:
        return self.sets[0]

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        return {"level": hyper[:, 0].clone()}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        return {"level": hyper[:, 0].clone()}


def best_level(task: Ridge, seed: int) -> float:
    """The coefficient's logarithm with the smallest outer loss, by solving on a fine grid."""
    inputs, targets = (part[seed] for part in task.sets[0])
    best = (float("inf"), 0.0)
    for level in torch.linspace(-6, 3, 9001, dtype=torch.float64):
        matrix = inputs.T @ inputs / len(targets) + level.exp() * torch.eye(SIZE, dtype=torch.float64)
        params = torch.linalg.solve(matrix, inputs.T @ targets / len(targets))
        value = loss(params, level, tuple(part[seed] for part in task.sets[1]))
        best = min(best, (float(value), float(level)))
    return best[1]


IMPLICIT = hypergradients.create("conjugate_gradient", iterations=20, tolerance=1e-12)


def test_the_honest_loop_finds_the_best_hyperparameter_and_stops_there() -> None:
    task = Ridge(outer_steps=400, tolerance=1e-5)
    result = honest(task, IMPLICIT)
    for seed in range(2):
        assert float(result.summary["level"][seed]) == pytest.approx(best_level(task, seed), abs=2e-3)
    done = result.summary["outer_steps_done"]
    assert (done < 400).all()
    assert (done > 5).all()
    assert result.summary["unsolved"].tolist() == [0, 0]
    first, later = result.trace[1], result.trace[int(done.min())]
    assert (first["inner_steps"] > later["inner_steps"]).all()
    assert (first["start_norm"] > later["start_norm"]).all()
    assert (result.trace[int(done.max()) + 1]["hypergradient_norm"].nan_to_num(0) <= 1e-5).all()


def test_a_seed_that_is_done_keeps_its_numbers_while_others_go_on() -> None:
    def alone(seed: int) -> Result:
        return honest(Ridge([seed], outer_steps=400, tolerance=1e-3), IMPLICIT)

    together = honest(Ridge([0, 1], outer_steps=400, tolerance=1e-3), IMPLICIT)
    ends = []
    for seed in range(2):
        single = alone(seed)
        ends.append(len(single.trace))
        for name in ("level", "outer_steps_done", "inner_steps", "unsolved"):
            assert float(together.summary[name][seed]) == pytest.approx(float(single.summary[name][0]), rel=1e-9)
        assert float(together.trace[ends[-1] - 1]["level"][seed]) == pytest.approx(float(single.summary["level"][0]))
        for step in range(ends[-1], len(together.trace)):
            assert all(bool(values[seed].isnan()) for values in together.trace[step].values())
    assert ends[0] != ends[1], "the test needs seeds of different length"
    assert len(together.trace) == max(ends)


def test_the_greedy_loop_goes_on_from_where_the_steps_led() -> None:
    task = Ridge(outer_steps=3)
    result = greedy(task, hypergradients.create("none"))
    assert result.summary["level"].tolist() == [0, 0]
    assert "outer_steps_done" not in result.summary
    assert "inner_steps" not in result.trace[1]
    moved = greedy(task, hypergradients.create("unrolled"))
    assert (moved.summary["level"] != 0).all()
    losses = [float(moved.trace[step]["outer_loss"][0]) for step in (1, 2, 3)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("unrolled", {}), ("truncated", {"steps": 1}), ("neumann", {"terms": 20}), ("aggregated", {"gamma": 0.9})],
)
@pytest.mark.parametrize("loop", [greedy, honest])
def test_either_loop_takes_any_method(loop: Any, name: str, chosen: dict[str, Any]) -> None:
    result = loop(Ridge(outer_steps=5), hypergradients.create(name, **chosen))
    assert result.alive.all()
    assert (result.summary["level"] != 0).all()


def test_a_solver_that_runs_out_of_steps_is_told() -> None:
    task = Ridge(outer_steps=2)
    task.most_steps = 1
    result = honest(task, IMPLICIT)
    assert result.summary["unsolved"].tolist() == [2, 2]
    assert result.summary["inner_steps"].tolist() == [2, 2]
    state, hyper = task.start()
    task.most_steps = 50
    solved = solve(task, state, hyper, 0)
    assert solved.metrics["solved"].tolist() == [1, 1]
    again = solve(task, solved.state, hyper, 0)
    assert again.metrics["inner_steps"].tolist() == [0, 0], "a warm start at the solution needs no step"
    assert solved.cost.gradients > again.cost.gradients


# --- which steps are evaluated


class Watched(Ridge):
    """Ridge regression that counts its evaluations, and whose data may turn NaN for a seed at a step."""

    def __init__(self, seeds: Sequence[int] = (0, 1), outer_steps: int = 60, tolerance: float | None = None) -> None:
        super().__init__(seeds, outer_steps, tolerance)
        self.evaluations = 0
        self.breaks: tuple[int, int] | None = None

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        inputs, targets = self.sets[0]
        if self.breaks is not None and step >= self.breaks[1]:
            targets = targets.clone()
            targets[self.breaks[0]] = math.nan
        return [(inputs, targets)], self.sets[1]

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        self.evaluations += 1
        return {**super().evaluate(state, hyper), "weight": state[:, 0, 0].clone()}


UNROLLED = hypergradients.create("unrolled")


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(1e300), right.nan_to_num(1e300))


@pytest.mark.parametrize("prediction", [None, LocallyLinear(length=2, every=2)])
@pytest.mark.parametrize("loop", [greedy, honest])
def test_rows_of_the_trace_are_those_of_a_full_one(loop: Any, prediction: LocallyLinear | None) -> None:
    full, sparse = Watched(outer_steps=10), Watched(outer_steps=10)
    full.prediction = sparse.prediction = prediction
    sparse.evaluate_every = 4
    every, fourth = loop(full, UNROLLED), loop(sparse, UNROLLED)
    assert (list(every.trace), list(fourth.trace)) == (list(range(11)), [0, 4, 8, 10])
    assert (full.evaluations, sparse.evaluations) == (11, 4)
    for step, metrics in fourth.trace.items():
        assert set(metrics) == set(every.trace[step])
        for name in set(metrics) - {"predicted"}:
            assert same(metrics[name], every.trace[step][name]), (step, name)
        if step and prediction is not None:
            before = max(row for row in fourth.trace if row < step)
            shares = [every.trace[row]["predicted"] for row in range(before + 1, step + 1)]
            assert torch.equal(metrics["predicted"], torch.stack(shares).mean(0))
    assert set(fourth.summary) == set(every.summary)
    assert all(same(fourth.summary[name], values) for name, values in every.summary.items())


@pytest.mark.parametrize("every", [7, 1000])
def test_a_seed_that_is_done_between_two_rows_ends_in_the_next(every: int) -> None:
    full, sparse = (Ridge([0, 1], outer_steps=400, tolerance=1e-2) for _ in range(2))
    sparse.evaluate_every = every
    all_rows, some = honest(full, IMPLICIT), honest(sparse, IMPLICIT)
    assert all(same(some.summary[name], values) for name, values in all_rows.summary.items())
    last = max(all_rows.trace)
    assert list(some.trace) == [*range(0, last, every), last]
    ends = [
        max(step for step, metrics in all_rows.trace.items() if not bool(metrics["level"][seed].isnan()))
        for seed in range(2)
    ]
    for seed, end in enumerate(ends):
        shown = [step for step in some.trace if not bool(some.trace[step]["level"][seed].isnan())]
        row = min(step for step in some.trace if step >= end)
        assert shown == [step for step in some.trace if step <= row]
        for name, values in all_rows.trace[end].items():
            if name != "jvps_total":  # what all seeds together had cost by the row
                assert float(some.trace[row][name][seed]) == float(values[seed]), name


def test_progress_is_reported_about_once_a_second_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    greedy(Ridge(outer_steps=40), UNROLLED, "the run")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("the run: outer step 40/40, ")


def test_a_seed_that_diverges_is_marked_and_leaves_the_others_alone() -> None:
    task, alone = Watched([0, 1], outer_steps=6), Watched([0], outer_steps=6)
    task.breaks = (1, 3)
    broken, single = greedy(task, UNROLLED), greedy(alone, UNROLLED)
    assert broken.alive.tolist() == [True, False]
    for step, metrics in broken.trace.items():
        assert bool(metrics["level"][1].isnan()) == (step > 3)
        for name, values in metrics.items():
            assert float(values[0]) == pytest.approx(float(single.trace[step][name][0]), rel=1e-9)
    assert bool(broken.summary["level"][1].isnan())


# --- predicted steps


class Descent:
    """λ ← λ − η h, so that differences of hyperparameters are hypergradients."""

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        return hyper - 0.1 * hypergradient

    def state(self) -> None:
        """Nothing is kept."""


class Box(Watched):
    """Levels are kept in [−0.04, 0.04]."""

    def project(self, hyper: Tensor) -> Tensor:
        return hyper.clamp(-0.04, 0.04)


def one_step(params: Tensor, hyper: Tensor, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
    """Parameters after a step of descent, and d outer loss / dλ there, by automatic differentiation; one seed."""
    leaf = hyper.clone().requires_grad_()
    weights = params.clone().requires_grad_()
    whole = loss(weights, leaf, inner) + 0.5 * leaf.exp().sum() * weights.square().sum()
    (gradient,) = torch.autograd.grad(whole, weights, create_graph=True)
    following = params - 0.1 * gradient
    (hypergradient,) = torch.autograd.grad(loss(following, leaf, outer), leaf)
    return following.detach(), hypergradient


def by_hand(task: Ridge, chosen: LocallyLinear, seed: int) -> list[float]:
    """Levels after each outer step of the greedy loop, with Adam of PyTorch and a fit of NumPy."""
    params = torch.zeros(SIZE, dtype=torch.float64)
    hyper = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([hyper], lr=0.1)
    inner, outer = (tuple(part[seed] for part in batch) for batch in task.sets)
    known: list[float] = []
    levels = [0.0]
    for step in range(task.outer_steps):
        index = step % (chosen.length * chosen.every)
        known = [] if index == 0 else known
        params, hypergradient = one_step(params, hyper.detach(), inner, outer)
        if index >= chosen.length:
            slope, level = np.polyfit(np.arange(chosen.length), known, 1)
            predicted = torch.tensor([level + slope * index])
        if index < chosen.length or chosen.of == "gradients":
            hyper.grad = hypergradient if index < chosen.length else predicted
            adam.step()
        else:
            hyper.data = predicted
        hyper.data = task.project(hyper.data)
        if index < chosen.length:
            known.append(float(hypergradient if chosen.of == "gradients" else hyper.detach()))
        levels.append(float(hyper.detach()))
    return levels


@pytest.mark.parametrize("kind", [Watched, Box])
@pytest.mark.parametrize("of", ["gradients", "values"])
@pytest.mark.parametrize(("length", "every"), [(2, 2), (3, 4), (5, 2)])
def test_predicted_steps_are_those_by_hand(kind: type[Ridge], of: Any, length: int, every: int) -> None:
    task = kind(outer_steps=25)
    task.prediction = LocallyLinear(length=length, every=every, of=of)
    result = greedy(task, hypergradients.create("truncated", steps=1))
    for seed in range(2):
        levels = by_hand(task, task.prediction, seed)
        found = [float(metrics["level"][seed]) for metrics in result.trace.values()]
        assert found == pytest.approx(levels, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loop", [greedy, honest])
def test_the_hypergradients_saved_are_counted(loop: Any) -> None:
    task, whole = Watched(outer_steps=20), Watched(outer_steps=20)
    task.prediction, whole.counts_hypergradients = LocallyLinear(length=3, every=2), True
    result, other = loop(task, UNROLLED), loop(whole, UNROLLED)
    optimized = [(step // 3) % 2 == 0 for step in range(20)]
    assert result.summary["hypergradients"].tolist() == [sum(optimized)] * 2
    assert other.summary["hypergradients"].tolist() == [20, 20]
    for step, metrics in result.trace.items():
        assert metrics["hypergradients_total"].tolist() == [sum(optimized[:step])] * 2
        assert other.trace[step]["hypergradients_total"].tolist() == [step] * 2
        if step:
            assert metrics["predicted"].tolist() == [1 - optimized[step - 1]] * 2
            assert other.trace[step]["predicted"].tolist() == [0, 0]
    saved = sum(optimized) / 20
    assert result.summary["jvps"].tolist() == pytest.approx((other.summary["jvps"] * saved).tolist())
    assert (result.summary["gradients"] < other.summary["gradients"]).all()
    assert all(bool(metrics["outer_loss"].isfinite().all()) for metrics in list(result.trace.values())[1:])


def test_counting_is_asked_for_and_no_hypergradient_is_none() -> None:
    plain = greedy(Ridge(outer_steps=3), UNROLLED)
    assert not {"hypergradients", "hypergradients_total", "predicted"} & {*plain.summary, *plain.trace[3]}
    task = Ridge(outer_steps=3)
    task.counts_hypergradients = True
    result = greedy(task, hypergradients.create("none"))
    assert result.summary["hypergradients"].tolist() == [0, 0]
    assert result.trace[3]["hypergradients_total"].tolist() == [0, 0]


def test_predicted_hypergradients_lie_on_a_line_in_the_honest_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Watched(outer_steps=12)
    task.prediction = LocallyLinear(length=4, every=3)
    monkeypatch.setattr(task, "outer_optimizer", Descent)
    levels = torch.stack([metrics["level"] for metrics in honest(task, IMPLICIT).trace.values()]).numpy()
    moves = np.diff(levels, axis=0)
    slope, level = np.polyfit(np.arange(4), moves[:4], 1)
    np.testing.assert_allclose(moves[4:], level + slope * np.arange(4, 12)[:, None], rtol=1e-9)
    assert np.abs(moves[:4] - (level + slope * np.arange(4)[:, None])).max() > 1e-6, "no line by itself"


def test_no_seed_is_done_in_a_predicted_step() -> None:
    task = Ridge(outer_steps=400, tolerance=1e-2)
    task.prediction = LocallyLinear(length=5, every=2)
    result = honest(task, IMPLICIT)
    for seed in range(2):
        end = int(result.summary["outer_steps_done"][seed])
        assert end < 399
        assert (end // 5) % 2 == 0
        norms = [float(result.trace[step + 1]["hypergradient_norm"][seed]) for step in range(end + 1)]
        assert [math.isnan(norm) for norm in norms] == [(step // 5) % 2 == 1 for step in range(end + 1)]
        assert norms[-1] <= 1e-2
        assert result.summary["hypergradients"][seed] == sum((step // 5) % 2 == 0 for step in range(end + 1))
    assert result.summary["hypergradients"][0] != result.summary["hypergradients"][1]


def test_a_predicted_run_of_a_seed_is_the_same_alone() -> None:
    def run(seeds: Sequence[int]) -> Result:
        task = Watched(seeds, outer_steps=17)
        task.prediction = LocallyLinear(length=3, every=3)
        return greedy(task, UNROLLED)

    together = run([0, 1])
    for seed in range(2):
        alone = run([seed])
        for step, metrics in together.trace.items():
            for name, values in metrics.items():
                assert float(values[seed]) == pytest.approx(float(alone.trace[step][name][0]), rel=1e-9)
