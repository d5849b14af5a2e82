"""First and second derivatives of a bilevel problem at fixed hyperparameters, counted as they are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.penalties import FixedPenalty
from bilevel.problem import Batch, Loss, Problem, lift


class OuterGradient(NamedTuple):
    """L₂ and its partial derivatives: loss (S,), params ∂L₂/∂w (S, P), hyper ∂L₂/∂λ (S, H)."""

    loss: Tensor
    params: Tensor
    hyper: Tensor


class Derivatives:
    """Derivatives of `problem` at fixed `hyper` (S, H); `cost` counts them, once for all seeds."""

    def __init__(self, problem: Problem, hyper: Tensor) -> None:
        self.hyper = hyper.detach()
        self.cost = Cost()
        self.penalty = None if problem.inner_penalty is None else problem.inner_penalty.at(self.hyper)
        self._inner_loss = lift(problem.inner_loss, hyper.shape[0])
        self._outer_loss = lift(problem.outer_loss, hyper.shape[0])

    def inner_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """∂L₁/∂w, (S, P)."""
        leaf = _leaf(params)
        (gradient,) = _gradients(self._inner_loss(leaf, _constant(self.hyper), batch), [leaf])
        self.cost.gradients += 1
        return _with_penalty(self.penalty, gradient.view_as(params), params)

    def outer_gradient(self, params: Tensor, batch: Batch) -> OuterGradient:
        """L₂ with its partial derivatives with respect to parameters and hyperparameters."""
        leaves = [_leaf(params), _leaf(self.hyper)]
        loss = self._outer_loss(leaves[0], leaves[1], batch)
        by_params, by_hyper = _gradients(loss, leaves)
        self.cost.gradients += 1
        return OuterGradient(
            loss.detach().view(params.shape[0]), by_params.view_as(params), by_hyper.view_as(self.hyper)
        )

    def linearize(self, params: Tensor, batch: Batch) -> Linearization:
        """The inner gradient at `params` (S, P), ready for products with its Jacobians."""
        self.cost.gradients += 1
        return Linearization(self._inner_loss, self.penalty, self.cost, params, self.hyper, batch)


class Linearization:
    """The inner gradient g(w, λ) = ∂L₁/∂w at one point, with products of vectors with its Jacobians.

    The graph is built once and serves any number of products, which are added to tensors of the caller.
    """

    def __init__(
        self,
        inner_loss: Loss,
        penalty: FixedPenalty | None,
        cost: Cost,
        params: Tensor,
        hyper: Tensor,
        batch: Batch,
    ) -> None:
        self._penalty, self._cost, self._params = penalty, cost, params.detach()
        self._leaves = (_leaf(params), _leaf(hyper))
        loss = inner_loss(*self._leaves, batch)
        (self._gradient,) = _gradients(loss, [self._leaves[0]], create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """g(w, λ), (S, P)."""
        return _with_penalty(self._penalty, self._gradient.detach().view_as(self._params), self._params)

    def add_products(self, vector: Tensor, to_params: Tensor | None, to_hyper: Tensor | None) -> None:
        """to_params (S, P) += ∂²L₁/∂w∂w · v and to_hyper (S, H) += ∂²L₁/∂λ∂w · v, in one sweep; None: not wanted."""
        targets = [(leaf, to) for leaf, to in zip(self._leaves, (to_params, to_hyper), strict=True) if to is not None]
        if targets and self._gradient.requires_grad:  # it does not for a loss that is linear in w and free of λ
            products = torch.autograd.grad(
                self._gradient,
                [leaf for leaf, _ in targets],
                grad_outputs=vector.view_as(self._gradient),
                retain_graph=True,
                allow_unused=True,
            )
            for (_, to), product in zip(targets, products, strict=True):
                if product is not None:
                    to.add_(product.view_as(to))
        if to_params is not None:
            self._cost.hessian_products += 1
            if self._penalty is not None:
                self._penalty.add_hessian_product(self._params, vector, to_params)
        if to_hyper is not None:
            self._cost.mixed_products += 1
            if self._penalty is not None:
                self._penalty.add_mixed_product(self._params, vector, to_hyper)


def _constant(tensor: Tensor) -> Tensor:
    # one seed is handled without its axis, so that no graph is built for putting it on and off
    return tensor.detach().squeeze(0) if tensor.shape[0] == 1 else tensor.detach()


def _leaf(tensor: Tensor) -> Tensor:
    return _constant(tensor).requires_grad_()


def _gradients(loss: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradients of the sum over seeds, zero for what the loss does not depend on."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    total = loss if loss.dim() == 0 else loss.sum()
    return torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _with_penalty(penalty: FixedPenalty | None, gradient: Tensor, params: Tensor) -> Tensor:
    return gradient if penalty is None else penalty.plus_gradient(gradient, params)
