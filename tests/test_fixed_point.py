"""Fixed-point numbers and products that can be undone, against plain integer arithmetic."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilevel.fixed_point import (
    FixedPoint,
    FixedPointSquares,
    OutOfRangeWarning,
    RemainderBuffer,
    Workspace,
    _floor_divide,
    nearest_ratio,
    rational,
)

FACTORS = st.sampled_from(
    [Fraction(9, 10), Fraction(99, 100), Fraction(999, 1000), Fraction(1, 2), Fraction(1, 10_000)]
)
ANY_FACTOR = st.tuples(st.integers(1, 9_999), st.integers(2, 10_000)).map(
    lambda pair: Fraction(min(pair), max(pair)) if pair[0] != pair[1] else Fraction(1, pair[1])
)
INTEGERS = st.integers(-(2**62) + 1, 2**62 - 1)


class PlainBuffer:
    """The definition, one value, with Python's integers."""

    def __init__(self, factor: Fraction) -> None:
        self.n, self.d = factor.numerator, factor.denominator
        self.digits, self.bound, self.blocks = 0, 0, 0

    def multiply(self, value: int) -> int:
        if self.bound // self.n * self.d + self.d - 1 >= 2**50:
            self.digits, self.bound, self.blocks = self.digits >> 16, self.bound >> 16, self.blocks + 1
        self.bound = self.bound // self.n * self.d + self.d - 1
        self.digits, digit = divmod(self.digits, self.n)
        value, remainder = divmod(value * self.n + digit, self.d)
        self.digits = self.digits * self.d + remainder
        assert self.digits <= self.bound
        return value

    @property
    def bits(self) -> int:
        return self.bound.bit_length() + 16 * self.blocks


def numbers(*values: int) -> Tensor:
    return torch.tensor([values])


@given(factor=FACTORS | ANY_FACTOR, start=INTEGERS, increments=st.lists(st.integers(-(2**60), 2**60), max_size=30))
@settings(max_examples=200, deadline=None)
def test_products_are_those_of_the_definition_and_are_undone(
    factor: Fraction, start: int, increments: list[int]
) -> None:
    plain, buffer = PlainBuffer(factor), RemainderBuffer(numbers(start))
    value, found = start, numbers(start)
    history = []
    for increment in [0, *increments]:
        increment = increment if abs(value + increment) < 2**62 else 0
        history.append((value, increment))
        value += increment
        found += increment
        value, exact = plain.multiply(value), value * factor
        buffer.multiply_(found, factor)
        assert found.item() == value
        assert abs(value - exact) < 1
    for value, increment in reversed(history):
        buffer.divide_(found, factor)
        found -= increment
        assert found.item() == value
    assert buffer.empty


