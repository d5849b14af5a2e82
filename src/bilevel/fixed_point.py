"""Fixed-point numbers whose products with a rational factor n/d < 1 can be undone bit for bit."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

RANGE_BITS = 62  # integers stay below 2^62, so that the sum of two is still an int64
EXACT = 2.0**52  # below it float64 holds integers, and the sum of two, exactly
LARGEST_DENOMINATOR = 10_000
BUFFER_LIMIT = 2**50  # integers below it are exact in float64, and `_floor_divide` of them is too
BLOCK_BITS = 16
RATIO_BITS = 20
LEAST_NUMERATOR = 2**10


class Ratio(NamedTuple):
    """Factors n/d in (0, 1), not the same for all values: whole numbers n in float64, with a shape that those of the
    values can be broadcast with, and one d."""

    numerator: Tensor
    denominator: int


Factor = Fraction | Ratio


def nearest_ratio(factors: Tensor) -> Ratio:
    """Factors n/2^20 within 2^-21 of `factors` in (0, 1), but for those below 0.001, which is the least."""
    denominator = 2**RATIO_BITS
    numerator = (factors.detach().double() * denominator).round_().clamp_(LEAST_NUMERATOR, denominator - 1)
    return Ratio(numerator, denominator)


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


class OutOfRangeWarning(RuntimeWarning):
    """A seed's number left the range of fixed-point numbers: there is no such chain for this seed."""


class Workspace:
    """What the numbers of one chain share: tensors for intermediate results, and the seeds that are lost.

    A seed is lost when one of its numbers leaves the range or is not finite; its numbers are NaN from then on, and the
    other seeds go on.

    values: (S, ...), of the shape and the floating-point type of the numbers.
    floats: of that type. rest, quotient: float64. lost: the lost seeds, (S,); None while there are none.
    """

    def __init__(self, values: Tensor) -> None:
        # fresh tensors of this size are mapped and unmapped by the system each time, which costs more than to use them
        self.floats = torch.empty_like(values), torch.empty_like(values)
        self.rest, self.quotient = (torch.empty_like(values, dtype=torch.float64) for _ in range(2))
        self.lost: Tensor | None = None

    @cached_property
    def integers(self) -> Tensor:
        """int64, for numbers that are not exact in float64."""
        return torch.empty_like(self.rest, dtype=torch.int64)

    def lose(self, seeds: Tensor) -> None:
        """Mark these seeds, (S,)."""
        self.lost = seeds if self.lost is None else self.lost | seeds

    def without_lost(self, values: Tensor, filler: float) -> Tensor:
        """`values` (S, ...), with `filler` in the place of lost seeds."""
        if self.lost is None:
            return values
        return values.masked_fill(self.lost.view(-1, *[1] * (values.dim() - 1)), filler)


