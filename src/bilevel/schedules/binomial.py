"""The schedule with the fewest steps for a given number of snapshots."""

from __future__ import annotations

from math import comb, isqrt

from bilevel.schedules.recursive import Recursive


class Binomial(Recursive):
    """Advances as few steps as is possible with so many snapshots: `fewest_advances(steps, snapshots)`.

    With β(s, r) = C(s + r, s), the largest number of steps that s snapshots allow to reverse with no step advanced more
    than r times, and r such that β(s, r − 1) < l ≤ β(s, r), a cut of l steps after m is optimal if
    max(β(s, r − 2), l − β(s − 1, r)) ≤ m ≤ min(β(s, r − 1), l − β(s − 1, r − 1)). The largest such m is taken.

    Without a limit: the fewest snapshots with which no step is advanced more than twice, about √(2T). More of them save
    one step each until there are T − 1.

    Source: Griewank and Walther 2000 (Revolve).
    """

    def _split(self, length: int, snapshots: int) -> int:
        repeats = _repeats(length, snapshots)
        return min(
            comb(snapshots + repeats - 1, snapshots),
            length - comb(snapshots + repeats - 2, snapshots - 1),
        )

    def _default_snapshots(self) -> int:
        # the smallest s ≥ 1 with (s + 1) (s + 2) / 2 ≥ T
        return max(1, (isqrt(max(8 * self.steps - 7, 0)) - 1) // 2)


def fewest_advances(steps: int, snapshots: int) -> int:
    """r T − β(s + 1, r − 1): the fewest steps T that must be advanced to reverse each of them with s snapshots.

    β(s, r) = C(s + r, s), and β(s, r − 1) < T ≤ β(s, r). State 0 takes one of the snapshots. Steps as they are
    evaluated to be reversed are not counted; there are T of these.

    Raises ValueError for negative `steps` and for `snapshots` below 1.

    Source: Griewank and Walther 2000.
    """
    if steps < 0 or snapshots < 1:
        raise ValueError(f"expected steps ≥ 0 and snapshots ≥ 1, got {steps} and {snapshots}")
    repeats = _repeats(steps, snapshots)
    return repeats * steps - comb(snapshots + repeats, snapshots + 1)


def _repeats(length: int, snapshots: int) -> int:
    """The smallest r with length ≤ β(snapshots, r)."""
    repeats, reach = 0, 1
    while reach < length:
        repeats += 1
        reach = reach * (snapshots + repeats) // repeats
    return repeats
