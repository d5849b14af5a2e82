"""The two outer loops, on ridge regression, whose best hyperparameter is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import hypergradients
from bilevel.optimizers import LBFGS, SGD, Fixed, Until
from bilevel.outer import Adam
from bilevel.penalties import L2
from bilevel.problem import Batch, Problem
from bilevel.results import Metrics, Result
from bilevel.runs import greedy, honest, solve
from bilevel.tasks.base import HonestLoop

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
