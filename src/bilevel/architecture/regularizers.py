"""What holds the architectures and the hidden representations of domains together, or apart (deck 003)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel.architecture.space import Space


def pairwise_divergence(space: Space, structure: Tensor) -> Tensor:
    """1 / (D (D − 1)) Σ_edges Σ_d Σ_{d' ≠ d} JS(P_d ‖ P_d'), a scalar, of structural parameters (D, size).

    P_d are the distributions over the operations of an edge and, in a space with switches, over the inputs of a node.
    JS(P ‖ Q) = ½ KL(P ‖ M) + ½ KL(Q ‖ M), M = ½ (P + Q), in nats. Zero for one domain.

    Source: deck 003, "Предлагаемые регуляризаторы", the structural regularizer.
    """
    domains = structure.shape[-2]
    if domains == 1:
        return structure.sum() * 0
    first, second = torch.triu_indices(domains, domains, 1, device=structure.device)
    total = structure.new_zeros(())
    for logs in space.log_distributions(structure):
        left, right = logs[first], logs[second]
        middle = torch.logaddexp(left, right) - math.log(2)
        total = total + (left.exp() * (left - middle) + right.exp() * (right - middle)).sum() / 2
    return total * 2 / (domains * (domains - 1))


def centroid_divergence(space: Space, structure: Tensor) -> Tensor:
    """1 / D Σ_edges Σ_d KL(P_d ‖ mean of all P_d), a scalar, of structural parameters (D, size), in nats.

    With two domains the same as `pairwise_divergence`; with more, what the published run had in its place.
    """
    domains = structure.shape[-2]
    total = structure.new_zeros(())
    for logs in space.log_distributions(structure):
        middle = logs.logsumexp(0) - math.log(domains)
        total = total + (logs.exp() * (logs - middle)).sum() / domains
    return total


def contrastive(anchors: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss between domains, a scalar: the mean over anchors h_a of

        max(0, m + max_{p: y_p = y_a} ‖h_a − h_p‖ − min_{n: y_n ≠ y_a} ‖h_a − h_n‖),

    where p and n go through the samples of another domain. Anchors without one of both there do not count; it is zero
    where none is left.

    anchors (n, F), others (n', F): hidden representations of one domain and of the other; labels (n,), (n',).

    Source: deck 003, the regularizer of hidden representations; Hermans, Beyer and Leibe 2017 (batch hard).
    """
    squares = (anchors.unsqueeze(1) - others.unsqueeze(0)).square().sum(-1)
    # the derivative of a root at zero is infinite; where domains are the same, distances are zero
    distances = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    same = labels.unsqueeze(1) == other_labels.unsqueeze(0)
    counts = same.any(1) & ~same.all(1)
    farthest = distances.masked_fill(~same, -math.inf).amax(1)
    nearest = distances.masked_fill(same, math.inf).amin(1)
    each = torch.relu(margin + torch.where(counts, farthest - nearest, -margin))
    return each.sum() / counts.sum().clamp_min(1)
