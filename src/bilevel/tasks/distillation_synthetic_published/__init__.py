"""Distillation on synthetic data as it was run for deck 004, in April 2021.

What differs from the deck's text, each piece in one place:

1. Metaparameters are tuned on the test points, on which accuracy is reported (here); the 15 validation points are used
   for nothing.
2. The divergence is KL(student ‖ teacher), the other way round than on the slide (here).
3. The hypergradient is a finite difference that is multiplied by its half-width instead of divided by it, at weights
   one virtual step of Adam ahead (`darts.py`). The order of the two updates is discussed there.
4. Where gradients are predicted, the temperature follows the line of the labels' weight (`slip.py`): in the sweep over
   n, and, as the slow fall of the temperature in its log tells, in the run with e = 10 and n = 2.
5. The student has x₁ x₂, a coordinate that the slide does not list and that decides the label up to noise; the teacher
   has not (`student_features`).

Besides: samples and teacher are the same for every seed, which changes the first weights and metaparameters only; the
weight that the code calls β₁ belongs to the distillation term, where the slide has β₂. Numbers are in double precision,
the run's were in single. Source: notebook simple_exp_splines of the author's repository with its logs exp2, April 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bilevel.outer import Adam
from bilevel.results import Metrics
from bilevel.settings import Settings, SettingsError
from bilevel.tasks.distillation import Distillation, DistillationSettings
from bilevel.tasks.distillation_synthetic_published.slip import SlippedAdam
from bilevel.teachers.logistic import PUBLISHED_SIZES, SETS, LogisticSettings, published_samples

LOGGED = (9_000, 19_000)
"""Iterations after which accuracies are also set beside those of the run's logs, which have one every 1000."""

_OTHER_SAMPLES = (
    "teacher: the published run is repeated, whose samples are needed; name a teacher with the setting draws: "
    "published and without sizes of its own"
)


class PublishedSettings(DistillationSettings):
    """Settings shared with the corrected run, and:

    temperature_line: the line that a predicted gradient of r₃ is on: its `own`, or, as published, that of the weight β
        of the labels, `beta_student`.
    """

    temperature_line: Literal["own", "beta_student"] = "own"

    @model_validator(mode="after")
    def _has_a_line(self) -> Self:
        if self.temperature_line != "own" and (self.prediction is None or self.prediction.of != "gradients"):
            raise ValueError("temperature_line: there is no line without a prediction of gradients; leave it out")
        return self


class DistillationSyntheticPublished(Distillation):
    """See the module.

    Summary, besides: `test_accuracy_9000` and `test_accuracy_19000`, where the trace has rows of these iterations.
    """

    settings_class = PublishedSettings
    tuned_on: Literal["validation", "test"] = "test"
    divergence = "student_teacher"

    @classmethod
    def check_teacher(cls, settings: Settings, teacher: Settings) -> None:
        """SettingsError for a teacher with other samples than the published ones."""
        assert isinstance(teacher, LogisticSettings)
        if teacher.draws != "published" or tuple(teacher.sizes) != PUBLISHED_SIZES:
            raise SettingsError(_OTHER_SAMPLES)

    def use_teachers(self, teachers: Sequence[Mapping[str, Tensor]]) -> None:
        """As for all students; SettingsError as `check_teacher`."""
        super().use_teachers(teachers)
        wanted = [torch.split(part, list(PUBLISHED_SIZES)) for part in published_samples(sum(PUBLISHED_SIZES))]
        for tensors in teachers:
            for name, points, labels in zip(SETS, *wanted, strict=True):
                same = torch.equal(tensors[f"{name}_points"].cpu(), points)
                if not same or not torch.equal(tensors[f"{name}_labels"].cpu(), labels):
                    raise SettingsError(_OTHER_SAMPLES)

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        every = self.evaluate_every
        reached = [
            step for step in LOGGED if step % every == 0 and step <= min(self.outer_steps, every * (len(trace) - 1))
        ]
        logged = {f"test_accuracy_{step}": trace[step // every]["test_accuracy"] for step in reached}
        return {**super().summarize(state, hyper, trace), **logged}

    def outer_optimizer(self) -> Adam:
        """The shared one, or one that makes the published slip."""
        adam, prediction = super().outer_optimizer(), self.prediction
        assert isinstance(self.settings, PublishedSettings)
        if self.settings.temperature_line == "own" or prediction is None:
            return adam
        return SlippedAdam(adam, prediction)


TASK = DistillationSyntheticPublished