@pytest.mark.parametrize("factor", [Fraction(9, 10), Fraction(1, 3), Fraction(999, 1000), Fraction(9999, 10_000)])
def test_many_products_with_blocks(factor: Fraction) -> None:
    """Also in part of the way back and on again, with the buffer's digits those of the definition."""
    draws = torch.Generator().manual_seed(0)
    steps = 3000 if factor > Fraction(99, 100) else 400
    pushes = torch.randint(-(2**52), 2**52, (steps, 1, 7), generator=draws)
    values, buffer = torch.zeros(1, 7, dtype=torch.int64), RemainderBuffer(pushes[0])
    plain = [PlainBuffer(factor) for _ in range(7)]
    history: list[Tensor] = []

    def forward(first: int, last: int) -> None:
        for step in range(first, last):
            history.append(values.clone())
            values.add_(pushes[step])
            buffer.multiply_(values, factor)

    def back(last: int, first: int) -> None:
        for step in reversed(range(first, last)):
            buffer.divide_(values, factor)
            values.sub_(pushes[step])
            assert torch.equal(values, history.pop())

    forward(0, steps)
    back(steps, steps // 2)
    forward(steps // 2, steps)
    expected = [0] * 7
    for step in range(steps):
        expected = [p.multiply(v + int(a)) for p, v, a in zip(plain, expected, pushes[step, 0], strict=True)]
    assert values.tolist() == [expected]
    assert buffer.bits == plain[0].bits
    back(steps, 0)
    assert buffer.empty
    assert buffer.bits == 0


@given(
    factors=st.lists(st.lists(st.floats(1e-6, 1 - 1e-7), min_size=3, max_size=3), min_size=1, max_size=60),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_factors_may_differ_by_value_and_step(factors: list[list[float]], seed: int) -> None:
    values = torch.randint(-(2**60), 2**60, (1, 3), generator=torch.Generator().manual_seed(seed))
    buffer, history = RemainderBuffer(values), []
    for row in factors:
        ratio = nearest_ratio(torch.tensor([row]))
        history.append((values.clone(), ratio))
        buffer.multiply_(values, ratio)
        for before, after, n in zip(history[-1][0][0].tolist(), values[0].tolist(), ratio.numerator[0], strict=True):
            assert abs(after - Fraction(before * int(n), ratio.denominator)) < 1
    for before, ratio in reversed(history):
        buffer.divide_(values, ratio)
        assert torch.equal(values, before)
    assert buffer.empty


@given(
    factor=FACTORS | ANY_FACTOR,
    values=st.lists(st.integers(-(2**52) + 1, 2**52 - 1) | st.integers(-(2**30), 2**30), min_size=1, max_size=8),
    steps=st.integers(1, 40),
    slack=st.sampled_from([0, 1, 2**40, 2**55]),
)
@settings(max_examples=200, deadline=None)
def test_float64_and_int64_bounded_or_looked_at_give_the_same(
    factor: Fraction, values: list[int], steps: int, slack: int
) -> None:
    """A bound decides how products are computed, not what they are."""
    integers, floats = numbers(*values), numbers(*values).double()
    buffers = RemainderBuffer(integers), RemainderBuffer(floats)
    bound = float(max(abs(value) for value in values) + slack)
    for _ in range(steps):
        buffers[0].multiply_(integers, factor)
        buffers[1].multiply_(floats, factor, bound)
        assert torch.equal(integers, floats.long())
        bound += 1
    for _ in range(steps):
        buffers[0].divide_(integers, factor, bound)
        buffers[1].divide_(floats, factor)
        assert torch.equal(integers, floats.long())
    assert integers.tolist() == [values]
    assert all(buffer.empty for buffer in buffers)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 1000, 9999, 10_000, 2**20])
def test_floor_division_up_to_its_limit(d: int) -> None:
    """Next to multiples of d, where it could go wrong, against Python's integers."""
    ends = [2**50 // d - 3, 2**49 // d + 1, 12_345, 0]
    chosen = [sign * q * d + r for q in ends for r in (-1, 0, 1, d - 1) for sign in (-1, 1)]
    chosen = [x for x in chosen if abs(x) < 2**50]
    divided = torch.tensor([chosen * 5], dtype=torch.float64)  # enough for vectors and for what is left of them
    for divisor in (d, torch.full_like(divided, d)):
        found = _floor_divide(divided, divisor, torch.empty_like(divided))
        assert found[0].tolist() == [x // d for x in chosen * 5]


def test_nearest_ratio() -> None:
    found = nearest_ratio(torch.tensor([0.5, 0.9, 1e-9, 1.0], dtype=torch.float64))
    assert found.numerator.tolist() == [2**19, round(0.9 * 2**20), 2**10, 2**20 - 1]
    assert found.denominator == 2**20


@pytest.mark.parametrize("factor", [Fraction(9, 10), Fraction(1, 2), Fraction(99, 100), Fraction(999, 1000)])
@pytest.mark.parametrize("steps", [10, 1000, 10_000])
def test_bits_are_few(factor: Fraction, steps: int) -> None:
    values = torch.randint(-(2**40), 2**40, (1, 1), generator=torch.Generator().manual_seed(1))
    buffer = RemainderBuffer(values)
    for _ in range(steps):
        buffer.multiply_(values, factor)
        values.add_(2**30)
    entropy = -steps * math.log2(factor)
    assert entropy <= buffer.bits <= 1.2 * entropy + 64


def test_products_are_right_on_the_average() -> None:
    """A number that decays and is fed stays where exact arithmetic has it, within a few units."""
    values = torch.zeros(1, 2000, dtype=torch.int64)
    buffer, feed = RemainderBuffer(values), 12_345
    for _ in range(1500):
        buffer.multiply_(values, Fraction(99, 100))
        values.add_(feed)
    exact = feed * (1 - 0.99**1500) / 0.01
    assert abs(values.double().mean().item() - exact) < 20
    assert (values.double() - exact).abs().max().item() < 100


def test_zero_stays_zero() -> None:
    values = torch.tensor([[0, 2**40]])
    buffer = RemainderBuffer(values)
    for _ in range(300):
        buffer.multiply_(values, Fraction(9, 10))
    assert values[0, 0] == 0


def test_nothing_left_to_be_undone() -> None:
    buffer = RemainderBuffer(numbers(3))
    with pytest.raises(ValueError, match="no product is left to be undone"):
        buffer.divide_(numbers(3), Fraction(9, 10))


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.9, "9/10"), (0.99, "99/100"), (0.999, "999/1000"), (0.9999, "9999/10000"), (0.5, "1/2"), (1 / 3, "1/3")],
)
def test_rational(factor: float, expected: str) -> None:
    assert rational(factor, "beta1") == Fraction(expected)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "beta1: reversible steps need a factor between 0 and 1, both excluded, got 0.0; a factor of 0 forgets"),
        (1.0, "both excluded, got 1.0"),
        (math.pi / 4, r"a factor n/d with d ≤ 10000, got 0.785398\d+; the nearest is \d+/\d+ = 0.785398"),
        (0.99999, "got 0.99999; the nearest is"),
        (1e-9, "got 1e-09; the nearest is 0/1"),
    ],
)
def test_what_is_no_rational_is_refused(factor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rational(factor, "beta1")


@given(
    start=st.floats(-100, 100),
    increments=st.lists(st.floats(-100, 100), max_size=20),
    single=st.booleans(),
    bits=st.integers(10, 50),
)
@settings(max_examples=100, deadline=None)
def test_additions_are_rounded_to_the_resolution_and_undone(
    start: float, increments: list[float], single: bool, bits: int
) -> None:
    kind = torch.float32 if single else torch.float64
    chosen = torch.tensor([start, *increments], dtype=kind)
    number = FixedPoint(chosen[:1], bits, "velocity")
    before = number.integers.clone()
    for increment in chosen[1:]:
        number.add_(increment.view(1), -1)
    exact = float(chosen[0].double() - chosen[1:].double().sum())
    assert number.value().dtype == kind
    assert abs(number.integers.item() / 2**bits - exact) <= (len(chosen) + 1) / 2 ** (bits + 1) + 1e-12
    for increment in reversed(chosen[1:]):
        number.undo_add_(increment.view(1), -1)
    assert torch.equal(number.integers, before)
    assert number.equal(chosen[:1])


@given(
    increments=st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=40),
    factor=FACTORS,
    bits=st.sampled_from([30, 38, 44]),
)
@settings(max_examples=100, deadline=None)
def test_numbers_leave_the_exact_range_of_float64_and_come_back(
    increments: list[float], factor: Fraction, bits: int
) -> None:
    """Below 2^52 and above, the same whole numbers as by Python's integers."""
    start = torch.zeros(1, 1, dtype=torch.float64)
    number, buffer, plain = FixedPoint(start, bits, "velocity"), RemainderBuffer(start), PlainBuffer(factor)
    expected, history = 0, []
    for increment in increments:
        history.append(expected)
        expected = plain.multiply(expected) + round(increment * 2**bits)
        number.scale_(factor, buffer)
        number.add_(torch.tensor([[increment]], dtype=torch.float64))
        assert number.integers.item() == expected
    for increment in reversed(increments):
        number.undo_add_(torch.tensor([[increment]], dtype=torch.float64))
        number.undo_scale_(factor, buffer)
        assert number.integers.item() == history.pop()
    assert number.equal(start)
    assert buffer.empty


