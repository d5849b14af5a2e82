"""Recursive halving: the binary tree of deck 001."""

from __future__ import annotations

from bilevel.schedules.recursive import Recursive


class Tree(Recursive):
    """Every interval of steps is cut in the middle.

    Stores at most ⌈log₂ T⌉ states, those on the path from the root of a binary tree over the steps to a leaf, and
    advances at most ½ T log₂ T steps. With fewer snapshots than that, the deepest levels are not stored.

    Source: deck 001, "Древесное инвертирование" (time O(T log₂ T), memory O(log₂ T)).
    """

    def _split(self, length: int, snapshots: int) -> int:
        return length // 2

    def _default_snapshots(self) -> int:
        return max(1, (self.steps - 1).bit_length())
