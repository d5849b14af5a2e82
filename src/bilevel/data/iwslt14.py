"""English and German lines of TED talks: IWSLT 2014, prepared as by fairseq's `prepare-iwslt14.sh`.

Cettolo et al., Report on the 11th IWSLT Evaluation Campaign, 2014. The text is under CC BY-NC-ND: it is read where it
lies and is no part of this library.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bilevel.data.readers import lines_of, read_lines, read_members
from bilevel.data.spec import LANGUAGES, Decoded, decoded_text
from bilevel.errors import DataError
from bilevel.progress import say

Pairs = list[tuple[str, str]]  # (English, German)

ARCHIVE = "de-en.tgz"
TRAIN_FILES = {language: f"train.tags.de-en.{language}" for language in LANGUAGES}
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
TEST_FILES = {language: tuple(f"IWSLT14.{name}.de-en.{language}.xml" for name in TEST_SETS) for language in LANGUAGES}
FILES = tuple(file for language in LANGUAGES for file in (TRAIN_FILES[language], *TEST_FILES[language]))

PARTS_20K = ("valid.fairseq", "valid.mixer", "test")
FILES_20K = tuple(f"{part}.{language}" for part in PARTS_20K for language in LANGUAGES)

_ABOUT_TALKS = ("<url>", "<talkid>", "<keywords>")
_TAGS = re.compile("</?(?:title|description)>")
_SEGMENT_BEGIN = re.compile(r'<seg id="[0-9]*">\s*')
_SEGMENT_END = re.compile(r"\s*</seg>\s*")
_MOST_TOKENS, _MOST_RATIO = 175, 1.5
_MOST_CHARACTERS = 1000  # in one token: a limit that the Moses script has by itself
_EVERY = 23


def read_iwslt14(paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read train, validation and test from the official archive, or from `FILES`, in `paths` (file name -> path).

    Lines are tokenized and in lower case, see `prepared`. Of the training files, the pairs that `is_clean` accepts are
    kept; every 23rd of them is for validation. Test is the five sets of `TEST_SETS`, in this order.

    Raises:
        DataError: a file is malformed, incomplete or cannot be read, or the languages differ in their number of lines.
    """
    raw = _raw_lines(paths)
    training, test = {}, {}
    for language in LANGUAGES:
        training[language] = prepared(talk_lines(raw[TRAIN_FILES[language]]), language)
        test[language] = prepared(segments(line for file in TEST_FILES[language] for line in raw[file]), language)
    files = {language: _path(paths, TRAIN_FILES[language]) for language in LANGUAGES}
    kept = [pair for pair in _paired(training, files) if is_clean(*pair)]
    train = [pair for number, pair in enumerate(kept, start=1) if number % _EVERY]
    test_files = {language: _path(paths, TEST_FILES[language][0]) for language in LANGUAGES}
    return {
        "train": _decoded(train, files),
        "validation": _decoded(kept[_EVERY - 1 :: _EVERY], files),
        "test": _decoded(_paired(test, test_files), test_files),
    }


def read_iwslt14_20k(paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read train and test from the prepared files `FILES_20K` in `paths`, file name -> path.

    Train is what two preparations of IWSLT14 set aside for validation (fairseq's of 2018, then that of Ranzato et al.,
    Sequence Level Training with Recurrent Neural Networks, 2016), in this order, without repetitions of a pair and
    without pairs of which either line is in test. Test is that of `read_iwslt14`.

    Raises:
        DataError: a file is malformed or cannot be read, or the languages differ in their number of lines.
    """
    parts = {}
    for part in PARTS_20K:
        files = {language: paths[f"{part}.{language}"] for language in LANGUAGES}
        parts[part] = _paired({language: read_lines(files[language]) for language in LANGUAGES}, files)
    test = parts["test"]
    test_en, test_de = {en for en, _ in test}, {de for _, de in test}
    distinct = dict.fromkeys(parts["valid.fairseq"] + parts["valid.mixer"])
    train = [(en, de) for en, de in distinct if en not in test_en and de not in test_de]
    return {
        "train": _decoded(train, {language: paths[f"valid.fairseq.{language}"] for language in LANGUAGES}),
        "test": _decoded(test, {language: paths[f"test.{language}"] for language in LANGUAGES}),
    }


def talk_lines(lines: Iterable[str]) -> list[str]:
    """Return the lines of a training file that are text: what is said, and titles and descriptions of talks."""
    return [_TAGS.sub("", line) for line in lines if not any(tag in line for tag in _ABOUT_TALKS)]


def segments(lines: Iterable[str]) -> list[str]:
    """Return the text of the segments in the XML of a dev or test set, with plain apostrophes."""
    found = (_SEGMENT_BEGIN.sub("", line) for line in lines if "<seg id" in line)
    return [_SEGMENT_END.sub("", line).replace("’", "'") for line in found]


def prepared(lines: Sequence[str], language: str) -> list[str]:
    """Return lines tokenized as by Moses in 2018 (special characters escaped, as `&apos;`) and in lower case."""
    from sacremoses import MosesTokenizer  # only this preparation needs it

    say(f"tokenizing {len(lines)} lines ({language})")
    tokenize = MosesTokenizer(lang=language).tokenize
    # Moses maps each letter by itself, Python a sigma by its place in the word
    return [tokenize(line, return_str=True).replace("Σ", "σ").lower() for line in lines]


def is_clean(en: str, de: str) -> bool:
    """Tell whether a pair is kept for training: 1 to 175 tokens each, and a ratio of at most 1.5 either way."""
    if not en or not de:
        return False
    tokens = en.split(" "), de.split(" ")
    fewest, most = sorted(len(line) for line in tokens)
    longest = max(len(token) for line in tokens for token in line)
    return most <= _MOST_TOKENS and most / fewest <= _MOST_RATIO and longest <= _MOST_CHARACTERS


def _raw_lines(paths: Mapping[str, Path]) -> dict[str, list[str]]:
    if ARCHIVE not in paths:
        return {name: read_lines(paths[name]) for name in FILES}
    path = paths[ARCHIVE]
    return {name: lines_of(content, f"{path}: {name}") for name, content in read_members(path, FILES).items()}


def _path(paths: Mapping[str, Path], name: str) -> Path:
    return paths[ARCHIVE] if ARCHIVE in paths else paths[name]


def _paired(lines: Mapping[str, Sequence[str]], files: Mapping[str, Path]) -> Pairs:
    en, de = lines["en"], lines["de"]
    if len(en) != len(de):
        raise DataError(f"{files['de']}: expected {len(en)} lines of text, as in English, found {len(de)}")
    return list(zip(en, de, strict=True))


def _decoded(pairs: Pairs, files: Mapping[str, Path]) -> Decoded:
    return decoded_text([en for en, _ in pairs], [de for _, de in pairs], files["en"], files["de"])
