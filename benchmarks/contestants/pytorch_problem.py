"""The problems in PyTorch, for everything that is built on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from benchmarks.cases import SHAPES, Case, Data

Batch = tuple[Tensor, Tensor]


class PyTorchProblem:
    """Losses of a case on a sequence of parameter tensors, and its numbers as tensors."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case = case
        self.shapes = SHAPES[case.model]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.flat_params = torch.from_numpy(data.params)
        self.hyper = torch.from_numpy(data.hyper)
        distinct = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(data.images, data.labels, strict=True)]
        self.batches: list[Batch] = [distinct[step % len(distinct)] for step in range(case.steps)]
        self.outer_batch: Batch = (torch.from_numpy(data.outer_images), torch.from_numpy(data.outer_labels))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat vector in the shapes of the parameters."""
        parts = torch.split(vector, self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        """(n, classes) of the network; (classes, n) of the softmax regression, which is the faster layout there."""
        if self.case.model == "softmax":
            return params[0] @ images.t()
        return linear(torch.tanh(linear(images, params[0], params[1])), params[2], params[3])

    def data_loss(self, logits: Tensor, labels: Tensor, hyper: Tensor | None) -> Tensor:
        """The inner loss without the penalty; `hyper` None: the outer loss."""
        if self.case.model == "mlp":
            return cross_entropy(logits, labels)
        losses = -log_softmax(logits, 0).gather(0, labels.unsqueeze(0)).squeeze(0)
        return losses.mean() if hyper is None else (torch.sigmoid(hyper) * losses).mean()

    def split_hyper(self, hyper: Tensor) -> list[Tensor]:
        """Coefficients in the shapes of the parameters; none where there is no penalty."""
        return self.split(hyper) if self.case.model == "mlp" else []

    def with_penalty(self, loss: Tensor, params: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
        """loss + ½ Σ exp(λᵢ) wᵢ², over parameter tensors and coefficients of the same shapes."""
        for param, coefficient in zip(params, coefficients, strict=False):
            loss = loss + 0.5 * (coefficient.exp() * param * param).sum()
        return loss

    def inner_loss(self, params: Sequence[Tensor], hyper: Tensor, batch: Batch) -> Tensor:
        """The whole inner loss."""
        loss = self.data_loss(self.logits(params, batch[0]), batch[1], hyper)
        return self.with_penalty(loss, params, self.split_hyper(hyper))

    def outer_loss(self, params: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy on the outer batch."""
        return self.data_loss(self.logits(params, self.outer_batch[0]), self.outer_batch[1], None)

    def start(self) -> list[Tensor]:
        """Parameters to start from, copies that need gradients."""
        return [part.clone().requires_grad_() for part in self.split(self.flat_params)]

    def learned(self) -> Tensor:
        """Hyperparameters as a leaf of their own."""
        return self.hyper.clone().requires_grad_()

    def module(self) -> Network:
        """The model as a module, at the starting parameters."""
        return Network(self, self.start())


class Network(nn.Module):
    """Logits of a `PyTorchProblem`, as libraries want them that work on modules."""

    def __init__(self, problem: PyTorchProblem, params: Sequence[Tensor]) -> None:
        super().__init__()
        self._problem = problem
        self._names = [f"part{index}" for index in range(len(params))]
        for name, part in zip(self._names, params, strict=True):
            self.register_parameter(name, nn.Parameter(part.detach()))

    def forward(self, images: Tensor) -> Tensor:
        """See `PyTorchProblem.logits`."""
        return self._problem.logits([getattr(self, name) for name in self._names], images)
