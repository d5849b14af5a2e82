"""Data sets known by the checksums of their decoded content, never by where they came from.

`prepare` finds a data set, checks it and writes it as one safetensors file with a digest beside it; `load`
opens that file and checks it again. Importing this package does not import torch.
"""

from bilevel.data.catalog import SPECS
from bilevel.data.errors import DataError
from bilevel.data.spec import Digest, SplitDigest
from bilevel.data.store import Dataset, Split, load, prepare

__all__ = ["DataError", "Dataset", "Digest", "Split", "SplitDigest", "counts", "load", "names", "prepare"]


def counts(name: str) -> dict[str, int]:
    """Return the number of images in each split of a data set."""
    return {split: digest.count for split, digest in SPECS[name].digest.splits.items()}


def names() -> tuple[str, ...]:
    """Return the names of the data sets that `prepare` knows."""
    return tuple(SPECS)
