"""`higher`: a module made functional, its optimizer made differentiable."""

from __future__ import annotations

import higher
import torch

from benchmarks.cases import Array, Case, Data
from benchmarks.contestants import Entry
from benchmarks.contestants.pytorch_problem import PyTorchProblem
from benchmarks.contestants.torch import plain_optimizer


def contest(case: Case, data: Data) -> list[Entry]:
    """See `benchmarks.contestants`."""
    problem = PyTorchProblem(case, data)
    note = "other formula: epsilon outside the bias correction" if case.optimizer == "adam" else ""
    return [
        Entry("innerloop_ctx", "exact", lambda: lambda: unrolled(problem, case.steps), note),
        Entry("last step", "T1-T2", lambda: lambda: unrolled(problem, 1), note),
    ]


def unrolled(problem: PyTorchProblem, kept: int) -> Array:
    """Ordinary training, then the last `kept` steps in an inner loop."""
    hyper, model = problem.learned(), problem.module()
    coefficients, learned = problem.split_hyper(problem.hyper), problem.split_hyper(hyper)
    optimizer = plain_optimizer(problem.case, list(model.parameters()))
    for images, labels in problem.batches[: problem.case.steps - kept]:
        optimizer.zero_grad()
        loss = problem.data_loss(model(images), labels, problem.hyper)
        torch.autograd.backward(problem.with_penalty(loss, list(model.parameters()), coefficients))
        optimizer.step()
    with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
        for images, labels in problem.batches[problem.case.steps - kept :]:
            loss = problem.data_loss(functional(images), labels, hyper)
            differentiable.step(problem.with_penalty(loss, list(functional.parameters()), learned))
        outer = problem.data_loss(functional(problem.outer_batch[0]), problem.outer_batch[1], None)
        return torch.autograd.grad(outer, hyper)[0].numpy()
