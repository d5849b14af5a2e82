"""Every schedule, carried out on a chain whose states are numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.schedules import (
    Advance,
    Binomial,
    Discard,
    Restore,
    Reverse,
    Schedule,
    Segments,
    Store,
    Tree,
    fewest_advances,
)

ONE_BY_ONE = [Binomial, Tree]
KINDS = [*ONE_BY_ONE, Segments]
GRID = [(steps, snapshots) for steps in range(1, 41) for snapshots in (1, 2, 3, 4, 7, 20, 50, None)]


@dataclass
class Replay:
    """State t is the number t; every action is checked against what is there at that moment."""

    current: int = 0
    stored: set[int] = field(default_factory=set)
    peak: int = 0
    advances: dict[int, int] = field(default_factory=dict)
    reversed: list[int] = field(default_factory=list)

    def run(self, schedule: Schedule) -> Replay:
        for action in schedule:
            match action:
                case Advance(start, stop):
                    assert self.current == start < stop <= schedule.steps
                    for step in range(start, stop):
                        self.advances[step] = self.advances.get(step, 0) + 1
                    self.current = stop
                case Store(step):
                    assert self.current == step
                    assert step not in self.stored
                    self.stored.add(step)
                    self.peak = max(self.peak, len(self.stored))
                case Restore(step):
                    assert step in self.stored
                    assert step != self.current, "the state is at hand already"
                    self.current = step
                case Discard(step):
                    self.stored.remove(step)
                case Reverse(start, stop):
                    assert self.current == start < stop <= schedule.steps
                    assert stop - start <= schedule.together
                    self.reversed += reversed(range(start, stop))
        return self


def check(schedule: Schedule) -> Replay:
    replay = Replay().run(schedule)
    assert replay.reversed == list(reversed(range(schedule.steps)))
    assert replay.peak <= schedule.snapshots <= max(0, schedule.steps - 1)
    assert not replay.stored, "nothing stays behind"
    return replay


@cache
def optimum(steps: int, snapshots: int) -> int:
    """The fewest advances, by trying every place for the next snapshot."""
    if steps <= 1:
        return 0
    if snapshots == 1:
        return steps * (steps - 1) // 2
    return min(cut + optimum(steps - cut, snapshots - 1) + optimum(cut, snapshots) for cut in range(1, steps))


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_reversed_once_from_its_own_state(kind: type[Schedule]) -> None:
    for steps, snapshots in GRID:
        check(kind(steps, snapshots))


@given(kind=st.sampled_from(KINDS), steps=st.integers(0, 600), snapshots=st.none() | st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_any_length_and_any_limit(kind: type[Schedule], steps: int, snapshots: int | None) -> None:
    schedule = kind(steps, snapshots)
    replay = check(schedule)
    if snapshots is not None:
        assert schedule.snapshots <= snapshots
    if kind is Binomial and steps > 1:
        assert sum(replay.advances.values()) == fewest_advances(steps, schedule.snapshots)


def test_binomial_is_the_optimum() -> None:
    for steps in range(1, 61):
        for snapshots in range(1, 13):
            advances = sum(check(Binomial(steps, snapshots)).advances.values())
            assert advances == fewest_advances(steps, snapshots) == optimum(steps, snapshots)


def test_known_optima() -> None:
    # Revolve's own count includes the T evaluations in which steps are reversed
    assert fewest_advances(1000, 10) == 4636 - 1000
    assert fewest_advances(1000, 30) == 3472 - 1000
    assert fewest_advances(10_000, 1) == 10_000 * 9_999 // 2
    assert fewest_advances(10_000, 9_999) == fewest_advances(10_000, 10**6) == 9_999
    assert [fewest_advances(steps, 3) for steps in (0, 1, 2)] == [0, 0, 1]


def test_the_shortest_chains_action_by_action() -> None:
    for kind in KINDS:
        assert list(kind(0)) == []
        assert list(kind(1)) == [Reverse(0, 1)]
        assert list(kind(2)) == [Store(0), Advance(0, 1), Reverse(1, 2), Restore(0), Reverse(0, 1), Discard(0)]
    assert list(Tree(3)) == [
        Store(0),
        Advance(0, 1),
        Store(1),
        Advance(1, 2),
        Reverse(2, 3),
        Restore(1),
        Reverse(1, 2),
        Discard(1),
        Restore(0),
        Reverse(0, 1),
        Discard(0),
    ]


def test_tree_stores_the_logarithm_and_advances_half_of_t_log_t() -> None:
    for steps in range(2, 1001):
        advances, stored, peak = 0, 0, 0
        for action in Tree(steps):
            if isinstance(action, Advance):
                advances += action.stop - action.start
            stored += isinstance(action, Store) - isinstance(action, Discard)
            peak = max(peak, stored)
        assert peak == (steps - 1).bit_length()  # the ceiling of log2 T
        assert advances == sum(step.bit_count() for step in range(steps))  # ≤ ½ T log2 T


def test_binomial_by_itself_advances_no_step_more_than_twice_and_one_snapshot_less_would_not_do() -> None:
    for steps in range(1, 400, 7):
        schedule = Binomial(steps)
        assert max(check(schedule).advances.values(), default=0) <= 2
        if schedule.snapshots > 1:
            assert max(check(Binomial(steps, schedule.snapshots - 1)).advances.values()) == 3
    assert Binomial(1000).snapshots == 44


def test_segments_advance_each_step_once_and_hold_about_two_square_roots() -> None:
    assert list(Segments(7, 2)) == [
        Store(0),
        Advance(0, 3),
        Store(3),
        Advance(3, 6),
        Reverse(6, 7),
        Restore(3),
        Reverse(3, 6),
        Discard(3),
        Restore(0),
        Reverse(0, 3),
        Discard(0),
    ]
    for steps in range(1, 1001):
        schedule = Segments(steps)
        assert schedule.together + schedule.snapshots <= 2 * steps**0.5 + 1
    for steps, snapshots in GRID:
        assert max(check(Segments(steps, snapshots)).advances.values(), default=0) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_made_as_they_are_asked_for_and_anew_each_time(kind: type[Schedule]) -> None:
    assert next(iter(kind(10**12, 100))) == Store(0)
    schedule = kind(17, 3)
    assert list(schedule) == list(schedule)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments(kind: type[Schedule]) -> None:
    with pytest.raises(ValueError, match="steps: expected 0 or more, got -1"):
        kind(-1)
    with pytest.raises(ValueError, match="snapshots: expected 1 or more, got 0"):
        kind(5, 0)
    with pytest.raises(ValueError, match="got 5 and 0"):
        fewest_advances(5, 0)
