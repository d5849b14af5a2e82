"""Recurrent cells against plain step-by-step, edge-by-edge ones in float64; padding, domains, one-hot weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import functional
from bilevel.architecture import Choice, Genotype
from bilevel.models.recurrent_cell import (
    OPERATIONS,
    DiscreteNetwork,
    Lines,
    Masks,
    Network,
    Reading,
    SearchNetwork,
    space,
)

NODES, VOCABULARY, HIDDEN = 4, 11, 3
LANGUAGES, ROWS, LENGTH = 2, 5, 6
SPACE = space(NODES)
FUNCTIONS = {
    "none": torch.zeros_like,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": torch.clone,
}
GENOTYPES: list[Genotype] = [
    (Choice(0, 1, "tanh"), Choice(0, 2, "relu"), Choice(2, 3, "sigmoid"), Choice(1, 4, "identity")),
    (Choice(0, 1, "sigmoid"), Choice(1, 2, "identity"), Choice(1, 3, "tanh"), Choice(1, 4, "relu")),
]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lines(rows: int = ROWS, length: int = LENGTH, languages: int = LANGUAGES, seed: int = 0) -> Lines:
    """Lines that begin at the first step and at random; the last rows are padded at their end."""
    shape, at = (length, languages, rows), draws(seed)
    tokens, targets = (torch.randint(VOCABULARY, shape, generator=at) for _ in range(2))
    goes_on = torch.rand(shape, generator=at) < 0.7
    goes_on[0] = False
    real = torch.ones(shape, dtype=torch.bool)
    real[-2:, :, -1] = False
    real[-1, 0, -2] = False
    return Lines(tokens, targets, real, goes_on & real, torch.zeros(shape, dtype=torch.long))


def masks(rows: int = ROWS, seed: int = 1) -> Masks:
    at = draws(seed)

    def mask(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=at, dtype=torch.float64) < 0.8) / 0.8

    state = (LANGUAGES, rows, HIDDEN)
    return Masks(mask(VOCABULARY, 1), mask(*state), mask(*state), mask(*state))


def made(network: Network, seed: int = 2) -> tuple[Any, Tensor]:
    """The network as a pure function in float64, and parameters."""
    network = network.double()
    network.initialize_(draws(seed))
    torch.nn.init.normal_(network.bias, generator=draws(seed + 1))
    layout, forward = functional(network)
    return forward, layout.join({name: 2 * p.detach() for name, p in network.named_parameters()})


def parts(params: Tensor) -> dict[str, Tensor]:
    network = SearchNetwork(NODES, VOCABULARY, HIDDEN)
    layout, _ = functional(network)
    return layout.split(params)


def mixture(groups: int, seed: int = 3) -> Tensor:
    structure = torch.randn(groups, SPACE.size, generator=draws(seed), dtype=torch.float64)
    return SPACE.mixture(structure).operations


def plain(
    params: Tensor, weights: Tensor, given: Lines, dropped: Masks, normalize: bool = True, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row by row, edge by edge, operation by operation: losses (L, D, B) and hidden states (L, D, B, n)."""
    p = parts(params)
    length, languages, rows = given.tokens.shape
    groups = len(weights)
    one = torch.ones((), dtype=params.dtype)
    losses = torch.zeros(length, languages, rows).double()
    hidden = torch.zeros(length, languages, rows, HIDDEN).double()
    before = {(d, b): torch.zeros(HIDDEN).double() for d in range(languages) for b in range(rows)}
    members = [[(d, b) for d in range(languages) for b in range(rows) if groups == 1 or d == g] for g in range(groups)]

    def normalized(values: dict[Any, Tensor], t: int) -> dict[Any, Tensor]:
        if not normalize:
            return values
        found = {}
        for own, value in values.items():
            there = [values[key] for key in values if key == own or counts is None or counts[t, key[0], key[1]]]
            mean = torch.stack(there).mean(0)
            variance = torch.stack([(value - mean) ** 2 for value in there]).mean(0)
            found[own] = (value - mean) / (variance + 1e-5).sqrt()
        return found

    for t in range(length):
        for g, keys in enumerate(members):
            there = [key for key in keys if given.real[t, key[0], key[1]]]
            states: list[dict[Any, Tensor]] = [{}]
            for d, b in there:
                previous = before[d, b] * given.goes_on[t, d, b]
                token = given.tokens[t, d, b]
                embedded = p["embedding"][token] * (one if dropped.embedding is None else dropped.embedding[token])
                embedded = embedded * (one if dropped.inputs is None else dropped.inputs[d, b])
                mask = one if dropped.hidden is None else dropped.hidden[d, b]
                both = p["inputs"] @ embedded + p["recurrent"] @ (previous * mask)
                gate, candidate = both[:HIDDEN].sigmoid(), both[HIDDEN:].tanh()
                states[0][d, b] = previous + gate * (candidate - previous)
            states[0] = normalized(states[0], t)
            for target in range(1, NODES + 1):
                states.append({})
                for d, b in there:
                    mask = one if dropped.hidden is None else dropped.hidden[d, b]
                    total = torch.zeros(HIDDEN).double()
                    for edge, (source, end) in enumerate(SPACE.edges):
                        if end != target:
                            continue
                        state = states[source][d, b]
                        gate = (p["nodes"][0, target - 1] @ (state * mask)).sigmoid()
                        candidate = p["nodes"][1, target - 1] @ (state * mask)
                        for k, operation in enumerate(OPERATIONS):
                            if operation != "none":
                                value = state + gate * (FUNCTIONS[operation](candidate) - state)
                                total = total + weights[g, edge, k] * value
                    states[target][d, b] = total
                states[target] = normalized(states[target], t)
            for d, b in keys:
                before[d, b] = torch.zeros(HIDDEN).double()
            for d, b in there:
                state = torch.stack([states[node][d, b] for node in range(1, NODES + 1)]).mean(0)
                before[d, b] = hidden[t, d, b] = state
                read = state * (one if dropped.outputs is None else dropped.outputs[d, b])
                logits = p["embedding"] @ read + p["bias"]
                losses[t, d, b] = logits.logsumexp(0) - logits[given.targets[t, d, b]]
    return losses, hidden


