"""What networks are trained by: the loss of lines, slowness, and the contrastive regularizer between two languages."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.architecture import contrastive
from bilevel.models.recurrent_cell import Lines, Reading

FAR = 1e6
"""Entries of the representation of a line that is not there: nobody's nearest."""


def line_loss(reading: Reading, lines: Lines) -> Tensor:
    """Σ_d p_d L_d with equal p_d; L_d is the mean of −log probability over the tokens of language d."""
    real = lines.real.to(reading.losses.dtype)
    return ((reading.losses * real).sum((0, 2)) / real.sum((0, 2)).clamp_min(1)).mean()


def slowness(reading: Reading, lines: Lines) -> Tensor:
    """Mean of (h_t − h_{t−1})² over entries and steps within lines.

    Source: Merity, McCann and Socher 2017 (temporal activation regularization).
    """
    within = (lines.goes_on & lines.real)[1:].unsqueeze(-1).to(reading.hidden.dtype)
    changes = (reading.hidden[1:] - reading.hidden[:-1]) * within
    return changes.square().sum() / (within.sum() * changes.shape[-1]).clamp_min(1)


def contrast(reading: Reading, lines: Lines, pairs: int, margin: float) -> Tensor:
    """`architecture.contrastive` of two languages, the mean of both directions; labels are the pairs of a batch.

    pairs: how many are looked at, those of the first places.
    """
    found, there = representations(reading, lines, pairs)
    first, second = torch.where(there.unsqueeze(-1), found, FAR).unbind(0)
    places = torch.arange(pairs, device=found.device)
    anchors, others = torch.where(there, places, -2), torch.where(there, places, -1)  # who is not there has no pair
    forth = contrastive(first, anchors, second, others, margin)
    return (forth + contrastive(second, anchors, first, others, margin)) / 2


def representations(reading: Reading, lines: Lines, pairs: int) -> tuple[Tensor, Tensor]:
    """Means of the hidden states of lines, (D, pairs, n), and which of the pairs are there, (pairs,)."""
    places = torch.arange(pairs, device=lines.pairs.device).unsqueeze(-1)
    belongs = (lines.pairs.permute(1, 2, 0).flatten(1).unsqueeze(1) == places).to(reading.hidden.dtype)
    counts = belongs.sum(-1, keepdim=True)
    sums = belongs @ reading.hidden.permute(1, 2, 0, 3).flatten(1, 2)
    return sums / counts.clamp_min(1), (counts > 0).all(0).squeeze(-1)
