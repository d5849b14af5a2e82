"""The study of time and memory: what is counted against formulas, what is measured against known allocations."""

import math
from typing import Any

import pytest
import torch

from bilevel.columns import WHOLE_RUN
from bilevel.cost import Cost
from bilevel.hypergradients import Hypergradient
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.memory import LAYOUT, Memory, _Cycle, _exponent, _slope
from bilevel.tasks.memory.measure import measure

CPU = torch.device("cpu")
STEPS = [4, 9, 20]
MEGABYTE = 2**20


def run(method: str, settings: dict[str, Any] | None = None, momentum: float = 0.9) -> Result:
    torch.set_num_threads(1)
    cls = task_class("memory")
    task = cls("memory", cls.read_settings({"steps": STEPS, "momentum": momentum}), None, [0, 1], CPU)
    assert isinstance(task, Memory)
    chosen = create_method("memory", method, settings or {})
    assert isinstance(chosen, Hypergradient)
    return task.run(chosen, "test")


def counted(result: Result, metric: str) -> list[float]:
    return [result.trace[steps][metric][0].item() for steps in STEPS]


@pytest.mark.parametrize(
    ("method", "settings", "states", "gradients", "values"),
    [
        # values: numbers held, in units of P; momentum has two slots, of which reverse mode needs one
        ("unrolled", {}, [5, 10, 21], [9, 19, 41], [6, 11, 22]),
        ("unrolled", {"store": "disk"}, [2, 2, 2], [9, 19, 41], [3, 3, 3]),
        ("aggregated", {"gamma": 0.99}, [1, 1, 1], [8, 18, 40], [2, 2, 2]),
        ("conjugate_gradient", {"iterations": 3}, [1, 1, 1], [6, 11, 22], [2, 2, 2]),
    ],
)
def test_counts_follow_from_the_method(
    method: str, settings: dict[str, Any], states: list[int], gradients: list[int], values: list[int]
) -> None:
    result = run(method, settings)
    assert bool(result.alive.all())
    assert counted(result, "states") == states
    assert counted(result, "gradients") == gradients
    assert counted(result, "held_bytes") == [8 * LAYOUT.size * value for value in values]
    assert "bits_per_step" not in result.summary


@pytest.mark.parametrize("schedule", ["tree", "binomial"])
def test_the_tree_is_within_the_decks_bounds(schedule: str) -> None:
    result = run("checkpointed", {"schedule": schedule})
    for steps, held, gradients in zip(STEPS, counted(result, "states"), counted(result, "gradients"), strict=True):
        if schedule == "tree":
            assert held - 1 <= math.ceil(math.log2(steps))
        assert gradients - steps - 1 <= 0.5 * steps * math.ceil(math.log2(steps))
    assert result.summary["gradients_to_log"].amax() <= 1
    assert result.summary["states_to_log"].amax() <= (1 if schedule == "tree" else 2)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_bits_are_those_that_a_step_forgets(momentum: float) -> None:
    result = run("reversible", momentum=momentum)
    entropy = math.log2(1 / momentum)
    for steps, bits in zip(STEPS, counted(result, "bits"), strict=True):
        assert LAYOUT.size * (steps * entropy - 1) <= bits <= LAYOUT.size * (1.2 * steps * entropy + 64)
    larger = STEPS[1:]
    slope = (counted(result, "bits")[2] - counted(result, "bits")[1]) / (larger[1] - larger[0]) / LAYOUT.size
    assert result.summary["bits_per_step"][0].item() == pytest.approx(slope, rel=1e-12)
    assert result.summary["bits_to_entropy"][0].item() == pytest.approx(slope / entropy, rel=1e-12)
    assert result.summary["bits_share"][0].item() == pytest.approx(slope / 64, rel=1e-12)


def test_only_measurements_differ_from_one_time_to_the_next() -> None:
    first, second = run("aggregated", {"gamma": 0.9}), run("aggregated", {"gamma": 0.9})
    for steps in STEPS:
        assert first.trace[steps].keys() == second.trace[steps].keys()
        for metric, values in first.trace[steps].items():
            assert torch.equal(values, second.trace[steps][metric])
        assert bool((first.measurements[steps]["seconds"] > 0).all())
    for metric, values in first.summary.items():
        assert torch.equal(values, second.summary[metric])
    assert not {"seconds", "peak_bytes"} & {metric for row in first.trace.values() for metric in row}
    assert "seconds_exponent" in first.measurements[WHOLE_RUN]


def test_exponents_of_known_laws() -> None:
    steps = [10, 100, 1000, 10000]
    metrics = {count: {"y": torch.tensor([5.0 * count**1.5, 7.0], dtype=torch.float64)} for count in steps}
    torch.testing.assert_close(_exponent(metrics, "y"), torch.tensor([1.5, 0.0], dtype=torch.float64))
    x = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(_slope(x, torch.stack([3 * x - 1, -x], -1)), torch.tensor([3.0, -1.0]))


def allocating(megabytes: dict[int, int]) -> Any:
    """An estimate that holds some megabytes for so many steps, and frees them."""

    def estimate(steps: int) -> tuple[Cost, bool]:
        held = torch.ones(megabytes.get(steps, 0) * MEGABYTE // 8, dtype=torch.float64)
        return Cost(gradients=steps), bool(torch.isfinite(held).all())

    return estimate


def test_peaks_are_measured_above_the_start_and_do_not_hide_one_another() -> None:
    torch.set_num_threads(1)
    estimate = allocating({10: 64, 20: 16})
    peaks = {steps: measure(estimate, steps, CPU).peak_bytes for steps in (10, 20, 30)}
    if peaks[30] is None:
        pytest.skip("this system does not tell the peak of resident memory")
    # isfinite holds a byte a value and a comparison besides
    for steps, expected in ((10, 64), (20, 16), (30, 0)):
        peak = peaks[steps]
        assert peak is not None
        assert 0.99 * expected <= peak / MEGABYTE <= 2.5 * expected + 2


def test_a_failure_in_a_measurement_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)

    def estimate(steps: int) -> tuple[Cost, bool]:
        raise ValueError("the reason")

    with pytest.raises((RuntimeError, ValueError), match=r"measured failed|the reason"):
        measure(estimate, 5, CPU)
    capfd.readouterr()


def test_batches_come_in_turn() -> None:
    cycle = _Cycle([torch.tensor(0), torch.tensor(1), torch.tensor(2)], 5)
    assert [int(batch) for batch in cycle] == [0, 1, 2, 0, 1]
    with pytest.raises(IndexError):
        cycle[5]


def test_steps_that_do_not_increase_are_refused() -> None:
    cls = task_class("memory")
    with pytest.raises(SettingsError, match="increasing"):
        cls.read_settings({"steps": [10, 10, 20]})
    with pytest.raises(SettingsError, match="at least 3"):
        cls.read_settings({"steps": [10, 20]})