def assert_same(found: Reading, wanted: tuple[Tensor, Tensor], real: Tensor) -> None:
    torch.testing.assert_close(found.losses[real], wanted[0][real], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.hidden[real], wanted[1][real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dropped", [Masks(), masks()], ids=["whole", "dropout"])
def test_search_network_is_the_plain_one(groups: int, dropped: Masks) -> None:
    forward, params = made(SearchNetwork(NODES, VOCABULARY, HIDDEN))
    given, weights = lines(), mixture(groups)
    assert_same(forward(params, weights, given, dropped), plain(params, weights, given, dropped), given.real)


def one_hot(genotypes: list[Genotype]) -> Tensor:
    weights = torch.zeros(len(genotypes), len(SPACE.edges), len(OPERATIONS)).double()
    for group, genotype in enumerate(genotypes):
        for source, target, operation in genotype:
            weights[group, SPACE.edges.index((source, target)), OPERATIONS.index(operation)] = 1
    return weights


@pytest.mark.parametrize("genotypes", [GENOTYPES[:1], GENOTYPES], ids=["one", "two"])
@pytest.mark.parametrize("dropped", [Masks(), masks()], ids=["whole", "dropout"])
def test_discrete_network_is_the_plain_one_with_one_hot_weights(genotypes: list[Genotype], dropped: Masks) -> None:
    forward, params = made(DiscreteNetwork(genotypes, VOCABULARY, HIDDEN))
    given = lines()
    wanted = plain(params, one_hot(genotypes), given, dropped, normalize=False)
    assert_same(forward(params, given, dropped), wanted, given.real)


def test_both_networks_have_the_same_parameters() -> None:
    search, _ = functional(SearchNetwork(NODES, VOCABULARY, HIDDEN))
    discrete, _ = functional(DiscreteNetwork(GENOTYPES, VOCABULARY, HIDDEN))
    assert search.shapes == discrete.shapes


def gradient(forward: Any, params: Tensor, given: Lines, *before: Tensor) -> Tensor:
    leaf = params.clone().requires_grad_()
    reading = forward(leaf, *before, given, Masks())
    loss = (reading.losses * given.real).sum() + (reading.hidden.square() * given.real.unsqueeze(-1)).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    return found


def padded(given: Lines, seed: int) -> Lines:
    """More steps and rows that are padding, and other tokens where padding was."""
    at = draws(seed)

    def put(tensor: Tensor, fill: Tensor) -> Tensor:
        fill[: tensor.shape[0], :, : tensor.shape[2]] = tensor
        return fill

    shape = given.tokens.shape[0] + 2, given.tokens.shape[1], given.tokens.shape[2] + 1
    real = put(given.real, torch.zeros(shape, dtype=torch.bool))
    tokens, targets = (put(t, torch.randint(VOCABULARY, shape, generator=at)) for t in given[:2])
    other = torch.randint(VOCABULARY, shape, generator=at)
    goes_on = put(given.goes_on, torch.rand(shape, generator=at) < 0.5)
    return Lines(torch.where(real, tokens, other), torch.where(real, targets, other), real, goes_on, other)


@pytest.mark.parametrize("kind", ["search", "discrete"])
def test_padding_changes_neither_losses_nor_gradients(kind: str) -> None:
    network = SearchNetwork(NODES, VOCABULARY, HIDDEN) if kind == "search" else DiscreteNetwork(GENOTYPES, 11, HIDDEN)
    forward, params = made(network)
    given, before = lines(), [mixture(2)] if kind == "search" else []
    more = padded(given, 7)
    found, wanted = forward(params, *before, more, Masks()), forward(params, *before, given, Masks())
    torch.testing.assert_close(found.losses[more.real], wanted.losses[given.real], rtol=1e-12, atol=1e-12)
    assert bool(torch.isfinite(found.losses).all())
    torch.testing.assert_close(
        gradient(forward, params, more, *before), gradient(forward, params, given, *before), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_that_do_not_count_are_seen_by_themselves_alone(groups: int) -> None:
    forward, params = made(SearchNetwork(NODES, VOCABULARY, HIDDEN))
    given, weights = lines(), mixture(groups)
    counts = torch.ones_like(given.real)
    counts[:, :, :2] = False
    found = forward(params, weights, given, Masks(), counts)
    assert_same(found, plain(params, weights, given, Masks(), counts=counts), given.real)
    others = Lines(*(tensor[:, :, 2:] for tensor in given))
    wanted = forward(params, weights, others, Masks())
    torch.testing.assert_close(found.losses[:, :, 2:], wanted.losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["search", "discrete"])
def test_languages_with_cells_of_their_own_do_not_meet(kind: str) -> None:
    network = SearchNetwork(NODES, VOCABULARY, HIDDEN) if kind == "search" else DiscreteNetwork(GENOTYPES, 11, HIDDEN)
    forward, params = made(network)
    given, other, before = lines(), lines(seed=9), [mixture(2)] if kind == "search" else []
    mixed = Lines(*(torch.stack([a[:, 0], b[:, 1]], 1) for a, b in zip(given, other, strict=True)))
    found, wanted = forward(params, *before, mixed, Masks()), forward(params, *before, given, Masks())
    assert torch.equal(found.losses[:, 0], wanted.losses[:, 0])
    assert not torch.equal(found.losses[:, 1], wanted.losses[:, 1])


def test_one_group_normalizes_over_both_languages() -> None:
    forward, params = made(SearchNetwork(NODES, VOCABULARY, HIDDEN))
    given, other = lines(), lines(seed=9)
    mixed = Lines(*(torch.stack([a[:, 0], b[:, 1]], 1) for a, b in zip(given, other, strict=True)))
    found, wanted = (forward(params, mixture(1), one, Masks()).losses[:, 0] for one in (mixed, given))
    assert not torch.allclose(found, wanted)


def test_products_of_all_seeds_are_those_of_each() -> None:
    forward, params = made(SearchNetwork(NODES, VOCABULARY, HIDDEN))
    several, given = torch.stack([params, params + 0.1, params * 0.9]), [lines(seed=seed) for seed in range(3)]
    stacked = Lines(*(torch.stack(tensors) for tensors in zip(*given, strict=True)))
    weights = torch.stack([mixture(2, seed) for seed in range(3)])
    found = torch.func.vmap(lambda p, m, line: forward(p, m, line, Masks()).losses)(several, weights, stacked)
    for index in range(3):
        wanted = forward(several[index], weights[index], given[index], Masks()).losses
        torch.testing.assert_close(found[index], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        ((Choice(1, 1, "tanh"),), "node 1"),
        ((Choice(0, 1, "none"),), "node 1"),
        ((Choice(0, 1, "tanh"), Choice(0, 3, "relu")), "node 2"),
    ],
)
def test_a_genotype_of_another_space_is_refused(genotype: Genotype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteNetwork([genotype], VOCABULARY, HIDDEN)


def test_cells_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes each"):
        DiscreteNetwork([GENOTYPES[0], GENOTYPES[1][:2]], VOCABULARY, HIDDEN)
