"""A recurrent network that reads and changes its own weights, which it names by their addresses.

Deck 002, "A neural network that embeds its own meta-levels": normal units infer, evaluation units say how good that
was, analyzing units read a weight, modifying units change one. All of them are rows and columns of one matrix, so that
what changes weights can itself be changed.

Source: Schmidhuber 1993, "A self-referential weight matrix". Our choice is g, the coding of addresses, which units
the hidden ones are connected with, and that weights and activations of the present step give the answers of that step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from bilevel.parameters import Layout

EVALUATION = 2
"""Evaluation units: the loss of the input before, and the target less the probability that was given."""


class Course(NamedTuple):
    """What a network does on B sequences of T inputs.

    losses: −log of the probability given to the target, (B, T). margins: target · output, positive where the answer is
        right, (B, T). weights: those after the last step, (B, columns, rows), or (columns, rows) as they were at first.
    """

    losses: Tensor
    margins: Tensor
    weights: Tensor


class Addresses:
    """The number of a weight's column followed by that of its row, in binary digits.

    columns, rows: of the matrix; `bits` digits in all. Since g is exponential, that of a weight is the product
    of that of its column and that of its row.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self._sizes = [columns, rows]
        column, row = (digits(count, (count - 1).bit_length()).T for count in self._sizes)
        self.bits = len(column) + len(row)
        squares = _diagonal(torch.ones_like(column), torch.ones_like(row))
        self._table = torch.cat([squares, _diagonal(column, row)])

    def kernel(self, width: Tensor) -> Tensor:
        """What makes log g of squares a_k² and of 1 − 2 a_k, of all digits k: (2 · bits, columns + rows).

        Of a code c of zeros and ones, −‖a − c‖² / 2σ² = −Σ_k (a_k² + (1 − 2 a_k) c_k) / 2σ².
        """
        return -self._table.to(width) / (2 * width.square())

    def nearness(self, address: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """g of all columns (..., columns) and of all rows (..., rows), for addresses (..., bits) in (0, 1)."""
        near = torch.exp(torch.cat([address.square(), 1 - 2 * address], -1) @ kernel)
        columns, rows = torch.split(near, self._sizes, -1)
        return columns, rows


class SelfReferential:
    """Units z_t = (x_t, e_t, v_t, 1, h_{t−1}) and answers u_t = W_tᵀ z_t, of which are made

        h_t = tanh(u^h), the output o_t = u^o, the addresses a_t, m_t = sigmoid(u^a), sigmoid(u^m) in (0, 1)^bits, and
        the change Δ_t = s tanh(u^Δ);
        v_{t+1} = Σ_ij g(‖a_t − adr(w_ij)‖²) w_ij,t,   w_ij,t+1 = w_ij,t + Δ_t g(‖m_t − adr(w_ij)‖²),
        g(d) = exp(−d / 2σ²),

    with `Addresses` adr. W_0 is all there is to train; width σ and scale s are exponentials of two hyperparameters. The
    probability of the target 1 rather than −1 is sigmoid(o).

    inputs: length of x. hidden: number of h. ticks: steps that every input is held for; the last one's output counts.
    modifies: False leaves W as it is, whatever Δ; everything else, and the number of weights, stays.

    `layout` has `weights` (columns, rows), from unit to answer.
    """

    def __init__(self, inputs: int, hidden: int, ticks: int = 1, modifies: bool = True) -> None:
        self.hidden, self.ticks, self.modifies = hidden, ticks, modifies
        self.columns = inputs + EVALUATION + 2 + hidden
        column_bits, row_bits = (self.columns - 1).bit_length(), 1
        while hidden + 2 + 2 * (column_bits + row_bits) > 2**row_bits:  # the digits of rows take rows themselves
            row_bits += 1
        self.rows = hidden + 2 + 2 * (column_bits + row_bits)
        self.addresses = Addresses(self.columns, self.rows)
        self._answers = [hidden, 1, 2 * self.addresses.bits, 1]
        self.layout = Layout({"weights": (self.columns, self.rows)})

    def run(self, params: Tensor, hyper: Tensor, inputs: Tensor, targets: Tensor) -> Course:
        """From inputs (B, T, n) and targets (B, T), 1 or −1, at parameters (P,) and hyperparameters (log σ, log s)."""
        weights = self.layout.split(params)["weights"]
        width, scale = hyper.exp().unbind(-1)
        kernel = self.addresses.kernel(width)
        count, length = targets.shape
        hidden, read = inputs.new_zeros(count, self.hidden), inputs.new_zeros(count, 1)
        evaluation, one = inputs.new_zeros(count, EVALUATION), inputs.new_ones(count, 1)
        losses, margins = [], []
        for place in range(length):
            for _ in range(self.ticks):
                units = torch.cat([inputs[:, place], evaluation, read, one, hidden], -1)
                answers = torch.split(product(units, weights), self._answers, -1)
                hidden, output, change = torch.tanh(answers[0]), answers[1], answers[3]
                near = self.addresses.nearness(torch.sigmoid(answers[2]).reshape(count, 2, -1), kernel)
                (reading, changing), (read_rows, changed_rows) = (part.unbind(-2) for part in near)
                read = (product(reading, weights) * read_rows).sum(-1, keepdim=True)
                if self.modifies:
                    added = scale * torch.tanh(change) * changed_rows
                    weights = weights + changing.unsqueeze(-1) * added.unsqueeze(-2)
            target = targets[:, place : place + 1]
            margin = target * output
            loss = softplus(-margin)
            evaluation = torch.cat([loss, target * torch.sigmoid(-margin)], -1)
            losses.append(loss)
            margins.append(margin)
        return Course(torch.cat(losses, -1), torch.cat(margins, -1), weights)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Parameters (P,): normal with variance 1 / columns."""
        return torch.randn(self.layout.size, generator=generator) / math.sqrt(self.columns)


def product(vectors: Tensor, weights: Tensor) -> Tensor:
    """Wᵀ v for each of vectors (B, columns): (B, rows); weights (columns, rows), or (B, columns, rows)."""
    if weights.dim() == 2:
        return vectors @ weights
    return (vectors.unsqueeze(-2) @ weights).squeeze(-2)


def digits(count: int, bits: int) -> Tensor:
    """The numbers 0, …, count − 1 in binary, (count, bits), the highest digit first."""
    places = torch.arange(bits - 1, -1, -1)
    return ((torch.arange(count).unsqueeze(-1) >> places) & 1).to(torch.float32)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """A larger matrix with these two along its diagonal, zeros elsewhere."""
    return torch.cat([pad(first, (0, second.shape[1])), pad(second, (first.shape[1], 0))])
