"""Language models of one recurrent cell: the mixed cell of a search, and discrete cells.

The cells are those of DARTS. With e_t the embedding of a token and h_{t−1} the hidden state, which is zero where a line
begins, the first state is

    s_0 = h_{t−1} + σ(c) (tanh(a) − h_{t−1}),  (c, a) = W_x e_t + W_h h_{t−1},

an edge from state i to node j with operation f gives s_i + σ(c) (f(a) − s_i) with (c, a) = W_j s_i, h_t is the mean of
all nodes, and the logits are E h_t + b, where E is the embedding itself (tied weights).

W_j belongs to the node: all its edges share it, in the mixed cell all languages do too, and so do discrete cells of
different structure. So the parameters are the same for all structures.

Locked dropout comes with the lines, so that a loss is a function of its arguments (`bilevel.functional`).

Source: Liu, Simonyan and Yang 2019 (DARTS), section 3.1.2 and appendix A; Gal and Ghahramani 2016 (locked dropout).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bilevel.architecture import Genotype, Space

OPERATIONS = ("none", "tanh", "relu", "sigmoid", "identity")
EPSILON = 1e-5  # added to a variance


def space(nodes: int) -> Space:
    """Cells whose nodes have one edge each."""
    return Space(inputs=1, nodes=nodes, operations=OPERATIONS, kept=1, switch=False)


class Lines(NamedTuple):
    """Tokens of D languages in B rows of L steps; each row holds lines one after another, then padding. All (L, D, B).

    tokens: what is read. targets: what is to be foretold.
    real: False for padding.
    goes_on: False where a line begins, so that the hidden state before is zero.
    pairs: the place of the line's pair in its batch, from 0; −1 for padding and where places do not matter.
    """

    tokens: Tensor
    targets: Tensor
    real: Tensor
    goes_on: Tensor
    pairs: Tensor


class Masks(NamedTuple):
    """Factors of dropout, the same at all steps of a batch; None for one that is left out.

    embedding (V, 1), of whole tokens. inputs (D, B, n), of embeddings. hidden (D, B, n), of all that W_h and W_j are
    multiplied by. outputs (D, B, n), of what logits are made of.
    """

    embedding: Tensor | None = None
    inputs: Tensor | None = None
    hidden: Tensor | None = None
    outputs: Tensor | None = None


class Reading(NamedTuple):
    """What a network makes of lines.

    losses: −log probability of each target, (L, D, B), of padding too.
    hidden: h_t without dropout, (L, D, B, n).
    """

    losses: Tensor
    hidden: Tensor


Cell = Callable[[int, Tensor, Tensor | None], Tensor]
"""h_t (G, R, n) of the number of the step, s_0 (G, R, n), and the mask of all that is multiplied by W_j."""


class Network(nn.Module):
    """Embedding, first state and logits of either kind of network; see the module.

    Rows are read in G groups, each with a cell of its own: one of all languages, or one a language.
    """

    def __init__(self, nodes: int, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, hidden))
        self.inputs = nn.Parameter(torch.empty(2 * hidden, hidden))
        self.recurrent = nn.Parameter(torch.empty(2 * hidden, hidden))
        self.nodes = nn.Parameter(torch.empty(2, nodes, hidden, hidden))  # rows of c, then of a
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def initialize_(self, generator: torch.Generator) -> None:
        """Uniform within ±1/√n, the bias zero. (The original has ±0.04 for n = 300 and n = 850.)"""
        bound = self.embedding.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.zeros_(self.bias)

    def _read(self, lines: Lines, masks: Masks, groups: int, cell: Cell) -> Reading:
        """All lines: the products with the inputs and the logits of all steps at once, the cell step by step."""
        steps, languages, rows = lines.tokens.shape
        embedding = self.embedding if masks.embedding is None else self.embedding * masks.embedding
        inputs = _masked(embedding[lines.tokens], masks.inputs)
        projected = linear(inputs, self.inputs).view(steps, groups, -1, len(self.inputs)).unbind(0)
        goes_on = lines.goes_on.reshape(steps, groups, -1, 1).to(inputs.dtype).unbind(0)
        mask = None if masks.hidden is None else masks.hidden.reshape(groups, -1, inputs.shape[-1])
        state, hidden = inputs.new_zeros(groups, languages * rows // groups, inputs.shape[-1]), list[Tensor]()
        for step in range(steps):
            previous = state * goes_on[step]
            gate, candidate = (projected[step] + _product(_masked(previous, mask), self.recurrent.t())).chunk(2, -1)
            state = cell(step, previous.lerp(candidate.tanh(), gate.sigmoid()), mask)
            hidden.append(state)
        read = torch.stack(hidden).view(steps, languages, rows, -1)
        logits = linear(_masked(read, masks.outputs), self.embedding, self.bias)
        return Reading(-logits.log_softmax(-1).gather(-1, lines.targets.unsqueeze(-1)).squeeze(-1), read)


class SearchNetwork(Network):
    """The network whose nodes are mixtures, Σ_i Σ_k p_ijk (edge from i to j with operation k); `none` gives zero.

    s_0 and each node are normalized at each step, by mean and variance over rows of the same group; no scale, no shift.
    """

    def forward(self, mixture: Tensor, lines: Lines, masks: Masks, counts: Tensor | None = None) -> Reading:
        """Lines read with the weights of operations (G, E, O).

        counts: (L, D, B), False for tokens that no other row is to see: their states are normalized by means and
            variances over the rows that count and themselves. None: all count. Padding never does.
        """
        cell = _MixedCell(self.nodes, mixture, lines.real, counts)
        return self._read(lines, masks, len(mixture), cell)


class _MixedCell:
    """The cell of a `SearchNetwork`, with what all steps share.

    Of each state all edges that leave it are one product: its matrices stand side by side, first those of c, then those
    of a. The weights of operations are spread to the entries that they multiply.
    """

    def __init__(self, nodes: Tensor, mixture: Tensor, real: Tensor, counts: Tensor | None) -> None:
        count, self._size = nodes.shape[1], nodes.shape[2]
        first_edges = [target * (target + 1) // 2 for target in range(count)]
        self._matrices, self._weights, self._totals = list[Tensor](), list[tuple[Tensor, ...]](), list[Tensor]()
        for source in range(count):
            leaving = mixture[:, [first + source for first in first_edges[source:]], 1:]
            weights = leaving.repeat_interleave(self._size, 1).unsqueeze(1)
            self._matrices.append(nodes[:, source:].reshape(-1, self._size).t())
            self._weights.append(weights.unbind(-1))
            self._totals.append(weights.sum(-1))
        shape = len(real), len(mixture), -1
        shares = (real if counts is None else real & counts).reshape(shape).to(mixture.dtype)
        rows = shares.sum(-1, keepdim=True)
        self._shares = (shares / rows.clamp_min(1)).unsqueeze(-2).unbind(0)
        self._real = real.reshape(shape).to(mixture.dtype).unsqueeze(-1).unbind(0)
        self._own: tuple[Tensor, ...] | None = None
        if counts is not None:
            own = (~counts).reshape(shape).to(mixture.dtype) / (rows + 1)
            self._own = own.unsqueeze(-1).unbind(0)

    def __call__(self, step: int, state: Tensor, mask: Tensor | None) -> Tensor:
        states, later = [self._normalized(step, state)], None
        for source in range(len(self._matrices)):
            leaving = self._leaving(source, states[-1], mask)
            incoming = leaving if later is None else later + leaving
            following, later = torch.split(incoming, [self._size, incoming.shape[-1] - self._size], -1)
            states.append(self._normalized(step, following))
        return torch.stack(states[1:]).mean(0)

    def _normalized(self, step: int, values: Tensor) -> Tensor:
        """Padding becomes zero, since what is normalized again and again by others' variance may grow without end."""
        centered = (values - self._shares[step] @ values) * self._real[step]
        variance = self._shares[step] @ centered.square()
        if self._own is not None:  # the same with a row's own part in its mean and variance
            own = self._own[step]
            variance = (1 - own) * (variance + own * centered.square())
            centered = (1 - own) * centered
        return centered * (variance + EPSILON).rsqrt()

    def _leaving(self, source: int, state: Tensor, mask: Tensor | None) -> Tensor:
        """What a state (G, R, n) gives to the nodes after it, (G, R, edges · n)."""
        gates, candidates = _product(_masked(state, mask), self._matrices[source]).chunk(2, -1)
        by_tanh, by_relu, by_sigmoid, by_identity = self._weights[source]
        mixed = candidates * by_identity
        mixed = mixed.addcmul(candidates.tanh(), by_tanh)
        mixed = mixed.addcmul(candidates.relu(), by_relu)
        mixed = mixed.addcmul(candidates.sigmoid(), by_sigmoid)
        kept = state.repeat(1, 1, len(self._matrices) - source) * self._totals[source]
        return kept.lerp(mixed, gates.sigmoid())


