"""Domains of rotated images, and the batches that are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from bilevel.data import Dataset, Split
from bilevel.images import MNIST_DEVIATION, MNIST_MEAN, Images, splits_of, standardized
from bilevel.randomness import generator

ANGLES = (0, 180, 90, 270)
"""Degrees, counterclockwise, of the first domain, the second, …"""


class Domains(NamedTuple):
    """Images of D domains, (D, n, 1, h, w), and labels (D, n)."""

    images: Tensor
    labels: Tensor

    @property
    def joined(self) -> Domains:
        """All as a single domain."""
        return Domains(self.images.flatten(0, 1).unsqueeze(0), self.labels.flatten(0, 1).unsqueeze(0))


class Share(NamedTuple):
    """One seed's data.

    train, validation: rotated images, no two in both. test: images (N, 1, h, w) that are in neither, not rotated; each
        is tested in every rotation.
    """

    train: Domains
    validation: Domains
    test: Images

    @property
    def known(self) -> Domains:
        """Training and validation images."""
        return Domains(*(torch.cat(parts, 1) for parts in zip(self.train, self.validation, strict=True)))


class Batch(NamedTuple):
    """What a loss takes, with a leading axis of seeds: K batches of one domain each.

    images (S, K, B, 1, h, w), labels (S, K, B), domains (S, K): numbers of the domains' structures.
    """

    images: Tensor
    labels: Tensor
    domains: Tensor


def rotated(images: Tensor, domain: int) -> Tensor:
    """Images (…, h, w) turned by the domain's angle."""
    return torch.rot90(images, ANGLES[domain] // 90, (-2, -1))


def share(dataset: Dataset, subsets: Sequence[Tensor], test: Tensor, size: int, device: torch.device) -> Share:
    """The data of a seed, its images averaged over 2×2 pixels where `size` is 14.

    subsets: of each domain the places of its images in the split that is divided, one half for training and one for
        validation. test: places of the test images in their split.
    """
    splits = splits_of(dataset)
    parts = [_images(splits["train"], ids, size, device) for ids in subsets]
    whole = Domains(
        torch.stack([rotated(part.images, domain) for domain, part in enumerate(parts)]),
        torch.stack([part.labels for part in parts]),
    )
    half = whole.labels.shape[1] // 2
    first, second = (
        Domains(whole.images[:, index], whole.labels[:, index]) for index in (slice(half), slice(half, None))
    )
    return Share(first, second, _images(splits["test"], test, size, device))


def _images(split: Split, ids: Tensor, size: int, device: torch.device) -> Images:
    pixels = standardized(split.images[ids].to(device), MNIST_MEAN, MNIST_DEVIATION)
    return Images(avg_pool2d(pixels, pixels.shape[-1] // size), split.labels[ids].to(device))


class Stream:
    """Batches of one seed's domains without end, epoch by epoch.

    An epoch is a random order of each domain's images, cut into batches; batches of all domains take turns. What is
    left of an order at its end is not used.
    """

    def __init__(self, source: Domains, size: int, study: str, purpose: str, seed: int) -> None:
        self._source, self._size = source, size
        self._study, self._purpose, self._seed = study, purpose, seed
        self.domains, count = source.labels.shape
        self.per_epoch = self.domains * (count // size)
        self._epoch: tuple[int, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where its batches are."""
        return self._source.labels.device

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Images (B, 1, h, w), labels (B,) and domain of batch `number`, which does not depend on those before."""
        epoch, place = divmod(number, self.per_epoch)
        turn, domain = divmod(place, self.domains)
        ids = self._orders(epoch)[domain, turn * self._size : (turn + 1) * self._size]
        return self._source.images[domain, ids], self._source.labels[domain, ids], domain

    def elsewhere(self, number: int) -> tuple[Tensor, Tensor, int]:
        """A random batch to go with batch `number`, of any of the domains, all equally likely."""
        draws = generator(self._study, f"{self._purpose} elsewhere", self._seed, number)
        domain = int(torch.randint(self.domains, (), generator=draws))
        ids = torch.randperm(self._source.labels.shape[1], generator=draws)[: self._size]
        ids = ids.to(self.device)
        return self._source.images[domain, ids], self._source.labels[domain, ids], domain

    def _orders(self, epoch: int) -> Tensor:
        """(D, n)."""
        if self._epoch is None or self._epoch[0] != epoch:
            draws = generator(self._study, self._purpose, self._seed, epoch)
            count = self._source.labels.shape[1]
            orders = [torch.randperm(count, generator=draws) for _ in range(self.domains)]
            self._epoch = epoch, torch.stack(orders).to(self.device)
        return self._epoch[1]
