"""Cells for rotated MNIST as their search was run for deck 003.

What differs from the deck's text, each piece in one place:

1. An outer step is one domain's: a step of its weights on its training batch and one of the structural parameters on
   its validation batch; domains take turns (here).
2. The structural regularizer is the mean divergence from the mean of all domains, not that of pairs (here).
3. A domain's images are those that numpy's RandomState(seed + number of the domain) draws. Two domains may have images
   of the same original, and domain d + 1 of a seed is domain d of the next (here).
4. The one-step hypergradient was taken with the weights of before the step (`darts_unmoved.py`).
5. Structural parameters and the architecture of the table were those of the supernet: `search_accuracy` is what the
   table has. The retrained network was not trained for it.

What is as in the corrected task, and not as it was run: weights take their step before the structural parameters take
theirs, where the run did it the other way round; tests normalize by training images, where the run kept moving
averages; the batch that the contrastive regularizer compares with is drawn anew for each step.

Source: code and configuration of the author's repository (Concord-NAS), 25 February 2023.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel.architecture import centroid_divergence
from bilevel.problem import Loss
from bilevel.randomness import generator
from bilevel.tasks.rotated_mnist import RotatedMnist
from bilevel.tasks.rotated_mnist.images import ANGLES, Batch
from bilevel.tasks.rotated_mnist.losses import Losses


class RotatedMnistPublished(RotatedMnist):
    """See the module."""

    methods = ("none", "first_order", "darts", "truncated", "unrolled", "aggregated", "darts_unmoved")

    @property
    def group(self) -> int:
        """Quirk 1: one."""
        return 1

    def outer_loss(self, losses: Losses) -> Loss:
        """Quirk 1: of one domain."""
        return losses.single_outer

    def divergence(self, structures: Tensor) -> Tensor:
        """Quirk 2: from the mean of all domains."""
        return centroid_divergence(self.space, structures)

    def outer_batch(self, step: int) -> Batch:
        """A validation batch of the domain whose turn it is, with one of another domain for the contrastive loss."""
        return self.stacked(self.validation, [step], self.settings.beta_contr > 0)

    def subsets(self, count: int, seed: int) -> tuple[list[Tensor], Tensor]:
        """Quirk 3. Others are those that none of the four domains has, so that tests are the same for any number."""
        size = self.settings.domain_size
        drawn = [
            np.random.RandomState(seed + domain).choice(count, size, replace=False) for domain in range(len(ANGLES))
        ]
        subsets = [torch.from_numpy(ids) for ids in drawn]
        order = torch.randperm(count, generator=generator(self.study, "split", seed))
        return subsets, order[~torch.isin(order, torch.cat(subsets))]


TASK = RotatedMnistPublished
