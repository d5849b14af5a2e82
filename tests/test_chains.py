"""The study of chains: distances against what is known of them in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel.optimizers import LBFGS, Armijo, Fixed
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.chains import CAP, Chains, _growth, _steps_held
from bilevel.tasks.chains.inversion import forward_chain, invert_lbfgs
from bilevel.tasks.chains.inverted import Inverted

CPU = torch.device("cpu")


def chains(problem: str, seeds: list[int], **settings: Any) -> Chains:
    cls = task_class("chains")
    task = cls(f"chains_{problem}", cls.read_settings({"problem": problem, **settings}), None, seeds, CPU)
    assert isinstance(task, Chains)
    return task


def run(task: Chains, optimizer: str, arithmetic: str, learning_rate: float = 0.1) -> Result:
    settings = {"optimizer": optimizer, "arithmetic": arithmetic, "learning_rate": learning_rate}
    method = create_method("chains", "inverted", settings)
    assert isinstance(method, Inverted)
    return task.run(method, "test")


def series(result: Result, metric: str) -> Tensor:
    return torch.stack([result.trace[step][metric] for step in sorted(result.trace)])


@pytest.mark.parametrize("problem", ["quadratic", "network"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_fixed_point_numbers_come_back_to_the_same_bits(problem: str, optimizer: str) -> None:
    result = run(chains(problem, [0, 1], steps=60), optimizer, "fixed_point", 0.01)
    assert bool((series(result, "distance") == 0).all())
    assert result.summary["steps_held"].tolist() == [60, 60]
    assert result.summary["growth"].tolist() == [1, 1]
    assert result.summary["distance_start"].tolist() == [0, 0]
    assert 0 < float(series(result, "rounding")[-1].max()) < 1e-9


def test_momentum_loses_one_over_the_decay_a_step() -> None:
    task = chains("quadratic", [0, 1, 2], steps=100)
    single, double = run(task, "momentum", "float32"), run(task, "momentum", "float64")
    for result in (single, double):
        assert bool(((result.summary["growth"] > 1.05) & (result.summary["growth"] < 1.2)).all())
    ratio = series(single, "distance")[60:] / series(double, "distance")[60:]
    assert bool((ratio > 1e6).all())


def test_sensitivity_of_momentum_on_a_quadratic_is_that_of_a_linear_recursion() -> None:
    task = chains("quadratic", [3], steps=50, disturbance=0.01, larger_disturbance=0.1)
    result = run(task, "momentum", "float64")
    matrix, center = task.batch[0][0], task.batch[1][0]
    size = len(center)
    eye, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    # (w, m) -> (w - 0.1 (0.9 m + G w), 0.9 m + G w), about the minimum
    transition = torch.cat([torch.cat([eye - 0.1 * matrix, -0.09 * eye], 1), torch.cat([matrix, 0.9 * eye], 1)])
    power = torch.eye(2 * size, dtype=torch.float64)
    for step in range(51):
        expected = (power @ torch.cat([task.direction[0], zero[0]]))[:size].norm()
        weights = (power @ torch.cat([task.params[0] - center, zero[0]]))[:size] + center
        for metric, share in (("sensitivity", 0.01), ("sensitivity_larger", 0.1)):
            torch.testing.assert_close(
                result.trace[step][metric][0], share * expected / weights.norm(), rtol=1e-9, atol=1e-14
            )
        power = transition @ power
    assert result.trace[0]["sensitivity"].item() == pytest.approx(0.01, rel=1e-12)
    largest = series(result, "sensitivity").amax() / 0.01
    assert result.summary["amplification"].item() == pytest.approx(float(largest), rel=1e-9)


def lbfgs_chain(steps: int, rate: float, memory: int = 4) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The chain, what was found backwards, and gradients on the quadratic along the latter."""
    task = chains("quadratic", [0, 1])
    optimizer, batches = LBFGS(step_size=Fixed(learning_rate=rate), memory=memory), [task.batch] * steps
    chain, last = forward_chain(task.problem, optimizer, optimizer.init(task.params), task.hyper, batches)
    found = invert_lbfgs(task.problem, optimizer, last, task.hyper, batches)
    gradients = [torch.einsum("sij,sj->si", task.batch[0], params - task.batch[1]) for params in found]
    return chain, found, gradients


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_iterates_within_the_memory_of_lbfgs_come_back_exactly(steps: int) -> None:
    chain, found, _ = lbfgs_chain(steps, 0.3)
    assert found.shape == chain.shape
    torch.testing.assert_close(found, chain, rtol=1e-12, atol=1e-12)


def test_beyond_its_memory_lbfgs_departs_and_solves_the_equation_of_the_step() -> None:
    chain, found, gradients = lbfgs_chain(12, 0.01)
    known = 12 - 5  # w_12 and w_11, and one iterate for each of the 4 pairs
    torch.testing.assert_close(found[known:], chain[known:], rtol=1e-10, atol=1e-10)
    assert bool(((found[known - 1] - chain[known - 1]).norm(dim=-1) > 1e-6).all())
    for step in range(known):
        # w_(t-1) - w_t is 0.01 H g for a positive definite H: the step back goes uphill
        uphill = ((found[step] - found[step + 1]) * gradients[step]).sum(-1)
        assert bool((uphill > 0).all())


def test_lbfgs_with_a_line_search_is_refused() -> None:
    task = chains("quadratic", [0], steps=4)
    optimizer = LBFGS(step_size=Armijo(), memory=2)
    with pytest.raises(ValueError, match="fixed step size"):
        invert_lbfgs(task.problem, optimizer, optimizer.init(task.params), task.hyper, [task.batch] * 4)


def test_lbfgs_has_no_inverse_in_fixed_point_numbers() -> None:
    with pytest.raises(SettingsError, match="no closed inverse"):
        create_method("chains", "inverted", {"optimizer": "lbfgs", "arithmetic": "fixed_point", "learning_rate": 0.1})


def test_a_seed_is_the_same_alone_as_in_company() -> None:
    together = run(chains("network", [0, 5], steps=20), "adam", "float64", 0.01)
    alone = run(chains("network", [5], steps=20), "adam", "float64", 0.01)
    torch.testing.assert_close(
        series(together, "sensitivity")[:, 1], series(alone, "sensitivity")[:, 0], rtol=1e-5, atol=1e-14
    )


def test_what_is_lost_stands_at_the_cap() -> None:
    result = run(chains("quadratic", [0], steps=300), "momentum", "float32")
    assert result.summary["distance_start"].tolist() == [CAP]
    assert bool(result.alive.all())


def test_steps_held_and_growth_of_known_distances() -> None:
    steps = torch.arange(51, dtype=torch.float64)
    back = torch.stack([1e-9 * 2.0**steps, torch.zeros(51, dtype=torch.float64), torch.full_like(steps, math.nan)], -1)
    held, growth = _steps_held(back), _growth(back)
    assert held[:2].tolist() == [19, 50]  # 1e-9 * 2^19 < 1e-3 < 1e-9 * 2^20
    assert math.isnan(held[2])
    torch.testing.assert_close(growth[:2], torch.tensor([2.0, 1.0], dtype=torch.float64), rtol=1e-12, atol=0)
    assert math.isnan(growth[2])


def test_a_data_set_is_refused() -> None:
    cls = task_class("chains")
    with pytest.raises(SettingsError, match="makes its own data"):
        cls.check_data(cls.read_settings({"problem": "network"}), "mnist_5k", {"all": 5000})
