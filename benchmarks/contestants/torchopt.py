"""TorchOpt: its functional optimizers unrolled, and its implicit differentiation with its own linear solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchopt
from torch import Tensor

from benchmarks.cases import BETA1, BETA2, EPSILON, MOMENTUM, TERMS, Array, Case, Data
from benchmarks.contestants import Entry
from benchmarks.contestants.pytorch_problem import PyTorchProblem

Params = tuple[Tensor, ...]


def contest(case: Case, data: Data) -> list[Entry]:
    """See `benchmarks.contestants`."""
    problem = PyTorchProblem(case, data)
    neumann = torchopt.linear_solve.solve_inv(ns=True, maxiter=TERMS, alpha=case.rate)
    # the tolerance cannot be reached, so that all iterations are done
    gradients = torchopt.linear_solve.solve_cg(maxiter=case.iterations, rtol=1e-30, ridge=case.damping)
    return [
        Entry("functional", "exact", lambda: lambda: unrolled(problem, case.steps)),
        Entry("last step", "T1-T2", lambda: lambda: unrolled(problem, 1)),
        Entry("custom_root, solve_inv", "Neumann", lambda: lambda: implicit(problem, neumann)),
        Entry("custom_root, solve_cg", "CG", lambda: lambda: implicit(problem, gradients)),
    ]


def make_optimizer(case: Case) -> Any:
    """The inner optimizer of a case."""
    if case.optimizer == "adam":
        return torchopt.adam(lr=case.rate, betas=(BETA1, BETA2), eps=EPSILON)
    return torchopt.sgd(lr=case.rate, momentum=MOMENTUM if case.optimizer == "momentum" else 0.0)


def unrolled(problem: PyTorchProblem, kept: int) -> Array:
    """Steps without a graph over them, then the last `kept` with one."""
    first = problem.case.steps - kept
    params, optimizer, state = trained(problem, first)
    hyper = problem.learned()
    for batch in problem.batches[first:]:
        gradients = torch.autograd.grad(problem.inner_loss(params, hyper, batch), params, create_graph=True)
        updates, state = optimizer.update(gradients, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return torch.autograd.grad(problem.outer_loss(params), hyper)[0].numpy()


def trained(problem: PyTorchProblem, steps: int) -> tuple[Params, Any, Any]:
    """Parameters after some steps, ready for gradients; the optimizer and its state."""
    params: Params = tuple(problem.start())
    optimizer = make_optimizer(problem.case)
    state = optimizer.init(params)
    for batch in problem.batches[:steps]:
        gradients = torch.autograd.grad(problem.inner_loss(params, problem.hyper, batch), params)
        with torch.no_grad():
            updates, state = optimizer.update(gradients, state, params=params, inplace=True)
            params = torchopt.apply_updates(params, updates, inplace=True)
    return params, optimizer, state


def implicit(problem: PyTorchProblem, solve: Callable[..., Any]) -> Array:
    """Training as a solver whose root TorchOpt differentiates, on the last batch."""
    last = problem.batches[-1]

    def optimality(params: Params, hyper: Tensor) -> Any:
        return torch.func.grad(problem.inner_loss)(params, hyper, last)

    def train(params: Params, hyper: Tensor) -> Params:
        with torch.enable_grad():  # TorchOpt turns it off around the solver
            return tuple(part.detach() for part in trained(problem, problem.case.steps)[0])

    hyper = problem.learned()
    differentiable = torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=solve)(train)
    params = differentiable(tuple(problem.start()), hyper)
    return torch.autograd.grad(problem.outer_loss(params), hyper)[0].numpy()
