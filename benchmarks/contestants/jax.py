"""JAX: jitted scans over the inner steps, differentiated with three amounts of rematerialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from benchmarks.cases import BETA1, BETA2, EPSILON, MOMENTUM, SHAPES, TERMS, Array, Case, Data
from benchmarks.contestants import Entry, Run, flat

Tree = Any


def contest(case: Case, data: Data) -> list[Entry]:
    """See `benchmarks.contestants`."""
    solver = Solver(case, data)
    return [
        Entry("scan", "exact", lambda: solver.compiled(solver.exact(solver.scan))),
        Entry("scan, step rematerialized", "exact", lambda: solver.compiled(solver.exact(solver.scan_of_checkpoints))),
        Entry("scan, √T rematerialized", "exact", lambda: solver.compiled(solver.exact(solver.scan_of_segments))),
        Entry("fori_loop, last step", "T1-T2", lambda: solver.compiled(solver.last_step)),
        Entry("scan, by hand", "Neumann", lambda: solver.compiled(solver.implicit(solver.neumann))),
        Entry("scan, jax.scipy cg", "CG", lambda: solver.compiled(solver.implicit(solver.conjugate_gradients))),
        Entry("scan", "inner steps", lambda: solver.compiled(solver.training)),
    ]


class Solver:
    """Functions of (params, hyper, batches) of one case; params, and hyper of a penalty, are lists of arrays."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case = case
        self.full_batch = len(data.images) == 1
        images, labels = (data.images[0], data.labels[0]) if self.full_batch else (data.images, data.labels)
        hyper = jnp.asarray(data.hyper) if case.model == "softmax" else self._split(data.hyper)
        batches = jnp.asarray(images), jnp.asarray(labels)
        outer = jnp.asarray(data.outer_images), jnp.asarray(data.outer_labels)
        self.inputs = self._split(data.params), hyper, batches, outer

    def _split(self, vector: Array) -> list[Any]:
        shapes = SHAPES[self.case.model]
        parts = np.split(vector, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        return [jnp.asarray(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]

    def compiled(self, function: Callable[..., Tree]) -> Run:
        """Compiled for the case's inputs before anything is measured."""
        program = jax.jit(function).lower(*self.inputs).compile()
        return lambda: flat(jax.tree.leaves(program(*self.inputs)))

    def logits(self, params: list[Any], images: Any) -> Any:
        """(n, classes)."""
        if self.case.model == "softmax":
            return images @ params[0].T
        return jnp.tanh(images @ params[0].T + params[1]) @ params[2].T + params[3]

    def losses(self, params: list[Any], batch: Any) -> Any:
        """Cross-entropy of each sample."""
        log_probabilities = jax.nn.log_softmax(self.logits(params, batch[0]))
        return -jnp.take_along_axis(log_probabilities, batch[1][:, None], axis=1)[:, 0]

    def inner_loss(self, params: list[Any], hyper: Tree, batch: Any) -> Any:
        """L₁."""
        losses = self.losses(params, batch)
        if self.case.model == "softmax":
            return (jax.nn.sigmoid(hyper) * losses).mean()
        terms = [(jnp.exp(h) * w * w).sum() for h, w in zip(hyper, params, strict=True)]
        return losses.mean() + 0.5 * sum(terms)

    def outer_loss(self, params: list[Any], batch: Any) -> Any:
        """L₂."""
        return self.losses(params, batch).mean()

    def start(self, params: list[Any]) -> Tree:
        """State (w, m, v) as far as the optimizer has them, and the number of steps done."""
        averages = {"sgd": 0, "momentum": 1, "adam": 2}[self.case.optimizer]
        zeros = jax.tree.map(jnp.zeros_like, params)
        return (params, *[zeros] * averages, jnp.zeros(()))

    def step(self, state: Tree, hyper: Tree, batch: Any) -> Tree:
        """One inner step."""
        w, *averages, count = state
        gradient = jax.grad(self.inner_loss)(w, hyper, batch)
        rate = self.case.rate
        if self.case.optimizer == "sgd":
            return jax.tree.map(lambda a, g: a - rate * g, w, gradient), count + 1
        if self.case.optimizer == "momentum":
            m = jax.tree.map(lambda a, g: MOMENTUM * a + g, averages[0], gradient)
            return jax.tree.map(lambda a, b: a - rate * b, w, m), m, count + 1
        m = jax.tree.map(lambda a, g: BETA1 * a + (1 - BETA1) * g, averages[0], gradient)
        v = jax.tree.map(lambda a, g: BETA2 * a + (1 - BETA2) * g * g, averages[1], gradient)
        first, second = 1 - BETA1 ** (count + 1), 1 - BETA2 ** (count + 1)
        w = jax.tree.map(lambda a, b, c: a - rate * (b / first) / (jnp.sqrt(c / second) + EPSILON), w, m, v)
        return w, m, v, count + 1

    def _advance(self, hyper: Tree, batches: Any) -> Callable[[Tree, Any], tuple[Tree, None]]:
        """Body of a scan: over batches, or, with one full batch, over nothing."""
        return lambda state, batch: (self.step(state, hyper, batches if self.full_batch else batch), None)

    def _over(self, batches: Any) -> Any:
        return None if self.full_batch else batches

    def scan(self, state: Tree, hyper: Tree, batches: Any, steps: int) -> Tree:
        """The state after all steps; what the backward pass needs is stored."""
        return jax.lax.scan(self._advance(hyper, batches), state, self._over(batches), length=steps)[0]

    def scan_of_checkpoints(self, state: Tree, hyper: Tree, batches: Any, steps: int) -> Tree:
        """The same; only states are stored."""
        body = jax.checkpoint(self._advance(hyper, batches))
        return jax.lax.scan(body, state, self._over(batches), length=steps)[0]

    def scan_of_segments(self, state: Tree, hyper: Tree, batches: Any, steps: int) -> Tree:
        """The same; only the first state of each of about √T segments is stored."""
        count = max(divisor for divisor in range(1, math.isqrt(steps) + 1) if steps % divisor == 0)
        length = steps // count
        advance = self._advance(hyper, batches)

        def segment(state: Tree, part: Any) -> tuple[Tree, None]:
            return jax.lax.scan(advance, state, part, length=length)[0], None

        parts = jax.tree.map(lambda x: x.reshape(count, length, *x.shape[1:]), self._over(batches))
        return jax.lax.scan(jax.checkpoint(segment), state, parts, length=count)[0]

    def exact(self, scan: Callable[..., Tree]) -> Callable[..., Tree]:
        """Reverse mode through all steps."""

        def loss(hyper: Tree, params: Tree, batches: Any, outer: Any) -> Any:
            return self.outer_loss(scan(self.start(params), hyper, batches, self.case.steps)[0], outer)

        return lambda params, hyper, batches, outer: jax.grad(loss)(hyper, params, batches, outer)

    def last_step(self, params: Tree, hyper: Tree, batches: Any, outer: Any) -> Tree:
        """Reverse mode through the last step."""

        def advance(index: Any, state: Tree) -> Tree:
            # by index: a slice of all but the last batch would be a copy of them
            return self.step(state, hyper, batches if self.full_batch else jax.tree.map(lambda x: x[index], batches))

        state = jax.lax.fori_loop(0, self.case.steps - 1, advance, self.start(params))
        last = self.last_batch(batches)
        return jax.grad(lambda hyper: self.outer_loss(self.step(state, hyper, last)[0], outer))(hyper)

    def last_batch(self, batches: Any) -> Any:
        """The batch of the last step."""
        return batches if self.full_batch else jax.tree.map(lambda x: x[-1], batches)

    def training(self, params: Tree, hyper: Tree, batches: Any, outer: Any) -> Tree:
        """The last parameters."""
        return self.scan(self.start(params), hyper, batches, self.case.steps)[0]

    def implicit(self, solve: Callable[..., Tree]) -> Callable[..., Tree]:
        """−∂²L₁/∂λ∂w · solve(H, ∂L₂/∂w), at the last parameters and batch."""

        def hypergradient(params: Tree, hyper: Tree, batches: Any, outer: Any) -> Tree:
            w, batch = self.training(params, hyper, batches, outer), self.last_batch(batches)

            def gradient(w: Tree, hyper: Tree) -> Tree:
                return jax.grad(self.inner_loss)(w, hyper, batch)

            _, product = jax.linearize(lambda w: gradient(w, hyper), w)
            solution = solve(product, jax.grad(self.outer_loss)(w, outer))
            _, pull_back = jax.vjp(lambda hyper: gradient(w, hyper), hyper)
            return jax.tree.map(jnp.negative, pull_back(solution)[0])

        return hypergradient

    def neumann(self, product: Callable[[Tree], Tree], right: Tree) -> Tree:
        """η Σⱼ (I − η H)ʲ right."""
        rate = self.case.rate

        def add_term(carry: tuple[Tree, Tree], _: None) -> tuple[tuple[Tree, Tree], None]:
            term, total = carry
            term = jax.tree.map(lambda a, b: a - rate * b, term, product(term))
            return (term, jax.tree.map(jnp.add, total, term)), None

        (_, total), _ = jax.lax.scan(add_term, (right, right), None, length=TERMS)
        return jax.tree.map(lambda x: rate * x, total)

    def conjugate_gradients(self, product: Callable[[Tree], Tree], right: Tree) -> Tree:
        """(H + damping I)⁻¹ right, approximately; the tolerance is out of reach, so that all iterations are done."""

        def damped(vector: Tree) -> Tree:
            return jax.tree.map(lambda a, b: a + self.case.damping * b, product(vector), vector)

        # a constant zero as the start, the default, makes jitted runs return zeros or NaN with jax 0.10.2 on the CPU
        start = jax.tree.map(lambda x: 0 * x, right)
        return cg(damped, right, start, tol=0.0, atol=0.0, maxiter=self.case.iterations)[0]
