"""Algorithms as piecewise functions: values, exits and derivatives against the programs themselves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.settings import SettingsError
from bilevel.tasks import create_method
from bilevel.tasks.algorithms import Algorithms
from bilevel.tasks.algorithms.base import Algorithm
from bilevel.tasks.algorithms.mod1 import Mod1
from bilevel.tasks.algorithms.stopped_descent import StoppedDescent


def mod1(x: float) -> tuple[float, int]:
    """The slide's program, with the number of ones added."""
    added = 0
    while x < 0 or x >= 1:
        added += 1 if x < 0 else -1
        x += 1 if x < 0 else -1
    return x, added


def descent(x: float, method: StoppedDescent) -> tuple[float, int]:
    """Descent in plain numbers."""
    first, second, steps = 3.0, -2.0, 0
    while True:
        slopes = (0.25 * first - 0.5 + x * first, second - 0.5 + x * second)
        if math.hypot(*slopes) < method.epsilon:
            return 0.5 * ((first - 1) ** 2 + (second - 0.5) ** 2), steps
        first, second = first - method.learning_rate * slopes[0], second - method.learning_rate * slopes[1]
        steps += 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=8))
def test_mod1_is_the_slides_program(inputs: list[float]) -> None:
    branch, value, derivative = Mod1().pieces(torch.tensor(inputs, dtype=torch.float64))
    expected = [mod1(x) for x in inputs]
    assert branch.tolist() == [added for _, added in expected]
    assert value.tolist() == pytest.approx([left for left, _ in expected], abs=1e-12)
    assert derivative.tolist() == pytest.approx([1.0] * len(inputs), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.3, 1.5), min_size=1, max_size=8))
def test_descent_stops_where_the_plain_one_does(inputs: list[float]) -> None:
    method = StoppedDescent()
    branch, value, _ = method.pieces(torch.tensor(inputs, dtype=torch.float64))
    expected = [descent(x, method) for x in inputs]
    assert branch.tolist() == [steps for _, steps in expected]
    assert value.tolist() == pytest.approx([loss for loss, _ in expected], rel=1e-9)


@pytest.mark.parametrize("method", [Mod1(), StoppedDescent(), StoppedDescent(epsilon=0.05, learning_rate=0.5)])
def test_derivatives_are_those_of_the_pieces(method: Algorithm) -> None:
    inputs = torch.linspace(method.low, method.high, 31, dtype=torch.float64)
    near = 1e-6
    below, above = (method.pieces(inputs + shift) for shift in (-near, near))
    branch, _, derivative = method.pieces(inputs)
    inside = (below[0] == branch) & (above[0] == branch)
    assert int(inside.sum()) >= 20
    difference = (above[1] - below[1]) / (2 * near)
    assert derivative[inside].tolist() == pytest.approx(difference[inside].tolist(), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize(("name", "pieces"), [("mod1", 6), ("stopped_descent", 6)])
def test_the_study_counts_pieces_and_measures_jumps(name: str, pieces: int) -> None:
    task = Algorithms("study", Algorithms.read_settings({}), None, [0, 1], torch.device("cpu"))
    result = task.run(create_method("algorithms", name, {}), "test")
    assert result.summary["pieces"].tolist() == [pieces, pieces]
    assert (result.summary["derivative_error"] < 1e-3).all()
    if name == "mod1":
        assert result.summary["largest_jump"].tolist() == pytest.approx([1, 1], abs=1e-12)
    else:
        assert (result.summary["largest_jump"] > 0.01).all()
    assert len(result.trace) == 241
    assert set(result.trace[0]) == {"x", "branch", "value", "derivative"}
    assert result.alive.tolist() == [True, True]


def test_descent_that_does_not_arrive_says_so() -> None:
    with pytest.raises(ValueError, match=r"does not fall below 0\.2 within 3 steps"):
        StoppedDescent(most_steps=3).pieces(torch.tensor([0.3], dtype=torch.float64))


def test_hypergradient_methods_have_no_place_here() -> None:
    with pytest.raises(SettingsError, match="algorithms has no method 'unrolled'"):
        create_method("algorithms", "unrolled", {})
