"""Terms of the inner loss whose derivatives are known in closed form, so that no graph is built for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Penalty(ABC):
    """A function R(w, λ) of parameters and hyperparameters, given by its derivatives."""

    @abstractmethod
    def at(self, hyper: Tensor) -> FixedPenalty:
        """The penalty at fixed hyperparameters (S, H): whatever depends on them alone is computed once, here."""


class FixedPenalty(ABC):
    """R(·, λ) at fixed λ. All shapes carry the seed axis: params and vectors (S, P).

    What is multiplied by ∂²R/∂w∂w or, forwards, by ∂²R/∂w∂λ may be a stack of directions with further leading axes.
    """

    @abstractmethod
    def value(self, params: Tensor) -> Tensor:
        """R(w, λ), (S,)."""

    @abstractmethod
    def plus_gradient(self, gradient: Tensor, params: Tensor) -> Tensor:
        """gradient + ∂R/∂w, a new tensor (S, P)."""

    def add_gradient(self, params: Tensor, to: Tensor) -> None:
        """to += ∂R/∂w, (S, P)."""
        to.copy_(self.plus_gradient(to, params))

    @abstractmethod
    def add_hessian_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to += ∂²R/∂w∂w · v, (S, P)."""

    @abstractmethod
    def add_mixed_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to += ∂²R/∂λ∂w · v, (S, H)."""

    @abstractmethod
    def add_mixed_tangent(self, params: Tensor, direction: Tensor, to: Tensor) -> None:
        """to += ∂²R/∂w∂λ · λ̇, (..., S, P), for directions λ̇ (..., S, H)."""


class L2(Penalty):
    """R(w, λ) = ½ Σᵢ exp(λ_k(i)) wᵢ²: squared weights, each group with a logarithmic coefficient of its own.

    sizes: lengths of consecutive groups of weights; None gives every weight a coefficient, `[P]` one to all.
    start: index in the hyperparameter vector of the first coefficient.

    Raises ValueError at use where the hyperparameters or parameters do not fit the groups.
    """

    def __init__(self, sizes: Sequence[int] | None = None, start: int = 0) -> None:
        self.sizes = None if sizes is None else list(sizes)
        self.start = start

    def at(self, hyper: Tensor) -> FixedL2:
        """Coefficients exp(λ), spread over the weights."""
        count = hyper.shape[-1] - self.start if self.sizes is None else len(self.sizes)
        if self.start + count > hyper.shape[-1]:
            raise ValueError(
                f"L2: {count} coefficients from index {self.start} do not fit {hyper.shape[-1]} hyperparameters"
            )
        coefficients = hyper.narrow(-1, self.start, count).exp()
        if self.sizes is not None:
            sizes = torch.tensor(self.sizes, device=hyper.device)
            coefficients = coefficients.repeat_interleave(sizes, dim=-1)
        return FixedL2(coefficients, self.sizes, self.start)


class FixedL2(FixedPenalty):
    """`L2` at fixed coefficients (S, P)."""

    def __init__(self, coefficients: Tensor, sizes: list[int] | None, start: int) -> None:
        self.coefficients = coefficients
        self._scratch = torch.empty_like(coefficients)  # a fresh tensor a product costs more than the product
        self._sizes = sizes
        self._start = start

    def value(self, params: Tensor) -> Tensor:
        """½ Σᵢ exp(λ_k(i)) wᵢ²."""
        return 0.5 * (self._fitting(params) * params * params).sum(-1)

    def plus_gradient(self, gradient: Tensor, params: Tensor) -> Tensor:
        """gradient + exp(λ_k(i)) wᵢ."""
        return torch.addcmul(gradient, self._fitting(params), params)

    def add_gradient(self, params: Tensor, to: Tensor) -> None:
        """to += exp(λ_k(i)) wᵢ."""
        to.addcmul_(self._fitting(params), params)

    def add_hessian_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to += exp(λ_k(i)) vᵢ."""
        to.addcmul_(self._fitting(params), vector)

    def add_mixed_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to_k += exp(λ_k) Σ_{i in group k} wᵢ vᵢ."""
        penalized = torch.mul(self._fitting(params), params, out=self._scratch)
        if self._sizes is None:
            to.narrow(-1, self._start, params.shape[-1]).addcmul_(penalized, vector)
            return
        parts = torch.split(penalized * vector, self._sizes, dim=-1)
        to.narrow(-1, self._start, len(parts)).add_(torch.stack([part.sum(-1) for part in parts], dim=-1))

    def add_mixed_tangent(self, params: Tensor, direction: Tensor, to: Tensor) -> None:
        """to_i += exp(λ_k(i)) wᵢ λ̇_k(i)."""
        count = params.shape[-1] if self._sizes is None else len(self._sizes)
        spread = direction.narrow(-1, self._start, count)
        if self._sizes is not None:
            spread = spread.repeat_interleave(torch.tensor(self._sizes, device=spread.device), dim=-1)
        to.addcmul_(self._fitting(params) * params, spread)

    def _fitting(self, params: Tensor) -> Tensor:
        if self.coefficients.shape[-1] != params.shape[-1]:
            raise ValueError(
                f"L2: coefficients for {self.coefficients.shape[-1]} weights, but {params.shape[-1]} parameters"
            )
        return self.coefficients
