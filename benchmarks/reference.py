"""Every measured quantity in double precision, with derivatives worked out by hand: NumPy and nothing else."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from benchmarks.cases import (
    BETA1,
    BETA2,
    CLASSES,
    EPSILON,
    GAMMA,
    MOMENTUM,
    PIXELS,
    SHAPES,
    TERMS,
    Array,
    Case,
    Data,
    Quantity,
)

Batch = tuple[Array, Array]


class Model(Protocol):
    """The inner loss of a case at one point and batch; what a product needs is computed once, in the constructor."""

    gradient: Array

    def hessian_product(self, vector: Array) -> Array:
        """∂²L₁/∂w∂w · v, (P,)."""

    def mixed_product(self, vector: Array) -> Array:
        """∂²L₁/∂λ∂w · v, (H,)."""


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _tangent(probabilities: Array, logits_tangent: Array) -> Array:
    weighted = probabilities * logits_tangent
    return np.asarray(weighted - probabilities * weighted.sum(1, keepdims=True))


class Softmax:
    """Mean over samples of σ(λᵢ) times cross-entropy; `hyper` None: all weights 1."""

    def __init__(self, params: Array, hyper: Array | None, batch: Batch) -> None:
        self.images, labels = batch[0].astype(np.float64), batch[1]
        self.sigmoid = np.ones(len(labels)) if hyper is None else 1 / (1 + np.exp(-hyper))
        self.probabilities = _softmax(self.images @ params.reshape(CLASSES, PIXELS).T)
        self.residuals = self.probabilities - np.eye(CLASSES)[labels]
        self.gradient = self._back(self.residuals)

    def _back(self, per_logit: Array) -> Array:
        weighted = per_logit * self.sigmoid[:, None] / len(per_logit)
        return np.asarray((weighted.T @ self.images).ravel())

    def hessian_product(self, vector: Array) -> Array:
        """See `Model`."""
        return self._back(_tangent(self.probabilities, self.images @ vector.reshape(CLASSES, PIXELS).T))

    def mixed_product(self, vector: Array) -> Array:
        """See `Model`."""
        slope = self.sigmoid * (1 - self.sigmoid) / len(self.sigmoid)
        return np.asarray(slope * (self.residuals * (self.images @ vector.reshape(CLASSES, PIXELS).T)).sum(1))


class MLP:
    """Mean cross-entropy of a tanh network and ½ Σ exp(λᵢ) wᵢ²; `hyper` None: no penalty."""

    def __init__(self, params: Array, hyper: Array | None, batch: Batch) -> None:
        self.images, labels = batch[0].astype(np.float64), batch[1]
        self.params, self.coefficients = params, np.zeros(1) if hyper is None else np.exp(hyper)
        w1, b1, self.w2, b2 = _split(params)
        self.hidden = np.tanh(self.images @ w1.T + b1)
        self.probabilities = _softmax(self.hidden @ self.w2.T + b2)
        self.by_logits = (self.probabilities - np.eye(CLASSES)[labels]) / len(labels)
        self.slope = 1 - self.hidden**2
        self.by_hidden = self.by_logits @ self.w2
        by_inputs = self.by_hidden * self.slope
        self.gradient = self.coefficients * params + _join(
            by_inputs.T @ self.images, by_inputs.sum(0), self.by_logits.T @ self.hidden, self.by_logits.sum(0)
        )

    def hessian_product(self, vector: Array) -> Array:
        """See `Model`."""
        v1, c1, v2, c2 = _split(vector)
        hidden = self.slope * (self.images @ v1.T + c1)
        by_logits = _tangent(self.probabilities, hidden @ self.w2.T + self.hidden @ v2.T + c2) / len(hidden)
        by_hidden = by_logits @ self.w2 + self.by_logits @ v2
        by_inputs = by_hidden * self.slope - 2 * self.by_hidden * self.hidden * hidden
        return np.asarray(
            self.coefficients * vector
            + _join(
                by_inputs.T @ self.images,
                by_inputs.sum(0),
                by_logits.T @ self.hidden + self.by_logits.T @ hidden,
                by_logits.sum(0),
            )
        )

    def mixed_product(self, vector: Array) -> Array:
        """See `Model`."""
        return np.asarray(self.coefficients * self.params * vector)


def _split(flat: Array) -> list[Array]:
    shapes = SHAPES["mlp"]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def _join(*parts: Array) -> Array:
    return np.concatenate([part.ravel() for part in parts])


class Optimizer:
    """Steps of SGD, momentum and Adam on a state (3, P), and their transposed Jacobians."""

    def __init__(self, case: Case) -> None:
        self.name, self.rate = case.optimizer, case.rate

    def step(self, state: Array, gradient: Array, count: int) -> Array:
        """The state after step number `count`, from 1."""
        w, m, v = state
        if self.name == "sgd":
            return np.stack([w - self.rate * gradient, m, v])
        if self.name == "momentum":
            m = MOMENTUM * m + gradient
            return np.stack([w - self.rate * m, m, v])
        m, v = BETA1 * m + (1 - BETA1) * gradient, BETA2 * v + (1 - BETA2) * gradient**2
        first, second = 1 - BETA1**count, 1 - BETA2**count
        return np.stack([w - self.rate * (m / first) / (np.sqrt(v / second) + EPSILON), m, v])

    def adjoint(self, cotangent: Array, after: Array, gradient: Array, count: int) -> tuple[Array, Array]:
        """dL/dg and what of dL/d(state before) does not pass through g; `after`: the state after the step."""
        by_w, by_m, by_v = cotangent
        if self.name == "sgd":
            return -self.rate * by_w, cotangent
        if self.name == "momentum":
            by_m = by_m - self.rate * by_w
            return by_m, np.stack([by_w, MOMENTUM * by_m, by_v])
        first, second = 1 - BETA1**count, 1 - BETA2**count
        root = np.sqrt(after[2] / second)
        denominator = root + EPSILON
        by_m = by_m - self.rate * by_w / (first * denominator)
        by_root = self.rate * by_w * after[1] / (first * denominator**2)
        by_v = by_v + np.divide(by_root, 2 * root * second, out=np.zeros_like(root), where=root > 0)
        by_gradient = (1 - BETA1) * by_m + 2 * (1 - BETA2) * gradient * by_v
        return by_gradient, np.stack([by_w, BETA1 * by_m, BETA2 * by_v])


class Reference:
    """A case in double precision; each method returns one quantity, (H,) or, for the inner steps, (P,)."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data = case, data
        self.hyper = data.hyper.astype(np.float64)
        self.optimizer = Optimizer(case)
        self.states = [np.stack([data.params.astype(np.float64), *np.zeros((2, len(data.params)))])]
        for step in range(case.steps):
            gradient = self._inner(step, self.states[step][0]).gradient
            self.states.append(self.optimizer.step(self.states[step], gradient, step + 1))

    def quantities(self) -> dict[Quantity, Array]:
        """All of them."""
        return {
            "exact": self._reverse(self.case.steps),
            "T1-T2": self._reverse(1),
            "Neumann": self._neumann(),
            "CG": self._conjugate_gradients(),
            "aggregated": self._aggregated(),
            "inner steps": self.states[-1][0],
        }

    def _inner(self, step: int, params: Array) -> Model:
        model = Softmax if self.case.model == "softmax" else MLP
        return model(params, self.hyper, self.data.batch(step))

    def _outer_gradient(self, params: Array) -> Array:
        model = Softmax if self.case.model == "softmax" else MLP
        return model(params, None, (self.data.outer_images, self.data.outer_labels)).gradient

    def _cotangent(self, step: int) -> Array:
        by_params = self._outer_gradient(self.states[step][0])
        return np.stack([by_params, *np.zeros((2, len(by_params)))])

    def _pull_back(self, step: int, cotangent: Array) -> tuple[Array, Array]:
        """Cotangent of the state before `step`, and the contribution to the hypergradient."""
        inner = self._inner(step, self.states[step][0])
        vector, before = self.optimizer.adjoint(cotangent, self.states[step + 1], inner.gradient, step + 1)
        before[0] = before[0] + inner.hessian_product(vector)
        return before, inner.mixed_product(vector)

    def _reverse(self, steps: int) -> Array:
        cotangent, total = self._cotangent(self.case.steps), np.zeros_like(self.hyper)
        for step in reversed(range(self.case.steps - steps, self.case.steps)):
            cotangent, part = self._pull_back(step, cotangent)
            total += part
        return total

    def _aggregated(self) -> Array:
        total = np.zeros_like(self.hyper)
        for step in range(self.case.steps):
            total = GAMMA * total + self._pull_back(step, self._cotangent(step + 1))[1]
        return total

    def _neumann(self) -> Array:
        params, rate = self.states[-1][0], self.case.rate
        inner = self._inner(self.case.steps - 1, params)
        term = self._outer_gradient(params)
        total = term.copy()
        for _ in range(TERMS):
            term = term - rate * inner.hessian_product(term)
            total += term
        return -rate * inner.mixed_product(total)

    def _conjugate_gradients(self) -> Array:
        params = self.states[-1][0]
        inner = self._inner(self.case.steps - 1, params)
        residual = self._outer_gradient(params)
        solution, direction = np.zeros_like(residual), residual.copy()
        for _ in range(self.case.iterations):
            product = inner.hessian_product(direction) + self.case.damping * direction
            curvature, squared = direction @ product, residual @ residual
            if curvature <= 0:
                raise ArithmeticError(f"{self.case.name}: H + {self.case.damping} I is not positive; raise the damping")
            solution += squared / curvature * direction
            residual = residual - squared / curvature * product
            direction = residual + (residual @ residual) / squared * direction
        return -inner.mixed_product(solution)
