"""The inner and the outer problem of kernel logistic regression, in well conditioned coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from bilevel.penalties import FixedPenalty, Penalty
from bilevel.tasks.kernel_logistic.kernel import Kernel, Pairs


class Train(NamedTuple):
    """Pairs of training points (..., n, n) and their labels (..., n), 0 or 1."""

    pairs: Pairs
    labels: Tensor


class Validation(NamedTuple):
    """Pairs of training points (..., n, n), pairs of validation and training points (..., m, n), labels (..., m)."""

    train: Pairs
    pairs: Pairs
    labels: Tensor


class Coordinates(NamedTuple):
    """From the parameters w (..., n + 1) to the coefficients of the decision function f(x) = Σ_i a_i K(x_i, x) + b.

    With K + ε I = L Lᵀ, Φ = [L, 1] and M = ΦᵀΦ / 4n + diag(λ, …, λ, 0) = R Rᵀ:  (u, b) = R⁻ᵀ w,  a = L⁻ᵀ u.
    f at the training points is L u + b 1 = F w with F = Φ R⁻ᵀ.

    factor: L (..., n, n). root: R (..., n + 1, n + 1).
    """

    factor: Tensor
    root: Tensor

    def features(self) -> Tensor:
        """F, (..., n, n + 1)."""
        solution: Tensor = torch.linalg.solve_triangular(self.root, _with_ones(self.factor).mT, upper=False)
        return solution.mT

    def scaled(self, params: Tensor) -> Tensor:
        """(u, b), (..., n + 1)."""
        solution: Tensor = torch.linalg.solve_triangular(self.root.mT, params.unsqueeze(-1), upper=True)
        return solution.squeeze(-1)

    def coefficients(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """a (..., n) and b (..., 1)."""
        scaled = self.scaled(params)
        expansion = torch.linalg.solve_triangular(self.factor.mT, scaled[..., :-1, None], upper=True)
        return expansion.squeeze(-1), scaled[..., -1:]

    def decision(self, params: Tensor, matrix: Tensor) -> Tensor:
        """f (..., m) at points with K(x, X) = `matrix` (..., m, n)."""
        expansion, bias = self.coefficients(params)
        image: Tensor = matrix @ expansion.unsqueeze(-1)
        return image.squeeze(-1) + bias


def coordinates(kernel: Kernel, hyper: Tensor, train: Pairs) -> Coordinates:
    """Those of hyperparameters (..., H)."""
    factor = kernel.factor(hyper, train)
    features, level = _with_ones(factor), hyper[..., :1].exp()
    decay = torch.diag_embed(pad(level.expand(factor.shape[:-1]), (0, 1)))
    root, _ = torch.linalg.cholesky_ex(features.mT @ features / (4 * factor.shape[-1]) + decay)
    return Coordinates(factor, root)


class Objective(Penalty):
    """The whole inner objective, with the slide's missing bias in the linear term put back, over n:

    L₁ = 1/n [ −yᵀ(K a + b 1) + 1ᵀ log(1 + exp(K a + b 1)) ] + λ/2 aᵀ K a.

    As printed, with −yᵀ K a, it has no minimum: b goes to −∞. λ is that of the mean loss, 1/n of that of the sum.
    In the parameters of `Coordinates`, with z = F w, this is (up to the jitter ε of K)

    L₁ = ½ wᵀw + 1/n Σ_i [ log(1 + exp z_i) − y_i z_i − z_i² / 8 ],

    since the second derivative of the logistic loss is at most ¼: M is a bound on the Hessian in (u, b). In w the
    Hessian I − Fᵀ diag(¼ − σ'(z)) F / n is positive definite, and at most I, whatever kernel and λ: gradient descent
    with a rate below 2 converges. In a, its condition number would grow with that of K, squared, and with 1/λ.

    A `Penalty`, because F depends on hyperparameters and data alone: a penalty computes such things once for all steps
    at the same hyperparameters, and has the derivatives of the rest in closed form.

    train: of all seeds. Raises ValueError at use with hyperparameters of another number of seeds.

    Source: deck 001, "Пример" (KLR).
    """

    def __init__(self, kernel: Kernel, train: Train) -> None:
        self._kernel, self._train = kernel, train
        self._last: FixedObjective | None = None

    def at(self, hyper: Tensor) -> FixedObjective:
        """With F computed; the last one is kept, since a run asks several times at the same hyperparameters."""
        if hyper.shape[0] != self._train.labels.shape[0]:
            raise ValueError(f"the data are those of {self._train.labels.shape[0]} seeds, hyper of {hyper.shape[0]}")
        if self._last is None or not torch.equal(self._last.hyper, hyper):
            self._last = FixedObjective(self._kernel, self._train, hyper)
        return self._last


class FixedObjective(FixedPenalty):
    """`Objective` at fixed hyperparameters `hyper` (S, H), with its `coordinates`."""

    def __init__(self, kernel: Kernel, train: Train, hyper: Tensor) -> None:
        self._train, self.hyper = train, hyper.detach().clone()
        with torch.enable_grad():
            self._leaf = self.hyper.clone().requires_grad_()
            found = coordinates(kernel, self._leaf, train.pairs)
            self._grown = found.features()
        self.coordinates, self._features = Coordinates(*(part.detach() for part in found)), self._grown.detach()

    def value(self, params: Tensor) -> Tensor:
        """L₁, (S,), in the first form: the second takes large numbers from one another."""
        weights = self.coordinates.scaled(params)[..., :-1]
        penalty = 0.5 * self.hyper[..., 0].exp() * weights.square().sum(-1)
        return cross_entropy(_times(self._features, params), self._train.labels) + penalty

    def plus_gradient(self, gradient: Tensor, params: Tensor) -> Tensor:
        """gradient + w + Fᵀ r,  r = (σ(z) − y − z/4) / n."""
        return gradient + params + _times(self._features.mT, self._residual(self._features, params))

    def add_hessian_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to += v − Fᵀ diag(¼ − σ'(z)) F v / n."""
        probability = _times(self._features, params).sigmoid()
        missing = (probability * (1 - probability) - 0.25) / self._train.labels.shape[-1]
        to.add_(vector).add_(_times(self._features.mT, missing * _times(self._features, vector)))

    def add_mixed_product(self, params: Tensor, vector: Tensor, to: Tensor) -> None:
        """to += ∂⟨∂L₁/∂w, v⟩/∂λ, by autograd through F."""
        with torch.enable_grad():
            slope = self._slope(params.detach(), vector.detach())
            (product,) = torch.autograd.grad(slope, self._leaf, retain_graph=True)
        to.add_(product)

    def add_mixed_tangent(self, params: Tensor, direction: Tensor, to: Tensor) -> None:
        """By the transpose of `add_mixed_product`, which is linear in its vector."""
        with torch.enable_grad():
            vector = torch.zeros_like(params).requires_grad_()
            (product,) = torch.autograd.grad(self._slope(params.detach(), vector), self._leaf, create_graph=True)
            stack = direction.reshape(-1, *self.hyper.shape)
            tangents = [torch.autograd.grad(product, vector, one, retain_graph=True)[0] for one in stack]
        to.add_(torch.stack(tangents).view_as(to))

    def _residual(self, features: Tensor, params: Tensor) -> Tensor:
        z = _times(features, params)
        return (z.sigmoid() - self._train.labels - 0.25 * z) / self._train.labels.shape[-1]

    def _slope(self, params: Tensor, vector: Tensor) -> Tensor:
        """⟨∂L₁/∂w, v⟩ as far as it depends on the hyperparameters, summed over seeds."""
        return (self._residual(self._grown, params) * _times(self._grown, vector)).sum()


def cross_entropy(decision: Tensor, labels: Tensor) -> Tensor:
    """Mean of log(1 + exp f) − y f over the last axis, labels y in {0, 1}."""
    return softplus((1 - 2 * labels) * decision).mean(-1)


def validation_loss(kernel: Kernel, params: Tensor, hyper: Tensor, batch: Validation) -> Tensor:
    """Cross-entropy of f on the validation points."""
    decided = coordinates(kernel, hyper, batch.train).decision(params, kernel.matrix(hyper, batch.pairs))
    return cross_entropy(decided, batch.labels)


def _with_ones(factor: Tensor) -> Tensor:
    """Φ = [L, 1]."""
    return pad(factor, (0, 1), value=1.0)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    product: Tensor = matrix @ vector.unsqueeze(-1)
    return product.squeeze(-1)