class DiscreteNetwork(Network):
    """The network of chosen cells, one a group; nothing is normalized.

    genotypes: of the G groups; each node has one edge.

    Raises ValueError for a genotype that is no cell of `space(nodes)`.
    """

    def __init__(self, genotypes: Sequence[Genotype], vocabulary: int, hidden: int) -> None:
        super().__init__(len(genotypes[0]), vocabulary, hidden)
        for genotype in genotypes:
            _check(genotype, len(genotypes[0]))
        self.genotypes = tuple(genotypes)

    def forward(self, lines: Lines, masks: Masks) -> Reading:
        """Lines read with each group's cell."""
        cells = [_DiscreteCell(self.nodes, genotype) for genotype in self.genotypes]

        def cell(step: int, state: Tensor, mask: Tensor | None) -> Tensor:
            masks = [None] * len(cells) if mask is None else list(mask)
            return torch.stack([one(values, own) for one, values, own in zip(cells, state, masks, strict=True)])

        return self._read(lines, masks, len(cells), cell)


class _DiscreteCell:
    """A cell of a `DiscreteNetwork`; all edges that leave a state are one product."""

    def __init__(self, nodes: Tensor, genotype: Genotype) -> None:
        self._operations = [_FUNCTIONS[choice.operation] for choice in genotype]
        self._targets = [
            [target for target, choice in enumerate(genotype) if choice.source == source]
            for source in range(len(genotype))
        ]
        self._matrices = [nodes[:, targets].flatten(0, 2) for targets in self._targets]

    def __call__(self, state: Tensor, mask: Tensor | None) -> Tensor:
        """h_t (R, n) of s_0 (R, n)."""
        states = [state, *[state] * len(self._operations)]  # a node takes its place before any edge leaves it
        for source, (targets, matrix) in enumerate(zip(self._targets, self._matrices, strict=True)):
            if not targets:
                continue
            state = states[source]
            gates, candidates = linear(_masked(state, mask), matrix).chunk(2, -1)
            gates = gates.sigmoid()
            for target, gate, candidate in zip(
                targets, gates.chunk(len(targets), -1), candidates.chunk(len(targets), -1), strict=True
            ):
                states[target + 1] = state.lerp(self._operations[target](candidate), gate)
        return torch.stack(states[1:]).mean(0)


def _product(values: Tensor, matrix: Tensor) -> Tensor:
    """Of rows (..., n) and a matrix (n, m), as one product of two matrices also where `vmap` lifts it."""
    return (values.flatten(0, -2) @ matrix).view(*values.shape[:-1], -1)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def _check(genotype: Genotype, nodes: int) -> None:
    for target, choice in enumerate(genotype, start=1):
        if choice.target != target or not 0 <= choice.source < target or choice.operation not in _FUNCTIONS:
            raise ValueError(
                f"genotype: expected for node {target} one edge from an earlier state with one of "
                f"{', '.join(_FUNCTIONS)}, got {choice}"
            )
    if len(genotype) != nodes:
        raise ValueError(f"genotypes: expected cells of {nodes} nodes each, got one of {len(genotype)}")


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda values: values,
}
