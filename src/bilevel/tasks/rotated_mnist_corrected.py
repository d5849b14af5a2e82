"""Cells for rotated MNIST as deck 003 describes their search.

An outer step is one step of the weights for each domain and then one of the structural parameters, on the mean over all
domains of the validation losses: p_d is equal. The structural regularizer is the slide's, by pairs. The contrastive one
compares a training batch with one of a domain drawn anew, any of them, which is what the slide's expectation says; in
the outer loss it is the mean over all pairs of the validation batches. All images are drawn anew for each seed, no two
of the same original; nothing is tuned on test images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.architecture import pairwise_divergence
from bilevel.problem import Loss
from bilevel.randomness import generator
from bilevel.tasks.rotated_mnist import RotatedMnist
from bilevel.tasks.rotated_mnist.images import Batch
from bilevel.tasks.rotated_mnist.losses import Losses


class RotatedMnistCorrected(RotatedMnist):
    """See the module."""

    methods = ("none", "first_order", "darts", "truncated", "unrolled", "aggregated")

    @property
    def group(self) -> int:
        """A step for each domain; as many in the union."""
        return self.settings.domains

    def outer_loss(self, losses: Losses) -> Loss:
        """Of all domains together."""
        return losses.joint_outer

    def divergence(self, structures: Tensor) -> Tensor:
        """By pairs."""
        return pairwise_divergence(self.space, structures)

    def outer_batch(self, step: int) -> Batch:
        """A validation batch of each domain; as many in the union."""
        numbers = range(step * self.group, (step + 1) * self.group)
        return self.stacked(self.validation, numbers, with_other=False)

    def subsets(self, count: int, seed: int) -> tuple[list[Tensor], Tensor]:
        """Disjoint ones."""
        s = self.settings
        order = torch.randperm(count, generator=generator(self.study, "split", seed))
        *subsets, others = order.tensor_split([s.domain_size * (domain + 1) for domain in range(s.domains)])
        return subsets, others


TASK = RotatedMnistCorrected
