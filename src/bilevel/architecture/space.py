"""Spaces of cells: which edges there may be, what structural parameters stand for, and what is chosen in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

NO_OPERATION = "none"
"""The operation whose result is zero; it takes part in mixtures, and is never chosen."""


class Edge(NamedTuple):
    """An edge from node `source` to node `target`."""

    source: int
    target: int


class Choice(NamedTuple):
    """An edge that a discrete cell has, and its operation."""

    source: int
    target: int
    operation: str


Genotype = tuple[Choice, ...]
"""A discrete cell, in the order of its space's edges."""


class Mixture(NamedTuple):
    """Weights of a cell's mixed operations.

    operations: (..., E, O), of each edge's operations, which add up to 1.
    inputs: (..., E), of the edges themselves, which add up to 1 for each node; all 1 without input switches.
    """

    operations: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Space:
    """Directed acyclic cells. Nodes 0, …, inputs − 1 are given; each of the `nodes` after them is computed from all
    nodes before it:

        x_j = Σ_{i<j} s_ij Σ_k p_ijk g_k(x_i),  p_ij = softmax(α_ij),  s_j = softmax(input switch of j), or 1.

    The E edges are ordered by target, then by source. Structural parameters of one domain are one vector (size,): the E
    rows of O entries of α, then, with `switch`, one entry for each edge.

    operations: names of the O operations; `none` gives zero.
    kept: edges that a node of a discrete cell has, at most.
    switch: whether edges have weights of their own. Those of largest weight are kept; without, those whose best
        operation has the largest weight (Liu et al. 2019).

    Raises ValueError for a space in which nothing could be chosen.

    Source: deck 003, "Постановка задачи поиска архитектуры"; Liu, Simonyan and Yang 2019 (DARTS).
    """

    inputs: int
    nodes: int
    operations: tuple[str, ...]
    kept: int
    switch: bool

    def __post_init__(self) -> None:
        if min(self.inputs, self.nodes, self.kept) < 1:
            raise ValueError(
                f"inputs, nodes and kept: expected 1 or more of each, got {self.inputs}, {self.nodes} and {self.kept}"
            )
        if not self.choosable or len(set(self.operations)) < len(self.operations):
            raise ValueError(
                f"operations: expected different ones, and one besides {NO_OPERATION!r}, got {self.operations}"
            )

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, ordered by target, then by source."""
        targets = range(self.inputs, self.inputs + self.nodes)
        return tuple(Edge(source, target) for target in targets for source in range(target))

    @cached_property
    def choosable(self) -> tuple[int, ...]:
        """Indices of the operations that a discrete cell may have."""
        return tuple(index for index, name in enumerate(self.operations) if name != NO_OPERATION)

    @property
    def size(self) -> int:
        """Number of structural parameters of one domain."""
        return len(self.edges) * (len(self.operations) + self.switch)

    def logits(self, structure: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """α (..., E, O), and the input switch of each node (..., its edges), of structural parameters (..., size).

        There are no switches in a space without.
        """
        edges, operations = len(self.edges), len(self.operations)
        if structure.shape[-1] != self.size:
            raise ValueError(f"expected {self.size} structural parameters, got shape {tuple(structure.shape)}")
        if not self.switch:
            return structure.reshape(*structure.shape[:-1], edges, operations), ()
        alpha, switches = torch.split(structure, [edges * operations, edges], dim=-1)
        degrees = list(range(self.inputs, self.inputs + self.nodes))
        alpha = alpha.reshape(*alpha.shape[:-1], edges, operations)
        return alpha, torch.split(switches, degrees, dim=-1)

    def mixture(self, structure: Tensor) -> Mixture:
        """Weights of structural parameters (..., size)."""
        alpha, switches = self.logits(structure)
        if not switches:
            return Mixture(alpha.softmax(-1), alpha.new_ones(alpha.shape[:-1]))
        return Mixture(alpha.softmax(-1), torch.cat([switch.softmax(-1) for switch in switches], dim=-1))

    def log_distributions(self, structure: Tensor) -> list[Tensor]:
        """Logarithms of all distributions that structural parameters (..., size) are: of the operations of all edges,
        (..., E, O), then of each node's inputs, (..., 1, edges of the node)."""
        alpha, switches = self.logits(structure)
        return [alpha.log_softmax(-1), *(switch.log_softmax(-1).unsqueeze(-2) for switch in switches)]

    def discretize(self, structure: Tensor) -> Genotype:
        """The discrete cell of one domain's structural parameters (size,): the operation of largest weight of each edge
        that is kept. Of equal ones the first.

        Source: deck 003, "Получение итоговой архитектуры".
        """
        mixture = self.mixture(structure.detach())
        weights = mixture.operations[:, list(self.choosable)].tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in weights]
        ranks = mixture.inputs.tolist() if self.switch else [max(row) for row in weights]
        chosen = set[int]()
        for target in range(self.inputs, self.inputs + self.nodes):
            own = [index for index, edge in enumerate(self.edges) if edge.target == target]
            chosen |= set(sorted(own, key=lambda index: -ranks[index])[: self.kept])
        names = [self.operations[self.choosable[index]] for index in best]
        return tuple(Choice(*edge, names[index]) for index, edge in enumerate(self.edges) if index in chosen)


def shared_choices(genotypes: Sequence[Genotype]) -> set[Choice]:
    """What all of these cells have: the same edges with the same operations."""
    return set[Choice].intersection(*map(set, genotypes))