class FixedPoint:
    """Numbers k / 2^D with integers k, |k| < 2^62, (S, ...).

    Increments are rounded to the nearest k, always in the same way, so that adding and subtracting an increment undo
    each other. |k| is kept track of by upper bounds, and looked at only where they leave a range; on the way back they
    are those of the way there. As long as k is below 2^52 it is kept in float64, which is faster than int64.

    values: where the numbers start, of the floating-point type in which `value` returns them.
    fraction_bits: D; numbers are multiples of 2^−D, and less than 2^(62 − D).
    name, setting: what the quantity and its D are called in messages.
    workspace: shared by the numbers of a chain; None: their own.

    Where a number leaves the range or is not finite, here or at an increment, its seed is lost, with an
    `OutOfRangeWarning` that says which D would do.

    Source: Maclaurin et al. 2015, section 3.2; deck 001.
    """

    def __init__(
        self,
        values: Tensor,
        fraction_bits: int,
        name: str,
        setting: str = "fraction_bits",
        workspace: Workspace | None = None,
    ) -> None:
        self.fraction_bits, self._name, self._setting = fraction_bits, name, setting
        self._work = workspace or Workspace(values)
        self._type, self._steps = values.dtype, 0
        self._bounds = [0.0]  # of |k| at the start and after each change that has not been undone
        self._numbers = torch.zeros_like(values, dtype=torch.float64)
        self._add_checked_(values, 1)

    @property
    def integers(self) -> Tensor:
        """k, int64 (S, ...), to be read only."""
        return self._numbers.to(torch.int64)

    def value(self) -> Tensor:
        """The numbers in floating point, a new tensor; NaN for a seed that is lost."""
        return self.write_(torch.empty_like(self._numbers, dtype=self._type))

    def write_(self, to: Tensor) -> Tensor:
        """`value` in a tensor that is there."""
        to.copy_(self._numbers).mul_(2.0**-self.fraction_bits)
        return to if self._work.lost is None else to.copy_(self._work.without_lost(to, math.nan))

    def add_(self, increment: Tensor, sign: int = 1) -> None:
        """The step forward: `sign` · increment (S, ...) is added."""
        self._steps += 1
        self._add_checked_(increment, sign)

    def undo_add_(self, increment: Tensor, sign: int = 1) -> None:
        """What `add_` of the same increment did is undone."""
        self._steps -= 1
        self._bounds.pop()
        self._shift_(self._rounded(increment), -sign)

    def scale_(self, factor: Factor, buffer: RemainderBuffer) -> None:
        """The numbers are multiplied by the factor; the buffer keeps what is lost."""
        buffer.multiply_(self._numbers, factor, self._bounds[-1])
        shrunk = self._bounds[-1] * float(factor) if isinstance(factor, Fraction) else self._bounds[-1]
        self._bounds.append(shrunk + 2)  # a product is within 1 of the exact one, and `shrunk` is rounded

    def undo_scale_(self, factor: Factor, buffer: RemainderBuffer) -> None:
        """What `scale_` by the same factor did is undone."""
        buffer.divide_(self._numbers, factor, self._bounds.pop())

    def equal(self, values: Tensor) -> bool:
        """Whether the numbers are, bit for bit, those that would start at `values`; lost seeds are not looked at."""
        other = self._rounded(values).to(self._numbers.dtype)
        return torch.equal(self._work.without_lost(self._numbers, 0), other)

    def _rounded(self, increment: Tensor) -> Tensor:
        """Whole numbers in floating point, in a tensor that the next call may overwrite; zero for lost seeds."""
        return self._work.without_lost(self._round(self._scaled(increment)), 0.0)

    def _scaled(self, increment: Tensor) -> Tensor:
        factor, scaled = 2.0**self.fraction_bits, self._work.floats[0]
        fits = increment.dtype == scaled.dtype and increment.shape == scaled.shape
        return torch.mul(increment, factor, out=scaled) if fits else increment * factor

    def _round(self, scaled: Tensor) -> Tensor:
        return scaled.round_()

    def _add_checked_(self, increment: Tensor, sign: int) -> None:
        scaled = self._rounded(increment)
        largest = _largest(scaled)
        if not largest < 2.0**RANGE_BITS:  # NaN too
            scaled = self._lose_(scaled)
            largest = _largest(scaled)
        self._widen(largest)
        self._shift_(scaled, sign)
        self._bounds.append(self._bounds[-1] + largest)
        if self._bounds[-1] >= 2.0**RANGE_BITS:
            self._bounds[-1] = _largest(self._numbers)
        if self._bounds[-1] >= 2.0**RANGE_BITS:
            self._lose_(self._numbers.to(torch.float64))

    def _widen(self, largest: float) -> None:
        """Keep the numbers in int64 if float64 might not hold their sum with increments up to `largest`."""
        if self._numbers.is_floating_point() and self._bounds[-1] + largest >= EXACT:
            self._bounds[-1] = _largest(self._numbers)
            if self._bounds[-1] + largest >= EXACT:
                self._numbers = self.integers

    def _shift_(self, scaled: Tensor, sign: int) -> None:
        """The numbers += sign · scaled, which are whole numbers in floating point."""
        work = self._work
        whole = work.rest if self._numbers.is_floating_point() else work.integers
        self._numbers.add_(scaled if scaled.dtype == whole.dtype else whole.copy_(scaled), alpha=sign)

    def _lose_(self, numbers: Tensor) -> Tensor:
        """Lose the seeds of which one of these numbers is out of range; the others' numbers, zero for lost seeds."""
        by_seed = numbers.abs().nan_to_num(math.inf, math.inf).flatten(1).amax(1)
        for seed, largest in enumerate(by_seed.tolist()):
            if largest >= 2.0**RANGE_BITS:
                warnings.warn(self._message(seed, largest / 2.0**self.fraction_bits), OutOfRangeWarning, stacklevel=4)
        self._work.lose(by_seed >= 2.0**RANGE_BITS)
        self._numbers.copy_(self._work.without_lost(self._numbers, 0))
        return self._work.without_lost(numbers, 0.0)

    def _message(self, seed: int, value: float) -> str:
        where = f"{self._name} of seed {seed} at step {self._steps}"
        advice = RANGE_BITS - 1 - math.ceil(math.log2(value)) if math.isfinite(value) else -1
        if advice < 0:
            return (
                f"{where}: no fixed-point number holds {value:.3g}; the inner optimization diverges: lower its "
                "learning rate"
            )
        return (
            f"{where}: {value:.3g} is out of range: with {self._setting}={self.fraction_bits} numbers are less than "
            f"{2.0 ** (RANGE_BITS - self.fraction_bits):.3g}; choose {self._setting}={advice} or less"
        )


