"""A hypernetwork that is trained on a fixed set of λ."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.randomness import generator
from bilevel.settings import STRICT
from bilevel.tasks.hypernetwork_scatter import HypernetworkScatter, Surrogate


@dataclass(frozen=True, config=STRICT)
class Fixed(Surrogate):
    """Validation losses of w_φ(λ), where φ lowers the mean training loss of the λ that the Gaussian process knows.

    A step takes all of them, or `most_samples` drawn from them. No settings.

    Source: Lorraine and Duvenaud 2018, section 4.3, "hyper-training fixed".
    """

    def predict(self, task: HypernetworkScatter, count: int, checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """See `Surrogate`."""
        known, taken = task.known[:, :count], min(count, task.settings.most_samples)

        def levels(step: int) -> Tensor:
            if taken == count:
                return known
            draws = [generator(task.study, "chosen", seed, step) for seed in task.seeds]
            chosen = [torch.randperm(count, generator=draw)[:taken] for draw in draws]
            return torch.stack([row[ids] for row, ids in zip(known, chosen, strict=True)])

        return task.predicted(task.train(levels, checkpoint))


METHOD = Fixed
