"""Data sets of images or parallel text, known by the checksums of their decoded content, never by where they came from.

`prepare` finds a data set, checks it and writes it as one safetensors file with a digest beside it; `load`
opens that file and checks it again. Importing this package does not import torch.
"""

from bilevel.data.catalog import SPECS
from bilevel.data.spec import Digest, ImageDigest, Kind, SplitDigest, TextDigest
from bilevel.data.store import Corpus, Dataset, Parallel, Split, load, prepare
from bilevel.errors import DataError

__all__ = [
    "Corpus",
    "DataError",
    "Dataset",
    "Digest",
    "ImageDigest",
    "Kind",
    "Parallel",
    "Split",
    "SplitDigest",
    "TextDigest",
    "counts",
    "kind",
    "load",
    "names",
    "prepare",
]


def counts(name: str) -> dict[str, int]:
    """Return the number of images, or of pairs of lines, in each split of a data set."""
    return {split: digest.count for split, digest in SPECS[name].digest.splits.items()}


def kind(name: str) -> Kind:
    """Return what a data set is made of: `"images"`, which load as a `Dataset`, or `"text"`, as a `Corpus`."""
    return SPECS[name].kind


def names() -> tuple[str, ...]:
    """Return the names of the data sets that `prepare` knows."""
    return tuple(SPECS)