class FixedPointSquares(FixedPoint):
    """Fixed-point numbers for averages of squares: never negative, and what is not zero is not rounded to zero.

    An average that is too large shortens a step of Adam; one that was rounded to zero would multiply it by 1/ε.
    """

    def _round(self, scaled: Tensor) -> Tensor:
        unit = self._work.floats[1] if scaled is self._work.floats[0] else torch.empty_like(scaled)
        torch.ceil(scaled, out=unit).clamp_(max=1)
        return torch.maximum(scaled.round_(), unit, out=scaled)


class RemainderBuffer:
    """What products of integers k with factors n/d lose, kept so that they can be undone bit for bit.

    Each value has a buffer b, a whole number written to and read from at its low end: a digit u = b mod n is taken
    off, b ← b div n; the product is k' = (n k + u) div d; the remainder r of that division is put on, b ← d b + r.
    The inverse is the same with n and d exchanged. So k' is within 1 of k n/d, on the average at it where the digits
    are uniform, and k = 0 stays 0. Maclaurin et al. divide first, k' = n (k div d) + u, which needs the same bits and
    is within n of k n/d only.

    A step adds log₂(d/n) bits a value. The bound on b is the same for all values, that of the least n; where it would
    leave 2^50, the low 16 bits of all of them are moved to an int16 block, and they come back at the same step on the
    way back. One block is enough, since d/n is below 2^14.

    Exact: (n k + u) div d = k + ((n − d) k + u) div d, and the numbers divided then are below 2^50 as a rule, since n/d
    is near 1; there float64 is exact, and faster than int64. Where they are not, a multiple q d near k is set aside:
    the product is n q more than that of k − q d.

    Source: Maclaurin et al. 2015, algorithm 3; deck 001.
    """

    def __init__(self, like: Tensor, workspace: Workspace | None = None) -> None:
        """Empty, for values of the shape and device of `like`; `workspace` as of `FixedPoint`."""
        self._work = workspace or Workspace(like)
        self._digits = torch.zeros_like(like, dtype=torch.float64)  # b without its blocks: whole numbers below 2^50
        self._bounds = [0]  # largest possible digits at the start and after each step
        self._blocks: list[tuple[int, Tensor]] = []  # (steps done before, low bits)

    @property
    def bits(self) -> int:
        """Bits a value in use: those of the blocks, and as many as the largest possible number of the rest has."""
        return BLOCK_BITS * len(self._blocks) + self._bounds[-1].bit_length()

    @property
    def empty(self) -> bool:
        """Whether every product has been undone, with nothing left; lost seeds are not looked at."""
        return len(self._bounds) == 1 and not bool(self._work.without_lost(self._digits, 0).any())

    def multiply_(self, numbers: Tensor, factor: Factor, bound: float | None = None) -> None:
        """k ← k · n/d, in place.

        numbers: k, int64 below 2^62 or float64 below 2^52 in magnitude.
        bound: of their magnitudes; None: they are looked at.
        """
        n, d = factor.numerator, factor.denominator
        least = n if isinstance(n, int) else int(n.amin())
        digits = self._bounds[-1]
        if _following(digits, least, d) >= BUFFER_LIMIT:
            self._move_out()
            digits >>= BLOCK_BITS
        self._exchange_(numbers, n, d, bound)
        self._bounds.append(_following(digits, least, d))

    def divide_(self, numbers: Tensor, factor: Factor, bound: float | None = None) -> None:
        """The last `multiply_` that has not been undone, which was by the same factor, is undone, in place.

        Raises ValueError where there is none.
        """
        if len(self._bounds) == 1:
            raise ValueError("no product is left to be undone")
        self._exchange_(numbers, factor.denominator, factor.numerator, bound)
        self._bounds.pop()
        if self._blocks and self._blocks[-1][0] == len(self._bounds):
            self._move_in()

    def _exchange_(self, numbers: Tensor, taken: int | Tensor, given: int | Tensor, bound: float | None) -> None:
        """k ← (taken · k + u) div given, with u from the buffer and the remainder put into it."""
        work, mixed, excess = self._work, self._digits, taken - given
        rest = _floor_divide(mixed, taken, work.rest)
        _add_product_(mixed, rest, taken, -1)
        if (_largest(numbers) if bound is None else bound) * _largest(excess) < BUFFER_LIMIT / 2:
            _add_product_(mixed, numbers, excess)
        else:
            near = self._near(numbers, given)
            _add_product_(numbers, near, given, -1)
            _add_product_(mixed, numbers, excess)
            _add_product_(numbers, near, taken)
        quotient = _floor_divide(mixed, given, work.quotient)
        _add_product_(mixed, quotient, given, -1)
        _add_product_(mixed, rest, given)
        numbers.add_(quotient if numbers.is_floating_point() else work.integers.copy_(quotient))

    def _near(self, numbers: Tensor, divisor: int | Tensor) -> Tensor:
        """Integers near k / divisor, of the type of k."""
        near = self._work.quotient.copy_(numbers).mul_(1 / divisor).round_()
        return near if numbers.is_floating_point() else self._work.integers.copy_(near)

    def _move_out(self) -> None:
        high = (self._digits * 2.0**-BLOCK_BITS).floor_()
        low = self._digits.sub_(high, alpha=2**BLOCK_BITS).sub_(2 ** (BLOCK_BITS - 1))
        self._blocks.append((len(self._bounds), low.to(torch.int16)))
        self._digits = high

    def _move_in(self) -> None:
        _, low = self._blocks.pop()
        self._digits.mul_(2**BLOCK_BITS).add_(low).add_(2 ** (BLOCK_BITS - 1))


