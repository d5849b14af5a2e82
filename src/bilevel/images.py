"""Labelled images, as tasks and teachers take them from a data set: divided, standardized, gathered into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from bilevel.data import Dataset, Split
from bilevel.problem import Batch
from bilevel.randomness import generator
from bilevel.settings import SettingsError

SETS = ("train", "validation", "test")
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
"""Of the pixels of MNIST's training set, black 0 and white 1."""


class Sizes(Protocol):
    """Settings that say how many images the sets have; without test_size, all of an official test split, or all that is
    left."""

    @property
    def train_size(self) -> int:
        """Number of training images."""

    @property
    def validation_size(self) -> int:
        """Number of validation images."""

    @property
    def test_size(self) -> int | None:
        """Number of test images."""


class Images(NamedTuple):
    """Images (N, ...), in the form that a network takes, and labels (N,)."""

    images: Tensor
    labels: Tensor


class Share(NamedTuple):
    """One seed's data, disjoint."""

    train: Images
    validation: Images
    test: Images


class Batches(Sequence[Batch]):
    """Inner batches (images, labels), gathered when asked for from ids (T, S, B)."""

    def __init__(self, sources: Sequence[Images], ids: Tensor) -> None:
        self._sources, self._ids = sources, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # slices are not needed
        return gather(self._sources, self._ids[index])


def check_sizes(sizes: Sizes, name: str | None, counts: Mapping[str, int]) -> int:
    """The number of test images, given those of each split; SettingsError without data, or where sets do not fit."""
    if name is None:
        raise SettingsError("data: a data set is needed")
    divided = counts["train" if "train" in counts else "all"]
    wanted = sizes.train_size + sizes.validation_size
    test = counts.get("test", divided - wanted)
    if wanted > divided or test < 1 or (sizes.test_size or 0) > test:
        raise SettingsError(
            f"train_size {sizes.train_size}, validation_size {sizes.validation_size} and test_size {sizes.test_size} "
            f"do not fit {name} with {dict(counts)}"
        )
    return sizes.test_size or test


def counts_of(dataset: Dataset) -> dict[str, int]:
    """Numbers of images in each split."""
    return {name: len(split.labels) for name, split in dataset.splits.items()}


def splits_of(dataset: Dataset) -> dict[str, Split]:
    """The split that the images of each of `SETS` are taken from: one for all, but for an official test split."""
    divided = dataset.splits["train" if "train" in dataset.splits else "all"]
    return {"train": divided, "validation": divided, "test": dataset.splits.get("test", divided)}


def divide(dataset: Dataset, sizes: Sizes, study: str, seed: int) -> dict[str, Tensor]:
    """Places of the images of each of `SETS` in its split, disjoint, drawn anew for every study and seed."""
    splits = splits_of(dataset)
    order = torch.randperm(len(splits["train"].labels), generator=generator(study, "split", seed))
    train, validation, test = order.tensor_split([sizes.train_size, sizes.train_size + sizes.validation_size])
    if splits["test"] is not splits["train"]:
        test = torch.randperm(len(splits["test"].labels), generator=generator(study, "test", seed))
    return {"train": train.clone(), "validation": validation.clone(), "test": test[: sizes.test_size].clone()}


def standardized(images: Tensor, mean: float, deviation: float) -> Tensor:
    """Bytes as numbers, black 0 and white 1, less their mean, by their deviation."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(deviation)


def pooled(images: Tensor, size: int) -> Tensor:
    """Means over squares of size × size pixels: (N, C, H, W) -> (N, C, H/size, W/size); a rest at the edges is left
    out."""
    return avg_pool2d(images, size)


def flat_share(
    dataset: Dataset,
    sizes: Sizes,
    study: str,
    seed: int,
    device: torch.device,
    *,
    pool: int,
    mean: float = 0.0,
    deviation: float = 1.0,
) -> Share:
    """One seed's data as vectors (N, pixels): divided, standardized, averaged over squares of pool × pool pixels."""
    ids, splits = divide(dataset, sizes, study, seed), splits_of(dataset)
    parts = []
    for name in SETS:
        split, chosen = splits[name], ids[name]
        images = pooled(standardized(split.images[chosen].to(device), mean, deviation), pool)
        parts.append(Images(images.flatten(1), split.labels[chosen].to(device)))
    return Share(*parts)


def stacked(images: Sequence[Images]) -> Images:
    """Sets of one size, of all seeds: (S, N, ...) and (S, N)."""
    return Images(torch.stack([part.images for part in images]), torch.stack([part.labels for part in images]))


def gather(sources: Sequence[Images], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Images (S, B, ...) and labels (S, B) of ids (S, B), seed by seed."""
    images = [source.images[chosen] for source, chosen in zip(sources, ids, strict=True)]
    labels = [source.labels[chosen] for source, chosen in zip(sources, ids, strict=True)]
    if len(sources) == 1:  # a view instead of one more copy
        return images[0].unsqueeze(0), labels[0].unsqueeze(0)
    return torch.stack(images), torch.stack(labels)
