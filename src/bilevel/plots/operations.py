"""How operations of searched cells, and parts of other mixtures, are called in figures, and in which family's color."""

from __future__ import annotations

from collections.abc import Mapping

from bilevel.report.decks import Method

OPERATIONS: Mapping[str, Method] = {
    "max_pool_3": Method(name="max", family="implicit"),
    "avg_pool_3": Method(name="avg", family="implicit"),
    "skip": Method(name="skip", family="exact"),
    "sep_conv_3": Method(name="sep 3", family="aggregated"),
    "sep_conv_5": Method(name="sep 5", family="aggregated"),
    "dil_conv_3": Method(name="dil 3", family="drmad"),
    "dil_conv_5": Method(name="dil 5", family="drmad"),
    "none": Method(name="none", family="none"),
    "tanh": Method(name="tanh", family="aggregated"),
    "relu": Method(name="relu", family="drmad"),
    "sigmoid": Method(name="sigmoid", family="truncated"),
    "identity": Method(name="identity", family="exact"),
    "sine": Method(name="sine", family="implicit"),
    "l2": Method(name="L2", family="aggregated"),
    "l1": Method(name="L1", family="drmad"),
}
"""Operations of a family share a color; their order here gives each its line style."""


def name_of(operation: str) -> str:
    """The operation's name; its key where it has none."""
    return OPERATIONS[operation].name if operation in OPERATIONS else operation