def _largest(values: int | Tensor) -> float:
    """The largest magnitude."""
    if isinstance(values, int):
        return abs(values)
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _following(bound: int, n: int, d: int) -> int:
    return bound // n * d + d - 1


def _add_product_(to: Tensor, numbers: Tensor, factor: int | Tensor, sign: int = 1) -> Tensor:
    """to += sign · factor · numbers, exact in the type of `to`."""
    if isinstance(factor, int):
        return to.add_(numbers, alpha=sign * factor)
    return to.addcmul_(numbers.to(to.dtype), factor.to(to.dtype), value=sign)


def _floor_divide(numbers: Tensor, divisor: int | Tensor, to: Tensor) -> Tensor:
    """to = numbers div divisor, exact for whole numbers below 2^50 in magnitude, however the device rounds.

    (x + ½)/d is at least 1/(2 d) from a whole number. Roundings, of 1/d, ½/d, the product and the sum, add to it at
    most 3 · 2^−53 · 2^50/d and a little, which is less.
    """
    if isinstance(divisor, int):  # in two passes
        half = torch.tensor(0.5 / divisor, dtype=torch.float64)
        return torch.add(half, numbers, alpha=1 / divisor, out=to).floor_()
    return torch.add(numbers, 0.5, out=to).mul_(1 / divisor).floor_()
