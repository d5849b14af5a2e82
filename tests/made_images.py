"""Made-up images for tests."""

from __future__ import annotations

import torch

from bilevel.data import Split


def blobs(count: int, seed: int = 0, *, noise: int = 80, bar: int = 150, random_labels: bool = False) -> Split:
    """Noisy images, no two the same, with a bright bar whose place tells the label.

    noise: number of its gray levels. bar: how much brighter. random_labels: otherwise they take turns.
    """
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draws) if random_labels else torch.arange(count) % 10
    images = torch.randint(noise, (count, 1, 28, 28), generator=draws)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 2 * label + 3 : 2 * label + 6, 4:24] += bar
    return Split(images.to(torch.uint8), labels)
