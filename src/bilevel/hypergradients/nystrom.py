"""Implicit differentiation with a low-rank approximation of the inner Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import one_hot

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.base import STRICT, Estimate, Hypergradient, advance
from bilevel.optimizers import Optimizer
from bilevel.problem import Batch
from bilevel.settings import Count, Positive


@dataclass(frozen=True, config=STRICT)
class Nystrom(Hypergradient):
    """∂L₂/∂λ − M (H_k + δ I)⁻¹ ∂L₂/∂w,  H_k = C W⁺ Cᵀ, at w_T on the last batch.

    C (P, k) are k columns of H = ∂²L₁/∂w∂w drawn without replacement, W (k, k) their rows of the same numbers;
    M = ∂²L₁/∂λ∂w. By Woodbury's identity (H_k + δ I)⁻¹ = (I − C (δ W + CᵀC)⁻¹ Cᵀ) / δ, the inverse of the small matrix
    being a pseudoinverse, since columns may depend on each other. With k = P it is the implicit function theorem with
    damping δ; right at a stationary point w_T of L₁ on that batch only, and meant for a positive semidefinite H.

    rank: k. damping: δ. seed: of the generator that draws the columns, the same for every seed of the run.

    Cost: k products with H, in batches, and one mixed product.

    Memory: k vectors as large as the parameters; no stored state.

    Raises ValueError where there are fewer parameters than `rank`.

    Source: Hataya and Yamada 2023.
    """

    rank: Count
    damping: Positive
    seed: Annotated[int, Field(ge=0)] = 0

    def _estimate(
        self,
        derivatives: Derivatives,
        optimizer: Optimizer,
        state: Tensor,
        batches: Sequence[Batch],
        outer_batch: Batch,
    ) -> Estimate:
        state = advance(derivatives, optimizer, state, batches, len(batches))
        params, batch = optimizer.params(state), batches[len(batches) - 1]
        chosen = columns(params.shape[-1], self.rank, self.seed).to(params.device)
        outer = derivatives.outer_gradient(params, outer_batch)

        units = one_hot(chosen, params.shape[-1]).to(params.dtype)[:, None].expand(self.rank, *params.shape)
        block = derivatives.push_forward(params, batch).along(units).permute(1, 2, 0)  # C, (S, P, k)
        small = self.damping * block[:, chosen] + block.mT @ block
        # a seed that is not finite must not keep the others from theirs; its own result is NaN in any case
        finite = torch.isfinite(small).flatten(1).all(1)[:, None, None]
        through = torch.linalg.pinv(torch.where(finite, small, 0.0), hermitian=True) @ (
            block.mT @ outer.params[..., None]
        )
        solution = (outer.params - (block @ through).squeeze(-1)) / self.damping

        hypergradient = outer.hyper.clone()
        derivatives.cost.hold(self.rank)
        derivatives.linearize(params, batch).add_products(-solution, None, hypergradient)
        return Estimate(state, hypergradient, outer.loss, derivatives.cost)


def columns(size: int, rank: int, seed: int) -> Tensor:
    """`rank` different indices below `size`."""
    if rank > size:
        raise ValueError(f"nystrom: rank {rank} is more than the {size} parameters; set a rank of at most {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:rank]


METHOD = Nystrom
