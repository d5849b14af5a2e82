"""Fixed-point numbers whose products with a rational factor n/d < 1 can be undone bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

RANGE_BITS = 62  # integers stay below 2^62, so that the sum of two is still an int64
LARGEST_DENOMINATOR = 10_000
BUFFER_LIMIT = 2**50  # integers below it are exact in float64, and `_floor_divide` of them is too
BLOCK_BITS = 16


def rational(factor: float, name: str) -> Fraction:
    """The rational n/d that `factor` is written for: 0.9 is 9/10, 0.999 is 999/1000.

    name: what to call the factor in messages.

    Raises ValueError for a factor outside (0, 1), or more than 1e-12 (relative) from every n/d with d ≤ 10,000.
    """
    if not 0 < factor < 1:
        raise ValueError(
            f"{name}: reversible steps need a factor between 0 and 1, both excluded, got {factor}; a factor of 0 "
            "forgets the past, and nothing brings it back: use another method, such as unrolled or checkpointed"
        )
    nearest = Fraction(factor).limit_denominator(LARGEST_DENOMINATOR)
    if abs(nearest - Fraction(factor)) > Fraction(factor) / 10**12:
        raise ValueError(
            f"{name}: reversible steps need a factor n/d with d ≤ {LARGEST_DENOMINATOR}, got {factor}; the nearest is "
            f"{nearest.numerator}/{nearest.denominator} = {float(nearest)!r}"
        )
    return nearest


class FixedPoint:
    """Numbers k / 2^D with integers k, |k| < 2^62, in an int64 tensor (S, ...).

    Increments are rounded to the nearest k, always in the same way, so that adding and subtracting an increment undo
    each other. |k| is kept track of by an upper bound, and looked at only when the bound leaves the range.

    values: where the numbers start, of the floating-point type in which `value` returns them.
    fraction_bits: D; numbers are multiples of 2^−D, and less than 2^(62 − D).
    name, setting: what the quantity and its D are called in messages.

    Raises OverflowError, here or at an increment, where a number leaves the range or is not finite.

    Source: Maclaurin et al. 2015, section 3.2; deck 001.
    """

    def __init__(self, values: Tensor, fraction_bits: int, name: str, setting: str = "fraction_bits") -> None:
        self.fraction_bits, self._name, self._setting = fraction_bits, name, setting
        self._type, self._steps, self._bound = values.dtype, 0, 0.0
        self.integers = torch.zeros_like(values, dtype=torch.int64)
        self._add_checked_(values, 1)

    def value(self) -> Tensor:
        """The numbers in floating point, a new tensor."""
        return self.integers.to(self._type).mul_(2.0**-self.fraction_bits)

    def add_(self, increment: Tensor, sign: int = 1) -> None:
        """The step forward: `sign` · increment (S, ...) is added."""
        self._steps += 1
        self._add_checked_(increment, sign)

    def undo_add_(self, increment: Tensor, sign: int = 1) -> None:
        """What `add_` of the same increment did is undone."""
        self._steps -= 1
        self._bound = 2.0**RANGE_BITS  # unknown from here on: the next `add_` looks
        self.integers.sub_(self._rounded(increment).to(torch.int64), alpha=sign)

    def scale_(self, buffer: RemainderBuffer) -> None:
        """The numbers are multiplied by the buffer's factor."""
        buffer.multiply_(self.integers)
        self._bound += 1

    def undo_scale_(self, buffer: RemainderBuffer) -> None:
        """What `scale_` did is undone."""
        buffer.divide_(self.integers)

    def equal(self, values: Tensor) -> bool:
        """Whether the numbers are, bit for bit, those that would start at `values`."""
        return torch.equal(self.integers, self._rounded(values).to(torch.int64))

    def _rounded(self, increment: Tensor) -> Tensor:
        return (increment * 2.0**self.fraction_bits).round_()

    def _add_checked_(self, increment: Tensor, sign: int) -> None:
        scaled = self._rounded(increment)
        low, high = torch.aminmax(scaled)
        largest = max(-float(low), float(high))
        if not largest < 2.0**RANGE_BITS:  # NaN too
            raise self._overflow(scaled)
        self.integers.add_(scaled.to(torch.int64), alpha=sign)
        self._bound += largest
        if self._bound >= 2.0**RANGE_BITS:
            self._bound = float(self.integers.abs().amax())
        if self._bound >= 2.0**RANGE_BITS:
            raise self._overflow(self.integers.to(torch.float64))

    def _overflow(self, scaled: Tensor) -> OverflowError:
        by_seed = scaled.abs().nan_to_num(math.inf, math.inf).flatten(1).amax(1)
        seed = int(by_seed.argmax())
        value = float(by_seed[seed]) / 2.0**self.fraction_bits
        where = f"{self._name} of seed {seed} at step {self._steps}"
        advice = RANGE_BITS - 1 - math.ceil(math.log2(value)) if math.isfinite(value) else -1
        if advice < 0:
            return OverflowError(
                f"{where}: no fixed-point number holds {value:.3g}; the inner optimization diverges: lower its "
                "learning rate"
            )
        return OverflowError(
            f"{where}: {value:.3g} is out of range: with {self._setting}={self.fraction_bits} numbers are less than "
            f"{2.0 ** (RANGE_BITS - self.fraction_bits):.3g}; choose {self._setting}={advice} or less"
        )


