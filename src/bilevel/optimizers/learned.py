"""Settings of an inner optimizer: numbers, by a schedule, or read from the hyperparameters, one or one a step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Learned:
    """A setting θ_t read from the hyperparameters: θ_t = f(λ[start + min(t, steps − 1)]), t = 0, 1, … since `init`.

    start: index of the first entry. steps: how many steps have an entry of their own; later ones share the last.
    scale: f, the exponential (`log`), the logistic function (`logit`, for numbers in (0, 1)) or the
        identity (`linear`).

    Source: Maclaurin et al. 2015 (schedules of learning rates and momenta, by reversible learning; RMAD in deck 002).
    """

    start: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)] = 1
    scale: Literal["log", "logit", "linear"] = "log"

    def value(self, hyper: Tensor, count: Tensor | None) -> Tensor:
        """θ_t (..., 1) from hyperparameters (..., H); `count` (..., 1) is t, needed where `steps` is not 1."""
        entry = self._entry(hyper, count)
        if self.scale == "log":
            return entry.exp()
        return entry.sigmoid() if self.scale == "logit" else entry

    def pull_back(self, cotangent: Tensor, hyper: Tensor, count: Tensor | None, to_hyper: Tensor) -> None:
        """to_hyper (..., H) += (∂θ_t/∂λ)ᵀ cotangent, for a cotangent (..., 1)."""
        value = self.value(hyper, count)
        slope = {"log": value, "logit": value * (1 - value), "linear": torch.ones_like(value)}[self.scale]
        if self.steps == 1:
            to_hyper.narrow(-1, self.start, 1).add_(cotangent * slope)
        else:
            to_hyper.scatter_add_(-1, self._index(count), cotangent * slope)

    def _entry(self, hyper: Tensor, count: Tensor | None) -> Tensor:
        if self.start + self.steps > hyper.shape[-1]:
            raise ValueError(
                f"Learned: entries {self.start} to {self.start + self.steps - 1} were asked for, "
                f"but there are {hyper.shape[-1]} hyperparameters"
            )
        if self.steps == 1:
            return hyper.narrow(-1, self.start, 1)
        return hyper.gather(-1, self._index(count))

    def _index(self, count: Tensor | None) -> Tensor:
        if count is None:
            raise ValueError("Learned: a schedule needs the number of steps done")
        real = count.real if count.is_complex() else count
        return self.start + real.long().clamp(max=self.steps - 1)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Cosine:
    """A learning rate η_t = η_e + (η_0 − η_e) (1 + cos(π ⌊t/k⌋ k / T)) / 2, for t < T, and η_e from then on.

    first: η_0. last: η_e. steps: T. every: k, the number of steps that share a rate, such as those of an epoch.

    Source: Loshchilov and Hutter 2017, without restarts.
    """

    first: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    last: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1)]
    every: Annotated[int, Field(ge=1)] = 1

    def value(self, count: Tensor | None) -> Tensor:
        """η_t (..., 1); `count` (..., 1) is t."""
        if count is None:
            raise ValueError("Cosine: a schedule needs the number of steps done")
        done = (count.real.div(self.every, rounding_mode="floor") * self.every).clamp(max=self.steps)
        return self.last + (self.first - self.last) * (1 + (done * (math.pi / self.steps)).cos()) / 2


LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Learned | Cosine
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Learned
MomentumFactor = Annotated[float, Field(ge=0, lt=1)] | Learned
Setting = float | Learned | Cosine


def value_of(setting: Setting, hyper: Tensor, count: Tensor | None) -> float | Tensor:
    """A number as it is; a setting that is scheduled or learned as (..., 1)."""
    if isinstance(setting, Cosine):
        return setting.value(count)
    return setting.value(hyper, count) if isinstance(setting, Learned) else setting


def pull_back(setting: Setting, by_entry: Tensor, hyper: Tensor, count: Tensor | None, to_hyper: Tensor | None) -> None:
    """Add to `to_hyper` the derivative of a learned setting, given dL/dθ as a sum over the entries of (..., P)."""
    if isinstance(setting, Learned) and to_hyper is not None:
        setting.pull_back(by_entry.sum(-1, keepdim=True), hyper, count, to_hyper)


def counts(*settings: Setting) -> bool:
    """Whether any of these needs the number of steps done."""
    return any(isinstance(s, Cosine) or (isinstance(s, Learned) and s.steps > 1) for s in settings)


def learned(*settings: Setting) -> bool:
    """Whether any of these is learned."""
    return any(isinstance(setting, Learned) for setting in settings)


def add_scaled_(to: Tensor, tensor: Tensor, factor: float | Tensor) -> None:
    """to += factor · tensor."""
    if isinstance(factor, Tensor):
        to.addcmul_(tensor, factor)
    else:
        to.add_(tensor, alpha=factor)
