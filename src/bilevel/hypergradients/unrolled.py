"""Exact reverse mode through the inner optimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient
from bilevel.hypergradients.reverse import Trajectory, estimate_back, taped_part, train, train_on
from bilevel.hypergradients.tape import DiskTape
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch


@dataclass(frozen=True, config=STRICT)
class Unrolled(Hypergradient):
    """dL₂/dλ = ∂L₂/∂λ + Σ_t B_t A_{t+1} … A_T ∂L₂/∂w_T,  A_t = ∂s_t/∂s_{t−1},  B_t = ∂s_t/∂λ  (deck 000).

    Exact: the optimizer's part of A_t and B_t is applied in closed form, the loss's part by one Hessian-vector and one
    mixed product a step.

    store: where the states are kept: in `memory`, or on `disk`, in a temporary file that is gone at the end; the
        numbers are the same to the bit.
    folder: where that file lies; None for the system's temporary folder, which may itself be in memory.

    Cost: 2T − 1 products: T mixed ones and T − 1 with the Hessian.

    Memory: of T states what the adjoints need, with momentum the parameters alone, and the graph of one step; on disk,
    of one state at a time. A traced problem keeps the activations of all steps instead, if they are smaller.

    Raises FileError at use where the folder cannot be written or the disk is full.

    Source: Maclaurin et al. 2015; Franceschi et al. 2017 (reverse hypergradient).
    """

    store: Literal["memory", "disk"] = "memory"
    folder: str | None = None

    @field_validator("folder")
    @classmethod
    def _only_for_disk(cls, folder: str | None, info: ValidationInfo) -> str | None:
        if folder is not None and info.data.get("store") == "memory":
            raise PydanticCustomError("unused", "there is no file to put there unless store is disk")
        return folder

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        if self.store == "memory":
            state, trajectory = train(derivatives, optimizer, state, batches)
            return estimate_back(derivatives, optimizer, state, trajectory, batches, outer_batch)
        derivatives.cost.hold(1)
        with DiskTape(len(batches), taped_part(optimizer, state), self.folder) as disk:
            state = train_on(disk, derivatives, optimizer, state, batches)
            return estimate_back(derivatives, optimizer, state, Trajectory(disk), batches, outer_batch)


METHOD = Unrolled
