"""Control of complexity by λ as it was run for the published tables.

What differs from `complexity_control`, each piece in one place:

1. Images are not shuffled: every pass of every seed has the same batches, the last of them smaller (`epoch`).
2. One weight more of each layer is pruned than the share says; at "0 %" the least relevant one is zero
   (`prunes_one_more`).
3. Linear hypernetworks of `base` and `rep` see λ from 10⁻² to 10² only, and are looked at from 10⁻³ on
   (`drawn_range`).
4. First biases are standard normal; at the first knot of a linear hypernetwork they are one, and the weights of a
   piecewise one without a distribution are uniform within 1/√fan_out (`initial`).
5. Gradients are cut to ±1, entry by entry (`optimizer`).

Besides: the images are the same for every seed, the first ones of the official order, all for tests; separate networks
were trained for 25 epochs, hypernetworks for 50, where the text says 50 for all. Two things are left out or otherwise:
10⁻⁵ was added to deviations, which begin at e⁻³; and separate networks of one seed share batches and draws here.

Source: notebooks and modules of the author's repository VarHyperNet, directory code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel.data import Dataset
from bilevel.images import splits_of
from bilevel.models import complexity
from bilevel.randomness import generator
from bilevel.settings import Settings
from bilevel.tasks.complexity_control import ComplexityControl
from bilevel.tasks.complexity_control.clamped import ClampedAdam

LARGEST = 1.0
"""Entry of a gradient."""


class ComplexityControlPublished(ComplexityControl):
    """See the module."""

    prunes_one_more = True

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """As without quirks, but for the optimizer, quirk 5."""
        super().__init__(study, settings, dataset, seeds, device)
        self.optimizer = ClampedAdam(learning_rate=self.settings.learning_rate, bound=LARGEST)

    def epoch(self, number: int, seed: int) -> list[Tensor]:
        """Quirk 1: always the same batches."""
        return list(torch.split(torch.arange(self.settings.train_size), self.settings.batch_size))

    def drawn_range(self) -> tuple[float, float]:
        """Quirk 3."""
        low, high = super().drawn_range()
        narrow = self.settings.hypernetwork == "linear" and self.settings.family != "var"
        return (min(low + 1, high), high) if narrow else (low, high)

    def initial(self, draws: torch.Generator) -> Tensor:
        """Quirk 4."""
        s = self.settings
        knots = super().initial(draws).view(s.knots, -1)
        for number, row in enumerate(knots):
            parts = complexity.LAYOUT.split(complexity.means_of(row))
            for name, part in parts.items():
                if name.endswith("bias"):
                    first = s.hypernetwork == "linear" and number == 0
                    part.fill_(1.0) if first else part.normal_(generator=draws)
                elif s.hypernetwork == "piecewise" and s.family == "base":
                    bound = part.shape[0] ** -0.5
                    part.uniform_(-bound, bound, generator=draws)
        return knots.flatten()

    def divide(self, dataset: Dataset, seed: int) -> dict[str, Tensor]:
        """The same images for every seed: in the official order, or, without one, shuffled once."""
        splits, size = splits_of(dataset), self.settings.train_size
        count = len(splits["train"].labels)
        if splits["test"] is not splits["train"]:
            test = torch.arange(len(splits["test"].labels))
            return {"train": torch.arange(size), "test": test[: self.settings.test_size]}
        order = torch.randperm(count, generator=generator(self.study, "split", 0))
        return {"train": order[:size], "test": order[size:][: self.settings.test_size]}


TASK = ComplexityControlPublished