def test_squares_that_are_not_zero_stay_so() -> None:
    values = torch.tensor([[0.0, 1e-30, 0.4, 0.6, 1.5, 2.5, 7.2]], dtype=torch.float64)
    number = FixedPointSquares(values, 0, "average of squares")
    assert number.integers.tolist() == [[0, 1, 1, 1, 2, 2, 7]]


def test_a_number_out_of_range_says_which_one_when_and_what_to_choose() -> None:
    number = FixedPoint(torch.zeros(3, 2), 44, "velocity")
    number.add_(torch.full((3, 2), 1.0))
    with pytest.warns(
        OutOfRangeWarning,
        match=r"velocity of seed 1 at step 2: 3e\+05 is out of range: with fraction_bits=44 numbers are less than "
        r"2.62e\+05; choose fraction_bits=42 or less",
    ):
        number.add_(torch.tensor([[1.0, 2.0], [3.0, -3e5], [0.0, 0.0]]))
    with pytest.warns(
        OutOfRangeWarning, match=r"average of squares of seed 0 at step 0: 5e\+03 .* square_fraction_bits=4"
    ):
        FixedPointSquares(torch.tensor([[5e3]]), 52, "average of squares", "square_fraction_bits")


@pytest.mark.parametrize("value", [3e5, math.nan, math.inf])
def test_a_lost_seed_is_nan_and_the_others_go_on(value: float) -> None:
    first, increment = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.full((3, 2), 0.5)
    number, buffer = FixedPoint(first, 44, "velocity"), RemainderBuffer(first.long())
    with pytest.warns(OutOfRangeWarning, match="velocity of seed 1 at step 1"):
        number.add_(torch.tensor([[0.5, 0.5], [0.5, value], [0.5, 0.5]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        number.scale_(Fraction(9, 10), buffer)
        number.add_(torch.tensor([[0.5, 0.5], [math.nan, math.nan], [0.5, 0.5]]))
        assert number.value()[1].isnan().all()
        torch.testing.assert_close(number.value()[[0, 2]], torch.tensor([[1.85, 2.75], [5.45, 6.35]]))
        number.undo_add_(increment)
        number.undo_scale_(Fraction(9, 10), buffer)
        number.undo_add_(increment)
    assert number.equal(first)
    assert torch.equal(number.value()[[0, 2]], first[[0, 2]])
    first[0, 0] = 1.25
    assert not number.equal(first)


def test_numbers_that_share_a_workspace_share_lost_seeds() -> None:
    work = Workspace(torch.zeros(2, 3))
    one, other = (FixedPoint(torch.ones(2, 3), 44, name, workspace=work) for name in ("parameters", "velocity"))
    with pytest.warns(OutOfRangeWarning):
        one.add_(torch.tensor([[0.0, 0.0, 0.0], [1e9, 0.0, 0.0]]))
    assert other.value()[1].isnan().all()
    assert torch.equal(other.value()[0], torch.ones(3))


def test_range_is_left_by_many_small_additions_too() -> None:
    number, increment = FixedPoint(torch.zeros(1, 1, dtype=torch.float64), 50, "parameters"), torch.full((1, 1), 900.0)
    for sign in (1, -1, 1, 1, 1, 1):  # the bound leaves the range, the numbers do not
        number.add_(increment.double(), sign)
    assert number.value().item() == 3600.0
    with pytest.warns(OutOfRangeWarning, match=r"at step 7: 4.5e\+03 is out of range"):
        number.add_(increment.double())
    assert number.value().isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_divergence_is_named(value: float) -> None:
    number = FixedPoint(torch.zeros(2, 1, dtype=torch.float64), 44, "velocity")
    with pytest.warns(OutOfRangeWarning, match=r"velocity of seed 1 at step 1: .* diverges: lower its learning rate"):
        number.add_(torch.tensor([[0.0], [value]], dtype=torch.float64))
