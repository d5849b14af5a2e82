"""Hyper-cleaning as deck 000 states it: exact derivatives, and a test set that nothing is tuned on.

Training, validation and test images are disjoint and drawn anew for every seed, as are label noise, first parameters
and batches; methods share all of them. Outer batches come from the validation set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bilevel.problem import Problem
from bilevel.results import Metrics
from bilevel.tasks.cleaning import Cleaning, plain_loss, weighted_loss


class CleaningCorrected(Cleaning):
    """See the module."""

    problem = Problem(weighted_loss, plain_loss)

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """The shared metrics and `validation_accuracy_final`."""
        validation = self._accuracies(self.optimizer.params(state), [share.validation for share in self.shares])
        return {**super().summarize(state, hyper, trace), "validation_accuracy_final": validation}


TASK = CleaningCorrected
