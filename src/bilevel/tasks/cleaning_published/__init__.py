"""Hyper-cleaning as it was run for the table of deck 000.

What differs from the deck's text, each piece in one place:

1. DrMAD's contributions are credited to the samples of the mirrored step (`drmad.py`).
2. IFT's contributions, all of the last batch's samples, are credited to the samples of all steps (`neumann.py`).
3. Jacobian products are central differences of half-width 1e-7 in single precision, at the Jacobians of plain gradient
   descent, although the inner optimizer has momentum and weight decay (`products.py`).
4. Where a batch holds a sample twice, its later contribution replaces the earlier one (`products.py`).
5. Outer batches come from the test set, on which accuracy is reported (here).

Besides: the split, the noisy labels and the first parameters are the same for every seed, which changes batches only;
the outer loss is the inner loss at λ = 0, that is half the mean cross-entropy; the row "truncated backpropagation" was
run as the aggregate with γ = 0.01. Source: notebook HyperCleanStoch of the author's repository, September 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.images import Images
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.tasks.cleaning import Cleaning, Share, plain_loss, weighted_loss


def halved_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """The weighted loss at λ = 0."""
    return 0.5 * plain_loss(params, hyper, batch)


class CleaningPublished(Cleaning):
    """See the module."""

    problem = Problem(weighted_loss, halved_loss)
    methods = ("aggregated", "drmad", "neumann")
    outer_set = "test_size"

    def data_seed(self, seed: int) -> int:
        """The same data for every seed."""
        return 0

    def initial_seed(self, seed: int) -> int:
        """The same first parameters for every seed."""
        return 0

    def outer_source(self, share: Share) -> Images:
        """Quirk 5: the test set."""
        return share.test

    def order(self, count: int, official: bool, seed: int) -> Tensor:
        """The first images in the official order; a set that is sorted by class is shuffled once."""
        if official:
            return torch.arange(count)
        return torch.randperm(count, generator=generator(self.study, "split", 0))


TASK = CleaningPublished