class FixedPointSquares(FixedPoint):
    """Fixed-point numbers for averages of squares: never negative, and what is not zero is not rounded to zero.

    An average that is too large shortens a step of Adam; one that was rounded to zero would multiply it by 1/ε.
    """

    def _rounded(self, increment: Tensor) -> Tensor:
        scaled = increment * 2.0**self.fraction_bits
        unit = scaled.ceil().clamp_(max=1)
        return torch.maximum(scaled.round_(), unit)


class RemainderBuffer:
    """What products of integers k with n/d lose, kept so that they can be undone bit for bit.

    Each value has a buffer b, a whole number written to and read from at its low end: a digit u = b mod n is taken
    off, b ← b div n; the product is k' = (n k + u) div d; the remainder r of that division is put on, b ← d b + r.
    The inverse is the same with n and d exchanged. So k' is within 1 of k n/d, on the average at it where the digits
    are uniform, and k = 0 stays 0. Maclaurin et al. divide first, k' = n (k div d) + u, which needs the same bits and
    is within n of k n/d only.

    A step adds log₂(d/n) bits a value. The bound on b is the same for all values; where it would leave 2^50, the low 16
    bits of all of them are moved to an int16 block, and they come back at the same step on the way back.

    Exact: q = k/d is needed roughly only, since (n k + u) div d = n q + (n (k − q d) + u) div d for any integer q; the
    numbers divided then are below 2^50, where float64 is exact and faster than int64.

    Source: Maclaurin et al. 2015, algorithm 3; deck 001.
    """

    def __init__(self, factor: Fraction, like: Tensor) -> None:
        """Empty, for values of the shape and device of `like`."""
        self.factor = factor
        self._digits = torch.zeros_like(like, dtype=torch.float64)  # b without its blocks: whole numbers below 2^50
        self._bounds = [0]  # largest possible digits at the start and after each step
        self._blocks: list[tuple[int, Tensor]] = []  # (steps done before, low bits)

    @property
    def bits(self) -> int:
        """Bits a value in use: those of the blocks, and as many as the largest possible number of the rest has."""
        return BLOCK_BITS * len(self._blocks) + self._bounds[-1].bit_length()

    @property
    def empty(self) -> bool:
        """Whether every product has been undone, with nothing left."""
        return len(self._bounds) == 1 and not bool(self._digits.any())

    def multiply_(self, integers: Tensor) -> None:
        """integers (int64, below 2^62 in magnitude) ← integers · n/d, in place."""
        n, d = self.factor.numerator, self.factor.denominator
        bound = self._bounds[-1]
        if _following(bound, n, d) >= BUFFER_LIMIT:
            self._move_out()
            bound >>= BLOCK_BITS
        self._exchange_(integers, taken=n, given=d)
        self._bounds.append(_following(bound, n, d))

    def divide_(self, integers: Tensor) -> None:
        """The last `multiply_` that has not been undone is undone, in place.

        Raises ValueError where there is none.
        """
        if len(self._bounds) == 1:
            raise ValueError("no product is left to be undone")
        self._exchange_(integers, taken=self.factor.denominator, given=self.factor.numerator)
        self._bounds.pop()
        if self._blocks and self._blocks[-1][0] == len(self._bounds):
            self._move_in()

    def _exchange_(self, integers: Tensor, taken: int, given: int) -> None:
        """integers ← (taken · integers + u) div given, with u from the buffer and the remainder put into it."""
        rest = _floor_divide(self._digits, taken)
        mixed = self._digits.sub_(rest, alpha=taken)
        rough = integers.to(torch.float64).mul_(1 / given).to(torch.int64)
        integers.sub_(rough, alpha=given)
        mixed.add_(integers, alpha=taken)
        quotient = _floor_divide(mixed, given)
        mixed.sub_(quotient, alpha=given).add_(rest, alpha=given)
        integers.copy_(quotient).add_(rough, alpha=taken)

    def _move_out(self) -> None:
        high = (self._digits * 2.0**-BLOCK_BITS).floor_()
        low = self._digits.sub_(high, alpha=2**BLOCK_BITS).sub_(2 ** (BLOCK_BITS - 1))
        self._blocks.append((len(self._bounds), low.to(torch.int16)))
        self._digits = high

    def _move_in(self) -> None:
        _, low = self._blocks.pop()
        self._digits.mul_(2**BLOCK_BITS).add_(low).add_(2 ** (BLOCK_BITS - 1))


def _following(bound: int, n: int, d: int) -> int:
    return bound // n * d + d - 1


def _floor_divide(numbers: Tensor, divisor: int) -> Tensor:
    """numbers div divisor, exact for whole numbers below 2^50 in magnitude, however the device divides.

    (x + ½)/d is at least 1/(2 d) from a whole number, and what rounding adds to it is less than that.
    """
    return numbers.add(0.5).mul_(1 / divisor).floor_()
