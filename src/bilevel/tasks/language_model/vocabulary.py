"""Byte-pair encoding of two languages, learned from training lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<eos>"
SMALLEST = 256 + 3
"""Of a vocabulary: all bytes, two prefixes and the end of a line."""


class Vocabulary:
    """Tokens of at most `size` kinds, made of bytes, so that there is no unknown character.

    A line is encoded as [prefix of the language, tokens …, end]. Capital letters become small ones and white space
    becomes single spaces before anything else, as in `normalized`. The same lines give the same vocabulary.

    Source: Sennrich, Haddow and Birch 2016; over bytes, Radford et al. 2019.
    """

    def __init__(self, lines: Iterable[str], size: int, languages: Sequence[str]) -> None:
        self.size = size
        prefixes = [prefix(language) for language in languages]
        self._tokenizer = Tokenizer(models.BPE())
        # a space before the first word, so that it is the same token as elsewhere
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*prefixes, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(map(normalized, lines), trainer)
        self._tokenizer.encode_special_tokens = True  # "<eos>" in a line is text
        self._prefixes = {language: self._id(prefix(language)) for language in languages}
        self._end = self._id(END)

    def encode(self, lines: Sequence[str], language: str) -> list[list[int]]:
        """Tokens of each line, with prefix and end."""
        found = self._tokenizer.encode_batch([normalized(line) for line in lines])
        return [[self._prefixes[language], *encoding.ids, self._end] for encoding in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """The normalized line of what `encode` gives."""
        line: str = self._tokenizer.decode(list(tokens[1:-1]))
        return line.removeprefix(" ")

    def _id(self, token: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        assert number is not None
        return number


def normalized(line: str) -> str:
    """Small letters, words apart by one space."""
    return " ".join(line.lower().split())


def prefix(language: str) -> str:
    """The token that a line of a language begins with."""
    return f"[{language}]"
