"""A hypernetwork that is trained on new λ in every step."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.checkpoint import NOWHERE, Checkpoint
from bilevel.settings import STRICT
from bilevel.tasks.hypernetwork_scatter import HypernetworkScatter, Surrogate


@dataclass(frozen=True, config=STRICT)
class Stochastic(Surrogate):
    """Validation losses of w_φ(λ), where φ lowers the expected training loss of uniform λ.

    A step takes as many new λ as there are evaluations, `most_samples` at most; it needs no solved problem at all. No
    settings.

    Source: Lorraine and Duvenaud 2018, section 4.3, "hyper-training".
    """

    def seen(self, task: HypernetworkScatter, count: int) -> int:
        """As many as a step takes."""
        return min(count, task.settings.most_samples)

    def predict(self, task: HypernetworkScatter, count: int, checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """See `Surrogate`."""
        taken = self.seen(task, count)
        return task.predicted(task.train(lambda step: task.uniform("levels", taken, step), checkpoint))


METHOD = Stochastic
