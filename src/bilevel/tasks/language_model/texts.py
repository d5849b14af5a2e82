"""What one seed reads: the division of the pairs, their vocabulary, and their lines as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from bilevel.data import Corpus
from bilevel.models.recurrent_cell import Lines
from bilevel.randomness import generator
from bilevel.settings import SettingsError
from bilevel.tasks.language_model.lines import Encoded, Stream, batches, whole
from bilevel.tasks.language_model.settings import ARMS, LanguageModelSettings, Phase
from bilevel.tasks.language_model.vocabulary import Vocabulary

ROWS = 128  # lines that are read at once where nothing is differentiated
LANGUAGES = ("en", "de")
Pairs = Sequence[tuple[str, str]]
"""English and German lines."""


class Share(NamedTuple):
    """One seed's pairs; `train` is all of `search`, what weights see in the search, and what is held out of it.

    outer: what the structure is fitted to.
    """

    search: Pairs
    outer: Pairs
    train: Pairs
    validation: Pairs
    test: Pairs


class Tested(NamedTuple):
    """Lines of one language in a set, whole: blocks of them, their tokens without prefix, and numbers of both kinds.

    The end of a line is a token and a word.
    """

    blocks: list[Lines]
    encoded: Encoded
    tokens: int
    words: int


class Texts:
    """One seed's lines in the languages of an arm.

    tested: by split, of each language. unigram: of each language, the negative logarithms of the frequencies of tokens
    in its training lines, one added to each count.
    """

    def __init__(self, study: str, settings: LanguageModelSettings, corpus: Corpus, seed: int) -> None:
        self.languages = ARMS[settings.arm]
        self._study, self._seed = study, seed
        self.share = divided(corpus, settings, study, seed)
        lines = [line for pair in self.share.train for line in pair]
        self.vocabulary = Vocabulary(lines, settings.vocabulary, LANGUAGES)
        self.tested = {
            name: [self._tested(pairs, language) for language in self.languages]
            for name, pairs in (("validation", self.share.validation), ("test", self.share.test))
        }
        train = self.encoded(self.share.train)
        self.unigram = [self._unigram(encoded) for encoded in train]
        search = self.encoded(self.share.search)
        self._references = dict[tuple[int, tuple[int, ...]], Lines]()
        self._searched, self._rows = search, settings.search.rows
        self.search = self._stream("search", search, settings.search, normalized=True)
        self.outer = self._stream("outer", self.encoded(self.share.outer), settings.search, normalized=True)
        self.retraining = self._stream("retraining", train, settings.retraining, normalized=False)

    def encoded(self, pairs: Pairs) -> list[Encoded]:
        """Tokens of the lines of each language of the arm."""
        return [
            self.vocabulary.encode([pair[LANGUAGES.index(language)] for pair in pairs], language)
            for language in self.languages
        ]

    def reference(self, length: int, languages: Sequence[int]) -> Lines:
        """Rows of this length without padding, of training lines of each of these languages in turn, (L, 1, rows).

        Of each language as many rows as a batch has.
        """
        key = length, tuple(languages)
        if key not in self._references:
            # the first half of rows that no further line fits into
            rows = [
                next(batches([self._searched[index]], self._rows, 2 * length, self._orders("reference"), True))
                for index in languages
            ]
            self._references[key] = Lines(*(torch.cat(parts, dim=2)[:length] for parts in zip(*rows, strict=True)))
        return self._references[key]

    def _orders(self, purpose: str) -> Callable[[int], torch.Generator]:
        return lambda number: generator(self._study, purpose, self._seed, number)

    def _stream(self, purpose: str, pairs: Sequence[Encoded], phase: Phase, normalized: bool) -> Stream:
        orders = self._orders(f"{purpose}_batches")
        return Stream(lambda: batches(pairs, phase.rows, phase.length, orders, normalized))

    def _tested(self, pairs: Pairs, language: str) -> Tested:
        lines = [pair[LANGUAGES.index(language)] for pair in pairs]
        encoded = self.vocabulary.encode(lines, language)
        words = sum(len(line.split()) + 1 for line in lines)
        return Tested(whole(encoded, ROWS), encoded, sum(len(line) - 1 for line in encoded), words)

    def _unigram(self, encoded: Encoded) -> torch.Tensor:
        tokens = torch.tensor([token for line in encoded for token in line[1:]])
        counts = torch.bincount(tokens, minlength=self.vocabulary.size).double() + 1
        return -(counts / counts.sum()).log()

    def unigram_perplexity(self, split: str, index: int) -> float:
        """Of the tokens of a split in the language of this index, foretold by their frequency alone."""
        tested = self.tested[split][index]
        tokens = torch.tensor([token for line in tested.encoded for token in line[1:]])
        return math.exp(float(self.unigram[index][tokens].mean()))


def divided(corpus: Corpus, settings: LanguageModelSettings, study: str, seed: int) -> Share:
    """The pairs of one seed, in an order of its own; sets that the data does not have are taken out of the training."""
    splits = {name: list(zip(split.en, split.de, strict=True)) for name, split in corpus.splits.items()}
    rest = _shuffled(splits["train" if "train" in splits else "all"], generator(study, "split", seed))
    taken = dict[str, Pairs]()
    for name, size in (("test", settings.test_size), ("validation", settings.validation_size)):
        if name in splits:
            taken[name] = splits[name][:size]
        else:
            taken[name], rest = rest[:size], rest[size:]
    train = rest[: settings.train_size]
    if settings.outer_set == "validation":
        return Share(train, taken["validation"], train, taken["validation"], taken["test"])
    held_out, search = train[: settings.outer_size], train[settings.outer_size :]
    return Share(search, held_out, train, taken["validation"], taken["test"])


def check_sizes(settings: LanguageModelSettings, counts: Mapping[str, int]) -> None:
    """SettingsError where the numbers of pairs of a data set's splits do not do for what is asked for."""
    left = counts["train" if "train" in counts else "all"]
    for name, size in (("test", settings.test_size), ("validation", settings.validation_size)):
        if name in counts:
            if size is not None and size > counts[name]:
                raise SettingsError(f"{name}_size: {size} pairs are asked for, the data has {counts[name]}")
            continue
        if size is None:
            raise SettingsError(f"{name}_size: the data has no split of that name; say how many pairs to take")
        left -= size
    if settings.train_size is not None and settings.train_size > left:
        raise SettingsError(f"train_size: {settings.train_size} pairs are asked for, {max(left, 0)} are left")
    train = left if settings.train_size is None else settings.train_size
    held_out = settings.outer_size if settings.outer_set == "held_out" else 0
    if train - held_out < 1:
        raise SettingsError(
            f"outer_size: {held_out} pairs are to be held out of {max(train, 0)} for training; one at least must be "
            "left"
        )


def _shuffled(pairs: Pairs, draws: torch.Generator) -> Pairs:
    return [pairs[index] for index in torch.randperm(len(pairs), generator=draws).tolist()]
