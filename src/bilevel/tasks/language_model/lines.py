"""Lines of text as tensors: rows of a batch, endless batches of pairs, all lines of a set, masks of dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.models.recurrent_cell import Lines, Masks
from bilevel.tasks.language_model.settings import Dropout

Encoded = Sequence[Sequence[int]]
"""Tokens of each line, prefix and end included."""


class Batch(NamedTuple):
    """What a loss reads."""

    lines: Lines
    masks: Masks


class Sheet:
    """B rows of L steps of one language, to be filled with lines."""

    def __init__(self, rows: int, length: int) -> None:
        self._length = length
        self._free = [length] * rows
        self._lines = [list[tuple[int, Sequence[int]]]() for _ in range(rows)]

    def row_for(self, line: Sequence[int]) -> int | None:
        """The first row that has room for a line, cut to the length of a row; None where there is none."""
        needed = min(len(line) - 1, self._length)
        return next((row for row, free in enumerate(self._free) if free >= needed), None)

    def put(self, row: int, line: Sequence[int], place: int, skipped: float = 0.0) -> None:
        """Write a line of the pair with this place; of a row's first line this share is skipped at its beginning."""
        first = 0 if self._lines[row] else int(skipped * (len(line) - 1))
        cut = line[first : first + self._length + 1]
        self._free[row] -= len(cut) - 1
        self._lines[row].append((place, cut))

    def tensors(self) -> Lines:
        """As `Lines` of one language, (L, 1, B)."""
        columns = zip(*map(self._row, self._lines), strict=True)
        tokens, targets, goes_on, pairs = (torch.tensor(rows).t().unsqueeze(1) for rows in columns)
        return Lines(tokens, targets, pairs >= 0, goes_on == 1, pairs)

    def _row(self, lines: list[tuple[int, Sequence[int]]]) -> tuple[list[int], ...]:
        tokens, targets, goes_on, pairs = list[int](), list[int](), list[int](), list[int]()
        for place, line in lines:
            tokens += line[:-1]
            targets += line[1:]
            goes_on += [0] + [1] * (len(line) - 2)
            pairs += [place] * (len(line) - 1)
        padding = self._length - len(tokens)
        zeros = [0] * padding
        return tokens + zeros, targets + zeros, goes_on + zeros, pairs + [-1] * padding


def batches(
    pairs: Sequence[Encoded], rows: int, length: int, orders: Callable[[int], torch.Generator], cut_first: bool
) -> Iterator[Lines]:
    """Endless batches of B rows of L steps for each language, all of whose lines are translations of each other.

    Pass after pass over all pairs in an order of its own; a pair goes into the first row of each language that has
    room, and begins the next batch where one language has none. Lines longer than a row are cut.

    pairs: the lines of each language, as many of each. orders: the generator of a pass, by its number.
    cut_first: whether the first line of a row begins anywhere in it. Where all rows began with the prefix, their first
        states would be the same, with no variance to normalize by.
    """
    sheets, place, number = [Sheet(rows, length) for _ in pairs], 0, 0
    while True:
        draws = orders(number)
        order, skips = torch.randperm(len(pairs[0]), generator=draws), torch.rand(len(pairs[0]), generator=draws)
        for pair, skipped in zip(order.tolist(), (skips * cut_first).tolist(), strict=True):
            lines = [language[pair] for language in pairs]
            found = [sheet.row_for(line) for sheet, line in zip(sheets, lines, strict=True)]
            if None in found:
                yield beside([sheet.tensors() for sheet in sheets])
                sheets, place = [Sheet(rows, length) for _ in pairs], 0
                found = [0] * len(pairs)
            for sheet, row, line in zip(sheets, found, lines, strict=True):
                assert row is not None
                sheet.put(row, line, place, skipped)
            place += 1
        number += 1


class Stream:
    """Items of an iterator by their number; going back begins anew."""

    def __init__(self, begin: Callable[[], Iterator[Lines]]) -> None:
        self._begin = begin
        self._items, self._next = begin(), 0
        self._last: Lines | None = None

    def __getitem__(self, step: int) -> Lines:
        if step < self._next - 1:
            self._items, self._next = self._begin(), 0
        while self._next <= step:
            self._last = next(self._items)
            self._next += 1
        assert self._last is not None
        return self._last


def whole(lines: Encoded, rows: int) -> list[Lines]:
    """All lines of one language, none cut, one a row, in blocks of up to `rows` lines of much the same length.

    The longest of a block is at most twice as long as the shortest, prefix and end included.
    """
    blocks = list[list[Sequence[int]]]()
    for line in sorted(lines, key=len):
        if not blocks or len(blocks[-1]) == rows or len(line) > 2 * len(blocks[-1][0]):
            blocks.append([])
        blocks[-1].append(line)
    return [_one_a_row(block) for block in blocks]


def _one_a_row(lines: Encoded) -> Lines:
    sheet = Sheet(len(lines), max(map(len, lines)) - 1)
    for row, line in enumerate(lines):
        sheet.put(row, line, row)
    return sheet.tensors()


def beside(languages: Sequence[Lines]) -> Lines:
    """Lines of one language each, (L, 1, B), as those of all, (L, D, B)."""
    return Lines(*(torch.cat(parts, dim=1) for parts in zip(*languages, strict=True)))


def stacked(seeds: Sequence[Batch]) -> Batch:
    """Batches of all seeds, with a leading axis."""
    lines = Lines(*(torch.stack(parts) for parts in zip(*(batch.lines for batch in seeds), strict=True)))
    masks = [
        None if parts[0] is None else torch.stack(parts)
        for parts in zip(*(batch.masks for batch in seeds), strict=True)
    ]
    return Batch(lines, Masks(*masks))


def locked_masks(dropout: Dropout, vocabulary: int, shape: tuple[int, int, int], draws: torch.Generator) -> Masks:
    """Masks of a batch for states (D, B, n)."""
    embedding = _mask(dropout.embedding, (vocabulary, 1), draws)
    inputs, cell_inputs = _mask(dropout.inputs, shape, draws), _mask(dropout.cell_inputs, shape, draws)
    if inputs is not None and cell_inputs is not None:
        inputs = inputs * cell_inputs
    hidden, outputs = _mask(dropout.hidden, shape, draws), _mask(dropout.outputs, shape, draws)
    return Masks(embedding, cell_inputs if inputs is None else inputs, hidden, outputs)


def _mask(probability: float, shape: tuple[int, ...], draws: torch.Generator) -> Tensor | None:
    """0 with this probability, else what makes the mean 1; None where nothing is left out."""
    if probability == 0:
        return None
    return (torch.rand(shape, generator=draws) >= probability) / (1 - probability)
