"""Orders in which to run, store and reverse a chain of steps when not all of its states fit in memory.

Plain arithmetic on step numbers; what a state is and how it is stored is up to whoever carries the actions out.
"""

from bilevel.schedules.actions import Action, Advance, Discard, Restore, Reverse, Store
from bilevel.schedules.base import Schedule
from bilevel.schedules.binomial import Binomial, fewest_advances
from bilevel.schedules.segments import Segments
from bilevel.schedules.tree import Tree

__all__ = [
    "Action",
    "Advance",
    "Binomial",
    "Discard",
    "Restore",
    "Reverse",
    "Schedule",
    "Segments",
    "Store",
    "Tree",
    "fewest_advances",
]
