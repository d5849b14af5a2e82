"""Sequences in which what was seen must be remembered: a function drawn anew for each, told value by value."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bilevel.models.self_referential import digits

Encoding = Literal["one_hot", "binary"]


class Sequences(NamedTuple):
    """B sequences of T inputs.

    inputs: the symbol of the place and, after it, that of the place before, zeros at first, (B, T, n). targets: the
        function's value at the symbol, 1 or −1, (B, T). repeated: whether the symbol stood at an earlier place, (B, T).
    """

    inputs: Tensor
    targets: Tensor
    repeated: Tensor


def codes(symbols: int, encoding: Encoding) -> Tensor:
    """How symbols are written, (symbols, width): one of so many inputs, or binary digits as 1 and −1."""
    if encoding == "one_hot":
        return torch.eye(symbols)
    return 2 * digits(symbols, (symbols - 1).bit_length()) - 1


def draw_sequences(count: int, length: int, symbols: int, encoding: Encoding, generator: torch.Generator) -> Sequences:
    """Sequences of symbols drawn independently, each with a random Boolean function of them."""
    functions = 2.0 * torch.randint(2, (count, symbols), generator=generator) - 1
    drawn = torch.randint(symbols, (count, length), generator=generator)
    written = codes(symbols, encoding)[drawn]
    before = torch.cat([torch.zeros_like(written[:, :1]), written[:, :-1]], 1)
    each = torch.eye(symbols)[drawn]
    earlier = (each.cumsum(1) - each).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    return Sequences(torch.cat([written, before], -1), functions.gather(1, drawn), earlier > 0)
