"""Spaces of cells, their regularizers, and what is chosen, against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilevel.architecture import (
    Choice,
    Space,
    centroid_divergence,
    contrastive,
    pairwise_divergence,
    shared_choices,
)

SWITCHED = Space(inputs=2, nodes=3, operations=("max", "skip", "sep"), kept=2, switch=True)
PLAIN = Space(inputs=1, nodes=4, operations=("none", "tanh", "relu"), kept=1, switch=False)


def drawn(space: Space, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distributions(space: Space, structure: Tensor) -> list[Tensor]:
    """Of one domain, one for each edge and, with switches, for each node."""
    count = len(space.operations)
    found = [structure[e * count : (e + 1) * count].softmax(0) for e in range(len(space.edges))]
    start = count * len(space.edges)
    for target in range(space.inputs, space.inputs + space.nodes if space.switch else 0):
        found.append(structure[start : start + target].softmax(0))
        start += target
    return found


def kl(p: Tensor, q: Tensor) -> float:
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))


def test_edges_and_sizes() -> None:
    assert [tuple(edge) for edge in SWITCHED.edges] == [(i, j) for j in (2, 3, 4) for i in range(j)]
    assert SWITCHED.size == 9 * 4
    assert PLAIN.size == 10 * 3


@pytest.mark.parametrize("space", [SWITCHED, PLAIN])
def test_weights_are_the_distributions(space: Space) -> None:
    structure = drawn(space, 2)
    mixture = space.mixture(structure)
    for d in range(2):
        expected = distributions(space, structure[d])
        torch.testing.assert_close(mixture.operations[d], torch.stack(expected[: len(space.edges)]))
        inputs = torch.cat(expected[len(space.edges) :]) if space.switch else torch.ones(len(space.edges)).double()
        torch.testing.assert_close(mixture.inputs[d], inputs)


@pytest.mark.parametrize("space", [SWITCHED, PLAIN])
@pytest.mark.parametrize("domains", [1, 2, 3, 4])
def test_divergences(space: Space, domains: int) -> None:
    structure = drawn(space, domains)
    each = [distributions(space, row) for row in structure]
    pairwise = centroid = 0.0
    for group in zip(*each, strict=True):
        mean = torch.stack(group).mean(0)
        centroid += sum(kl(p, mean) for p in group) / domains
        for p, q in itertools.permutations(group, 2):
            pairwise += (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2 / (domains * (domains - 1))
    assert float(pairwise_divergence(space, structure)) == pytest.approx(pairwise, rel=1e-12)
    assert float(centroid_divergence(space, structure)) == pytest.approx(centroid, rel=1e-12)


@pytest.mark.parametrize("divergence", [pairwise_divergence, centroid_divergence])
def test_equal_domains_have_no_divergence_and_no_slope(divergence: type) -> None:
    structure = drawn(SWITCHED).expand(3, -1).clone().requires_grad_()
    value = divergence(SWITCHED, structure)
    (slope,) = torch.autograd.grad(value, structure)
    assert float(value) == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


@given(st.integers(0, 10_000), st.sampled_from([SWITCHED, PLAIN]))
def test_discrete_cells(seed: int, space: Space) -> None:
    structure = drawn(space, seed=seed)
    genotype = space.discretize(structure)
    mixture = space.mixture(structure)
    chosen = {(c.source, c.target): c.operation for c in genotype}
    assert len(chosen) == len(genotype) == sum(min(space.kept, t) for t in range(space.inputs, 5))
    assert "none" not in chosen.values()
    allowed = [k for k, name in enumerate(space.operations) if name != "none"]
    for e, edge in enumerate(space.edges):
        best = max(allowed, key=lambda k: float(mixture.operations[e, k]))
        rank = float(mixture.inputs[e]) if space.switch else float(mixture.operations[e, best])
        if edge in chosen:
            assert chosen[edge] == space.operations[best]
        else:
            others = [f for f, other in enumerate(space.edges) if other.target == edge.target and other in chosen]
            for f in others:
                kept = mixture.inputs[f] if space.switch else mixture.operations[f, allowed].max()
                assert float(kept) >= rank


def test_shared_choices() -> None:
    first = (Choice(0, 1, "tanh"), Choice(0, 2, "relu"))
    second = (Choice(0, 1, "tanh"), Choice(1, 2, "relu"))
    assert shared_choices([first]) == set(first)
    assert shared_choices([first, second]) == {Choice(0, 1, "tanh")}


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_contrastive_loss(margin: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    anchors, others = (torch.randn(7, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    labels, other_labels = (torch.randint(0, 4, (7,), generator=draws) for _ in range(2))
    losses = []
    for a in range(7):
        distances = [float((anchors[a] - other).norm()) for other in others]
        same = [x for x, y in zip(distances, other_labels, strict=True) if y == labels[a]]
        different = [x for x, y in zip(distances, other_labels, strict=True) if y != labels[a]]
        if same and different:
            losses.append(max(0.0, margin + max(same) - min(different)))
    expected = sum(losses) / len(losses)
    assert float(contrastive(anchors, labels, others, other_labels, margin)) == pytest.approx(expected, rel=1e-12)


def test_contrastive_loss_has_finite_slopes_everywhere() -> None:
    draws = torch.Generator().manual_seed(0)
    anchors = torch.randn(6, 3, generator=draws, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 5])
    same = contrastive(anchors, labels, anchors, labels, 0.3)  # a domain with itself: distances of zero
    alone = contrastive(anchors, labels, anchors, torch.full((6,), 7), 0.3)  # nothing to compare with
    slopes = torch.autograd.grad(same + alone, anchors)[0]
    assert float(alone) == 0
    assert float(same) > 0
    assert bool(torch.isfinite(slopes).all())
    assert bool(slopes.any())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": 0}, "expected 1 or more"),
        ({"operations": ("none",)}, "one besides 'none'"),
        ({"operations": ("a", "a")}, "expected different ones"),
    ],
)
def test_spaces_without_a_choice_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(**{"inputs": 1, "nodes": 2, "operations": ("a", "b"), "kept": 1, "switch": False, **changes})  # type: ignore[arg-type]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 30 structural parameters"):
        PLAIN.mixture(torch.zeros(29))
