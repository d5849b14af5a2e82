"""Distillation on synthetic data as deck 004 states it: samples that metaparameters are tuned on, and others for tests.

The loss is the slide's, with KL(teacher ‖ student); metaparameters are tuned on validation points of their own; every
arm has the same student. With a teacher whose data are drawn anew, each seed has its own samples; methods share them.
The two facts on which the deck's conclusion depends are settings, so that the published choices can be put in one at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from bilevel.data import Dataset
from bilevel.settings import Settings
from bilevel.tasks.distillation import Distillation, DistillationSettings, Divergence


class CorrectedSettings(DistillationSettings):
    """Settings shared with the published run, and:

    tuned_on: the samples whose loss metaparameters lower.
    divergence: `teacher_student`, KL(teacher ‖ student) as on the slide, or `student_teacher`, as it was run.
    """

    tuned_on: Literal["validation", "test"] = "validation"
    divergence: Divergence = "teacher_student"


class DistillationSyntheticCorrected(Distillation):
    """See the module."""

    settings_class = CorrectedSettings

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        assert isinstance(settings, CorrectedSettings)
        self.tuned_on, self.divergence = settings.tuned_on, settings.divergence
        super().__init__(study, settings, dataset, seeds, device)


TASK = DistillationSyntheticCorrected
