"""PyTorch alone: the unrolled graph and the implicit function theorem as one writes them by hand, on flat vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import BETA1, BETA2, EPSILON, MOMENTUM, TERMS, Array, Case, Data
from benchmarks.contestants import Entry
from benchmarks.contestants.pytorch_problem import Batch, PyTorchProblem

State = tuple[Tensor, ...]
Product = Callable[[Tensor], Tensor]


def contest(case: Case, data: Data) -> list[Entry]:
    """See `benchmarks.contestants`."""
    solver = Solver(PyTorchProblem(case, data))
    return [
        Entry("unroll", "exact", lambda: lambda: solver.unrolled(case.steps)),
        Entry("last step", "T1-T2", lambda: lambda: solver.unrolled(1)),
        Entry("by hand", "Neumann", lambda: lambda: solver.implicit(solver.neumann)),
        Entry("by hand", "CG", lambda: lambda: solver.implicit(solver.conjugate_gradients)),
        Entry("torch.optim", "inner steps", lambda: solver.training),
    ]


class Solver:
    """Runs of one case. A state is (w, m, v): parameters and the averages that the optimizer has."""

    def __init__(self, problem: PyTorchProblem) -> None:
        self.problem, self.case = problem, problem.case

    def inner_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        """The penalty is one term over the flat vector: no splitting of the hyperparameters."""
        parts = self.problem.split(params)
        loss = self.problem.data_loss(self.problem.logits(parts, batch[0]), batch[1], hyper)
        return self.problem.with_penalty(loss, [params], [hyper] if self.case.model == "mlp" else [])

    def outer_gradient(self, params: Tensor) -> Tensor:
        """∂L₂/∂w."""
        leaf = params.detach().requires_grad_()
        return torch.autograd.grad(self.problem.outer_loss(self.problem.split(leaf)), leaf)[0]

    def step(self, state: State, hyper: Tensor, index: int, create_graph: bool) -> State:
        """One inner step out of place."""
        w, m, v = state
        (gradient,) = torch.autograd.grad(
            self.inner_loss(w, hyper, self.problem.batches[index]), w, create_graph=create_graph
        )
        if self.case.optimizer == "sgd":
            return w - self.case.rate * gradient, m, v
        if self.case.optimizer == "momentum":
            m = MOMENTUM * m + gradient
            return w - self.case.rate * m, m, v
        m = BETA1 * m + (1 - BETA1) * gradient
        v = BETA2 * v + (1 - BETA2) * gradient * gradient
        first, second = 1 - BETA1 ** (index + 1), 1 - BETA2 ** (index + 1)
        return w - self.case.rate * (m / first) / ((v / second).sqrt() + EPSILON), m, v

    def train(self, steps: int) -> State:
        """Steps without a graph over them."""
        zeros = torch.zeros_like(self.problem.flat_params)
        state: State = (self.problem.flat_params, zeros, zeros)
        for index in range(steps):
            state = (state[0].detach().requires_grad_(), *state[1:])
            state = tuple(part.detach() for part in self.step(state, self.problem.hyper, index, create_graph=False))
        return state

    def unrolled(self, kept: int) -> Array:
        """Reverse mode through the last `kept` steps."""
        state, hyper = self.train(self.case.steps - kept), self.problem.learned()
        state = (state[0].clone().requires_grad_(), *state[1:])
        for index in range(self.case.steps - kept, self.case.steps):
            state = self.step(state, hyper, index, create_graph=True)
        outer = self.problem.outer_loss(self.problem.split(state[0]))
        return torch.autograd.grad(outer, hyper)[0].numpy()

    def implicit(self, solve: Callable[[Product, Tensor], Tensor]) -> Array:
        """−∂²L₁/∂λ∂w · solve(H, ∂L₂/∂w), at the last parameters and batch."""
        params = self.train(self.case.steps)[0].requires_grad_()
        hyper, right = self.problem.learned(), self.outer_gradient(params)
        loss = self.inner_loss(params, hyper, self.problem.batches[-1])
        (gradient,) = torch.autograd.grad(loss, params, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            return torch.autograd.grad(gradient, params, vector, retain_graph=True)[0]

        return -torch.autograd.grad(gradient, hyper, solve(product, right))[0].numpy()

    def neumann(self, product: Product, right: Tensor) -> Tensor:
        """η Σⱼ (I − η H)ʲ right."""
        term, total = right, right.clone()
        for _ in range(TERMS):
            term = term - self.case.rate * product(term)
            total += term
        return self.case.rate * total

    def conjugate_gradients(self, product: Product, right: Tensor) -> Tensor:
        """(H + damping I)⁻¹ right, approximately."""
        solution, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
        squared = residual @ residual
        for _ in range(self.case.iterations):
            image = product(direction).add_(direction, alpha=self.case.damping)
            length = squared / (direction @ image)
            solution += length * direction
            residual -= length * image
            before, squared = squared, residual @ residual
            direction = residual + squared / before * direction
        return solution

    def training(self) -> Array:
        """The inner steps as in any PyTorch program: backward and torch.optim."""
        params = self.problem.flat_params.clone().requires_grad_()
        optimizer = plain_optimizer(self.case, [params])
        for batch in self.problem.batches:
            optimizer.zero_grad()
            torch.autograd.backward(self.inner_loss(params, self.problem.hyper, batch))
            optimizer.step()
        return params.detach().numpy()


def plain_optimizer(case: Case, params: list[Tensor]) -> torch.optim.Optimizer:
    """The inner optimizer of a case from torch.optim."""
    if case.optimizer == "adam":
        return torch.optim.Adam(params, lr=case.rate, betas=(BETA1, BETA2), eps=EPSILON)
    return torch.optim.SGD(params, lr=case.rate, momentum=MOMENTUM if case.optimizer == "momentum" else 0.0)
