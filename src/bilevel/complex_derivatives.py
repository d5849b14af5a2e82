"""First derivatives of a bilevel problem at complex parameters and hyperparameters, for the complex-step method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.problem import Batch, Loss, map_batch


class ComplexDerivatives(Derivatives):
    """Inner gradient and outer loss as analytic functions of complex w (S, P) and λ (S, H).

    The real and floating-point tensors of a batch are converted to the parameters' complex type; tensors that a loss
    closes over are its own business.

    Raises ValueError where a loss does not run in complex arithmetic. A loss that runs and is not analytic is found by
    `check_analytic` only.
    """

    def inner_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """∂L₁/∂w, (S, P), complex."""
        leaf = params.detach()
        leaf = (leaf.squeeze(0) if leaf.shape[0] == 1 else leaf).requires_grad_()
        with _explained("inner"):
            loss = self._value(self._inner_loss, leaf, batch, "inner")
            # the gradient of a real part is the complex conjugate of the derivative (torch's convention)
            gradient = torch.zeros_like(leaf)
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss.real.sum(), [leaf], allow_unused=True, materialize_grads=True)
        self.cost.gradients += 1
        gradient = gradient.conj().resolve_conj().view_as(params)
        return gradient if self.penalty is None else self.penalty.plus_gradient(gradient, params)

    def borrowed_gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """`inner_gradient`."""
        return self.inner_gradient(params, batch)

    def outer_loss(self, params: Tensor, batch: Batch) -> Tensor:
        """L₂, (S,), complex."""
        with torch.no_grad(), _explained("outer"):
            constant = params.squeeze(0) if params.shape[0] == 1 else params
            return self._value(self._outer_loss, constant, batch, "outer").view(params.shape[0])

    def _value(self, loss: Loss, params: Tensor, batch: Batch, which: str) -> Tensor:
        hyper = self.hyper.squeeze(0) if self.hyper.shape[0] == 1 else self.hyper

        def converted(tensor: Tensor) -> Tensor:
            return tensor.to(params.dtype) if tensor.is_floating_point() else tensor

        value = loss(params, hyper, map_batch(converted, batch))
        if not value.is_complex():
            raise _error(which, "it returned a real number for complex parameters")
        return value


def check_analytic(derivatives: Derivatives, params: Tensor, batch: Batch, outer_batch: Batch, epsilon: float) -> None:
    """Compare imaginary parts over ε with real derivatives, along one fixed direction of w (S, P) and λ together.

    Raises ValueError where the inner gradient or the outer loss, as they run in complex arithmetic, do not have the
    derivatives of the real ones.
    """
    generator = torch.Generator().manual_seed(0)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape[-1], generator=generator, dtype=torch.float64).to(like).expand_as(like)

    by_params, by_hyper = direction(params), direction(derivatives.hyper)
    perturbed = ComplexDerivatives(derivatives.problem, torch.complex(derivatives.hyper, epsilon * by_hyper))
    perturbed.cost = derivatives.cost
    point = torch.complex(params, epsilon * by_params)

    expected = derivatives.push_forward(params, batch).along(by_params[None], by_hyper[None])[0]
    _compare("inner", perturbed.inner_gradient(point, batch).imag / epsilon, expected)
    outer = derivatives.outer_gradient(params, outer_batch)
    terms = torch.cat([outer.params * by_params, outer.hyper * by_hyper], dim=-1)
    found = perturbed.outer_loss(point, outer_batch).imag / epsilon
    # against the size of its terms, since these may cancel
    _compare("outer", found[:, None], terms.sum(-1, keepdim=True), terms.norm(dim=-1))


def _compare(which: str, found: Tensor, expected: Tensor, size: Tensor | None = None) -> None:
    scale = torch.maximum(found.norm(dim=-1), expected.norm(dim=-1) if size is None else size)
    if bool(((found - expected).norm(dim=-1) > torch.finfo(found.dtype).eps ** 0.5 * scale).any()):
        raise _error(which, "its derivative in complex arithmetic is not the real one, so that it is not analytic")


@contextmanager
def _explained(which: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _error(which, str(error).splitlines()[0]) from error


def _error(which: str, found: str) -> ValueError:
    return ValueError(
        f"complex_step: the {which} loss does not work in complex arithmetic: {found}. Write it with analytic "
        "operations (no abs, comparison, maximum or log_softmax) and convert tensors it closes over to the type of the "
        "parameters, or use central_difference"
    )
