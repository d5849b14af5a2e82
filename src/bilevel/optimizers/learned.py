"""Settings of an inner optimizer: numbers, by a schedule, or read from the hyperparameters, one or one a step, for all
parameters or for each group of them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.settings import STRICT, Count, NotNegative, Positive


@dataclass(frozen=True, config=STRICT)
class Learned:
    """A setting θ_t read from the hyperparameters: θ_t = f(λ[start + min(t, steps − 1)]), t = 0, 1, … since `init`.

    With groups, such as layers, parameter i of group k(i) has θ_t,i = f(λ[start + G min(t, steps − 1) + k(i)]): the G
    entries of a step stand together.

    start: index of the first entry. steps: how many steps have entries of their own; later ones share the last.
    scale: f, the exponential (`log`), the logistic function (`logit`, for numbers in (0, 1)) or the
        identity (`linear`).
    sizes: numbers of parameters of consecutive groups, which add up to P; None: one group of all.

    Raises ValueError at use where there are too few hyperparameters.

    Source: Maclaurin et al. 2015 (schedules of learning rates and momenta, by reversible learning; RMAD in deck 002).
    """

    start: Annotated[int, Field(ge=0)]
    steps: Count = 1
    scale: Literal["log", "logit", "linear"] = "log"
    sizes: tuple[Count, ...] | None = None

    @property
    def groups(self) -> int:
        """G, 1 without groups."""
        return 1 if self.sizes is None else len(self.sizes)

    def value(self, hyper: Tensor, count: Tensor | None) -> Tensor:
        """θ_t (..., 1), with groups (..., P), from hyperparameters (..., H).

        count: t, (..., 1); needed where `steps` is not 1.
        """
        values = self._values(hyper, count)
        if self.sizes is None:
            return values
        parts = zip(torch.split(values, 1, -1), self.sizes, strict=True)
        return torch.cat([part.expand(*part.shape[:-1], size) for part, size in parts], -1)

    def pull_back(self, by_entry: Tensor, hyper: Tensor, count: Tensor | None, to_hyper: Tensor) -> None:
        """to_hyper (..., H) += (∂θ_t/∂λ)ᵀ dL/dθ_t, of which `by_entry` (..., P) has every parameter's part."""
        parts = [by_entry] if self.sizes is None else torch.split(by_entry, list(self.sizes), -1)
        cotangent = torch.cat([part.sum(-1, keepdim=True) for part in parts], -1)
        value = self._values(hyper, count)
        slope = {"log": value, "logit": value * (1 - value), "linear": torch.ones_like(value)}[self.scale]
        if self.steps == 1:
            to_hyper.narrow(-1, self.start, self.groups).add_(cotangent * slope)
        else:
            to_hyper.scatter_add_(-1, self._index(count), cotangent * slope)

    def _values(self, hyper: Tensor, count: Tensor | None) -> Tensor:
        """θ_t of every group, (..., G)."""
        entries = self._entries(hyper, count)
        if self.scale == "log":
            return entries.exp()
        return entries.sigmoid() if self.scale == "logit" else entries

    def _entries(self, hyper: Tensor, count: Tensor | None) -> Tensor:
        last = self.start + self.steps * self.groups - 1
        if last >= hyper.shape[-1]:
            raise ValueError(
                f"Learned: entries {self.start} to {last} were asked for, "
                f"but there are {hyper.shape[-1]} hyperparameters"
            )
        if self.steps == 1:
            return hyper.narrow(-1, self.start, self.groups)
        return hyper.gather(-1, self._index(count))

    def _index(self, count: Tensor | None) -> Tensor:
        """Places of the entries of step t, (..., G)."""
        if count is None:
            raise ValueError("Learned: a schedule needs the number of steps done")
        real = count.real if count.is_complex() else count
        first = self.start + self.groups * real.long().clamp(max=self.steps - 1)
        return first + torch.arange(self.groups, device=first.device)


@dataclass(frozen=True, config=STRICT)
class Cosine:
    """A learning rate η_t = η_e + (η_0 − η_e) (1 + cos(π ⌊t/k⌋ k / T)) / 2, for t < T, and η_e from then on.

    first: η_0. last: η_e. steps: T. every: k, the number of steps that share a rate, such as those of an epoch.

    Source: Loshchilov and Hutter 2017, without restarts.
    """

    first: Positive
    last: NotNegative
    steps: Count
    every: Count = 1

    def value(self, count: Tensor | None) -> Tensor:
        """η_t (..., 1); `count` (..., 1) is t."""
        if count is None:
            raise ValueError("Cosine: a schedule needs the number of steps done")
        done = (count.real.div(self.every, rounding_mode="floor") * self.every).clamp(max=self.steps)
        return self.last + (self.first - self.last) * (1 + (done * (math.pi / self.steps)).cos()) / 2


LearningRate = Positive | Learned | Cosine
Decay = NotNegative | Learned
MomentumFactor = Annotated[float, Field(ge=0, lt=1)] | Learned
Setting = float | Learned | Cosine


def value_of(setting: Setting, hyper: Tensor, count: Tensor | None) -> float | Tensor:
    """A number as it is; a setting that is scheduled or learned as (..., 1), one that is learned by group (..., P)."""
    if isinstance(setting, Cosine):
        return setting.value(count)
    return setting.value(hyper, count) if isinstance(setting, Learned) else setting


def pull_back(setting: Setting, by_entry: Tensor, hyper: Tensor, count: Tensor | None, to_hyper: Tensor | None) -> None:
    """Add to `to_hyper` the derivative of a learned setting, given dL/dθ as a sum over the entries of (..., P)."""
    if isinstance(setting, Learned) and to_hyper is not None:
        setting.pull_back(by_entry, hyper, count, to_hyper)


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
