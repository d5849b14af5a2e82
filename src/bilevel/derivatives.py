"""First and second derivatives of a bilevel problem at fixed hyperparameters, counted as they are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.cost import Cost
from bilevel.penalties import FixedPenalty
from bilevel.problem import Batch, Loss, Problem, gradients, leaves_of, lift, lift_function, map_batch
from bilevel.tracing import LinearRecording, Recording, TracedProblem


class OuterGradient(NamedTuple):
    """L₂ and its partial derivatives: loss (S,), params ∂L₂/∂w (S, P), hyper ∂L₂/∂λ (S, H)."""

    loss: Tensor
    params: Tensor
    hyper: Tensor


class Derivatives:
    """Derivatives of `problem` at fixed `hyper` (S, H); `cost` counts them, once for all seeds."""

    def __init__(self, problem: Problem, hyper: Tensor) -> None:
        self.problem = problem
        self.hyper = hyper.detach()
        self.cost = Cost()
        self._recorder = problem.recorder if isinstance(problem, TracedProblem) else None
        self._prepared: dict[Recording, list[Tensor]] = {}
        self._borrowed: Tensor | None = None
        self.penalty = None if problem.inner_penalty is None else problem.inner_penalty.at(self.hyper)
        self._inner_loss = lift(problem.inner_loss, hyper.shape[0])
        self._outer_loss = lift(problem.outer_loss, hyper.shape[0])

    def inner_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """∂L₁/∂w, (S, P)."""
        gradient = torch.empty_like(params)
        return gradient if self._replayed(params, batch, gradient) else self._computed(params, batch)

    def borrowed_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """`inner_gradient` in a tensor that the next call may overwrite: a fresh one a step costs time."""
        if self._borrowed is None or self._borrowed.shape != params.shape:
            self._borrowed = torch.empty_like(params, memory_format=torch.contiguous_format)
        return self._borrowed if self._replayed(params, batch, self._borrowed) else self._computed(params, batch)

    def precise_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """`inner_gradient` in double precision, (S, P).

        In the precision of `params` where the loss cannot be computed in another, because of a tensor of its own.
        """
        try:
            wide = Derivatives(self.problem, self.hyper.double())
            gradient = wide.inner_gradient(params.double(), map_batch(_widened, batch))
        except RuntimeError:
            return self.inner_gradient(params, batch)
        self.cost.gradients += 1
        return gradient

    def _computed(self, params: Tensor, batch: Batch) -> Tensor:
        leaf = _leaf(params)
        (gradient,) = gradients(self._inner_loss(leaf, _constant(self.hyper), batch), [leaf])
        self.cost.gradients += 1
        return _with_penalty(self.penalty, gradient.view_as(params), params)

    def _replayed(self, params: Tensor, batch: Batch, to: Tensor) -> bool:
        """Whether there is a recording of the gradient; if so, `to` has it."""
        if self._recorder is None:
            return False
        w, h = _constant(params), _constant(self.hyper)
        recording = self._recorder.gradient(self._inner_loss, w, h, batch)
        if recording is None:
            return False
        self.replay(recording, [w, h, *leaves_of(batch)], [to])
        if self.penalty is not None:
            self.penalty.add_gradient(params, to)
        self.cost.gradients += 1
        return True

    def inner_loss(self, params: Tensor, batch: Batch) -> Tensor:
        """L₁, (S,), without derivatives."""
        self.cost.losses += 1
        with torch.no_grad():
            return self._whole(self._inner_loss(_constant(params), _constant(self.hyper), batch), params)

    def inner_loss_and_gradient(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """L₁, (S,), and ∂L₁/∂w, (S, P), for the price of the gradient."""
        leaf = _leaf(params)
        loss = self._inner_loss(leaf, _constant(self.hyper), batch)
        (gradient,) = gradients(loss, [leaf])
        self.cost.gradients += 1
        return self._whole(loss, params), _with_penalty(self.penalty, gradient.view_as(params), params)

    def _whole(self, loss: Tensor, params: Tensor) -> Tensor:
        loss = loss.detach().view(params.shape[0])
        return loss if self.penalty is None else loss + self.penalty.value(params)

    def outer_gradient(self, params: Tensor, batch: Batch) -> OuterGradient:
        """L₂ with its partial derivatives with respect to parameters and hyperparameters."""
        replayed = self._replayed_outer(params, batch)
        if replayed is not None:
            return replayed
        leaves = [_leaf(params), _leaf(self.hyper)]
        loss = self._outer_loss(leaves[0], leaves[1], batch)
        by_params, by_hyper = gradients(loss, leaves)
        self.cost.gradients += 1
        return OuterGradient(
            loss.detach().view(params.shape[0]), by_params.view_as(params), by_hyper.view_as(self.hyper)
        )

    def _replayed_outer(self, params: Tensor, batch: Batch) -> OuterGradient | None:
        if self._recorder is None:
            return None
        w, h = _constant(params), _constant(self.hyper)
        recording = self._recorder.outer_gradient(self._outer_loss, w, h, batch)
        if recording is None:
            return None
        found = OuterGradient(params.new_empty(params.shape[0]), torch.empty_like(params), torch.empty_like(self.hyper))
        self.replay(recording, [w, h, *leaves_of(batch)], list(found))
        self.cost.gradients += 1
        return found

    def outer_loss(self, params: Tensor, batch: Batch) -> Tensor:
        """L₂ alone, (S,); not counted."""
        with torch.no_grad():
            return self._outer_loss(_constant(params), _constant(self.hyper), batch).view(params.shape[0])

    def inner_hyper_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """∂L₁/∂λ without the penalty's part, (S, H); counted as a gradient."""
        self.cost.gradients += 1
        w, h = _constant(params), _constant(self.hyper)
        recording = None if self._recorder is None else self._recorder.hyper_gradient(self._inner_loss, w, h, batch)
        if recording is not None:
            found = torch.empty_like(self.hyper)
            self.replay(recording, [w, h, *leaves_of(batch)], [found])
            return found
        leaf = _leaf(self.hyper)
        (gradient,) = gradients(self._inner_loss(w, leaf, batch), [leaf])
        return gradient.view_as(self.hyper)

    def at(self, hyper: Tensor) -> Derivatives:
        """The same at other hyperparameters (S, H), counted in the same `cost`."""
        other = Derivatives(self.problem, hyper)
        other.cost = self.cost
        return other

    def push_forward(self, params: Tensor, batch: Batch) -> PushForward:
        """The inner gradient at `params` (S, P), ready for its derivatives along directions."""
        self.cost.gradients += 1
        return PushForward(self._inner_loss, self.penalty, self.cost, params, self.hyper, batch)

    def gauss_newton(self, params: Tensor, batch: Batch) -> GaussNewton:
        """The Gauss-Newton matrix at `params` (S, P), ready for products; ValueError without `inner_outputs`."""
        return GaussNewton(self.problem, self.penalty, self.cost, params, self.hyper, batch)

    def linearize(self, params: Tensor, batch: Batch) -> Linearization | Replayed:
        """The inner gradient at `params` (S, P), ready for products with its Jacobians."""
        recording = self._linear_recording(params, batch)
        if recording is not None:
            return Replayed(self, recording, params, batch)
        self.cost.gradients += 1
        return Linearization(self._inner_loss, self.penalty, self.cost, params, self.hyper, batch)

    def repeatable_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """The gradient of `linearize`, (S, P), to the bit, without what products need."""
        recording = self._linear_recording(params, batch)
        if recording is None:
            return self.linearize(params, batch).gradient
        gradient = torch.empty_like(params)
        self.replay(recording.alone, [_constant(params), _constant(self.hyper), *leaves_of(batch)], [gradient])
        if self.penalty is not None:
            self.penalty.add_gradient(params, gradient)
        self.cost.gradients += 1
        return gradient

    def kept_bytes(self, params: Tensor, batch: Batch) -> int | None:
        """What a linearization keeps besides `params` for its products; None for one that keeps a graph."""
        recording = self._linear_recording(params, batch)
        return None if recording is None else recording.kept_bytes

    def _linear_recording(self, params: Tensor, batch: Batch) -> LinearRecording | None:
        if self._recorder is None:
            return None
        return self._recorder.linear(self._inner_loss, _constant(params), _constant(self.hyper), batch)

    def replay(self, recording: Recording, arguments: list[Tensor], to: list[Tensor]) -> list[Tensor]:
        """Run a recording; what it computes from the hyperparameters alone is computed once."""
        if recording not in self._prepared:
            self._prepared[recording] = recording.prepare(_constant(self.hyper))
        return recording(self._prepared[recording], arguments, to)


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
        (self._gradient,) = gradients(loss, [self._leaves[0]], create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """g(w, λ), (S, P)."""
        return _with_penalty(self._penalty, self._gradient.detach().view_as(self._params), self._params)

    def forget_gradient(self) -> None:
        """Nothing to do: the graph holds it."""

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
        _add_penalty_products(self._penalty, self._cost, self._params, vector, to_params, to_hyper)


class Replayed:
    """`Linearization` from recordings. Asking for the gradient keeps what later products have in common with it."""

    def __init__(self, derivatives: Derivatives, recording: LinearRecording, params: Tensor, batch: Batch) -> None:
        self._derivatives, self._recording, self._params = derivatives, recording, params.detach()
        self._arguments = [_constant(params), _constant(derivatives.hyper), *leaves_of(batch)]
        self._gradient: Tensor | None = None
        self._kept: list[Tensor] | None = None

    @property
    def gradient(self) -> Tensor:
        """g(w, λ), (S, P); computed, and counted, when first asked for, and then held until `forget_gradient`."""
        if self._gradient is None:
            derivatives, gradient = self._derivatives, torch.empty_like(self._params)
            self._kept = derivatives.replay(self._recording.forward, self._arguments, [gradient])
            if derivatives.penalty is not None:
                derivatives.penalty.add_gradient(self._params, gradient)
            derivatives.cost.gradients += 1
            self._gradient = gradient
        return self._gradient

    def forget_gradient(self) -> None:
        """Let go of the gradient, but not of what products need."""
        self._gradient = None

    def add_products(self, vector: Tensor, to_params: Tensor | None, to_hyper: Tensor | None) -> None:
        """See `Linearization`."""
        derivatives, wanted = self._derivatives, (to_params is not None, to_hyper is not None)
        targets = [to for to in (to_params, to_hyper) if to is not None]
        arguments = [*self._arguments, _constant(vector)]
        if self._kept is not None and targets:
            derivatives.replay(self._recording.products[wanted], [*arguments, *self._kept], targets)
        elif targets:
            derivatives.replay(self._recording.whole[wanted], arguments, targets)
        _add_penalty_products(derivatives.penalty, derivatives.cost, self._params, vector, to_params, to_hyper)


class PushForward:
    """The inner gradient g(w, λ) at one point, with its derivatives along any number of directions.

    ġ = ∂²L₁/∂w∂w · ẇ + ∂²L₁/∂w∂λ · λ̇ is the gradient over w of ⟨∂L₁/∂w, ẇ⟩ + ⟨∂L₁/∂λ, λ̇⟩, so that a sweep back over
    the graph of both gradients gives it, many directions at once.
    """

    chunk = 32  # directions at once: what one sweep holds is this many times the graph of one product

    def __init__(
        self, inner_loss: Loss, penalty: FixedPenalty | None, cost: Cost, params: Tensor, hyper: Tensor, batch: Batch
    ) -> None:
        self._penalty, self._cost, self._params = penalty, cost, params.detach()
        self._leaves = (_leaf(params), _leaf(hyper))
        self._gradients = gradients(inner_loss(*self._leaves, batch), list(self._leaves), create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """g(w, λ), (S, P)."""
        return _with_penalty(self._penalty, self._gradients[0].detach().view_as(self._params), self._params)

    def along(self, params_directions: Tensor | None = None, hyper_directions: Tensor | None = None) -> Tensor:
        """ġ (D, S, P) along D directions ẇ (D, S, P) and λ̇ (D, S, H); one of the two may be left out if it is zero."""
        given = params_directions if params_directions is not None else hyper_directions
        if given is None:
            raise ValueError("a direction in the parameters, in the hyperparameters, or in both is needed")
        tangents = self._params.new_zeros(given.shape[0], *self._params.shape)
        for first in range(0, given.shape[0], self.chunk):
            part = slice(first, first + self.chunk)
            self._add(
                tangents[part],
                None if params_directions is None else params_directions[part],
                None if hyper_directions is None else hyper_directions[part],
            )
        return tangents

    def _add(self, to: Tensor, params_directions: Tensor | None, hyper_directions: Tensor | None) -> None:
        paired = [
            (gradient, directions.reshape(len(to), *gradient.shape))
            for gradient, directions in zip(self._gradients, (params_directions, hyper_directions), strict=True)
            if directions is not None and gradient.requires_grad
        ]
        if paired:
            (tangents,) = torch.autograd.grad(
                [gradient for gradient, _ in paired],
                [self._leaves[0]],
                grad_outputs=[directions for _, directions in paired],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            if tangents is not None:
                to.add_(tangents.view_as(to))
        if params_directions is not None:
            self._cost.hessian_products += len(to)
            if self._penalty is not None:
                self._penalty.add_hessian_product(self._params, params_directions, to)
        if hyper_directions is not None:
            self._cost.mixed_products += len(to)
            if self._penalty is not None:
                self._penalty.add_mixed_tangent(self._params, hyper_directions, to)


class GaussNewton:
    """The Gauss-Newton matrix Jᵀ C J + ∂²R/∂w∂w at one point: J = ∂outputs/∂w, C = ∂²loss/∂outputs², R the penalty.

    Positive semidefinite wherever the loss is convex in the model's outputs, which the Hessian need not be.

    Raises ValueError for a problem without `inner_outputs` and `inner_output_loss`, or where these two do not add up to
    its inner loss.
    """

    def __init__(
        self, problem: Problem, penalty: FixedPenalty | None, cost: Cost, params: Tensor, hyper: Tensor, batch: Batch
    ) -> None:
        if problem.inner_outputs is None or problem.inner_output_loss is None:
            raise ValueError(
                "Gauss-Newton products need the model and its loss apart: give Problem(inner_outputs=..., "
                "inner_output_loss=...), or use the Hessian"
            )
        self._penalty, self._cost, self._params = penalty, cost, params.detach()
        seeds, hyper = params.shape[0], _constant(hyper)
        self._leaf = _leaf(params)
        self._outputs = lift_function(problem.inner_outputs, seeds)(self._leaf, hyper, batch)
        self._free_outputs = self._outputs.detach().requires_grad_()
        loss = lift(problem.inner_output_loss, seeds)(self._free_outputs, hyper, batch)
        whole = lift(problem.inner_loss, seeds)(self._leaf.detach(), hyper, batch)
        if not torch.allclose(loss, whole, rtol=1e-3, equal_nan=True):
            raise ValueError(
                "inner_output_loss of inner_outputs must be the inner loss (without the penalty): found "
                f"{loss.detach().flatten()[0]:.6g} and {whole.flatten()[0]:.6g}"
            )
        (self._by_outputs,) = gradients(loss, [self._free_outputs], create_graph=True)
        # Jᵀu as a function of u, so that its own transpose gives J v
        self._dummy = torch.zeros_like(self._outputs).requires_grad_()
        self._pulled_back = _transposed(self._outputs, self._leaf, self._dummy, create_graph=True)

    def add_product(self, vector: Tensor, to: Tensor) -> None:
        """to (S, P) += (Jᵀ C J + ∂²R/∂w∂w) v; counted as a Hessian product."""
        pushed = _transposed(self._pulled_back, self._dummy, vector.view_as(self._leaf))
        curved = _transposed(self._by_outputs, self._free_outputs, pushed)
        to.add_(_transposed(self._outputs, self._leaf, curved).view_as(to))
        self._cost.hessian_products += 1
        if self._penalty is not None:
            self._penalty.add_hessian_product(self._params, vector, to)


def _add_penalty_products(
    penalty: FixedPenalty | None,
    cost: Cost,
    params: Tensor,
    vector: Tensor,
    to_params: Tensor | None,
    to_hyper: Tensor | None,
) -> None:
    """The penalty's part of products with both Jacobians, and the count of both."""
    if to_params is not None:
        cost.hessian_products += 1
        if penalty is not None:
            penalty.add_hessian_product(params, vector, to_params)
    if to_hyper is not None:
        cost.mixed_products += 1
        if penalty is not None:
            penalty.add_mixed_product(params, vector, to_hyper)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _constant(tensor: Tensor) -> Tensor:
    # one seed is handled without its axis, so that no graph is built for putting it on and off
    return tensor.detach().squeeze(0) if tensor.shape[0] == 1 else tensor.detach()


def _leaf(tensor: Tensor) -> Tensor:
    return _constant(tensor).requires_grad_()


def _transposed(value: Tensor, leaf: Tensor, cotangent: Tensor, create_graph: bool = False) -> Tensor:
    """(∂value/∂leaf)ᵀ cotangent; zero where the one does not depend on the other."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(
        value,
        [leaf],
        cotangent,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return product


def _with_penalty(penalty: FixedPenalty | None, gradient: Tensor, params: Tensor) -> Tensor:
    return gradient if penalty is None else penalty.plus_gradient(gradient, params)
