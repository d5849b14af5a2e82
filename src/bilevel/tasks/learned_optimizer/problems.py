"""What optimizers are learned and compared on: random quadratic functions, and a small network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel.images import Images, gather
from bilevel.models.mlp import MLP
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.tracing import traced


class Family(ABC):
    """Problems of one kind and size, drawn for every seed; `problem` has the losses of any of them."""

    problem: Problem

    def __init__(self, study: str, seeds: Sequence[int], device: torch.device) -> None:
        self._study, self._seeds, self._device = study, list(seeds), device

    @abstractmethod
    def start(self, purpose: str, number: int) -> Tensor:
        """First parameters (S, P) of problem `number` of a purpose, such as its test."""

    @abstractmethod
    def draw(self, purpose: str, number: int, first: int, steps: int) -> tuple[Sequence[Batch], Batch]:
        """Inner batches of `steps` steps from step `first` on, and an outer batch."""

    def generators(self, what: str, number: int) -> list[torch.Generator]:
        """One for each seed."""
        return [generator(self._study, what, seed, number) for seed in self._seeds]


class Quadratics(Family):
    """‖W x − y‖², with W and y of independent normal numbers; several functions at once, each with an x of its own.

    The inner loss is the sum over functions, so that each is optimized as it would be alone; the outer loss their mean.
    x starts at normal numbers with deviation 0.01.
    """

    def __init__(self, study: str, seeds: Sequence[int], device: torch.device, dimension: int, count: int) -> None:
        super().__init__(study, seeds, device)
        self._shape = (count, dimension)
        self.problem = traced(Problem(self._inner, self._outer))

    def start(self, purpose: str, number: int) -> Tensor:
        """See `Family`."""
        draws = self.generators(f"{purpose} start {self._shape[1]}", number)
        return 0.01 * torch.stack([torch.randn(self._shape, generator=each).flatten() for each in draws]).to(
            self._device
        )

    def draw(self, purpose: str, number: int, first: int, steps: int) -> tuple[Sequence[Batch], Batch]:
        """See `Family`; all batches are W (S, n, d, d) and y (S, n, d)."""
        draws = self.generators(f"{purpose} functions {self._shape[1]}", number)
        matrices = torch.stack([torch.randn((*self._shape, self._shape[1]), generator=each) for each in draws])
        targets = torch.stack([torch.randn(self._shape, generator=each) for each in draws])
        batch = matrices.to(self._device), targets.to(self._device)
        return [batch] * steps, batch

    def _inner(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        matrices, targets = batch
        # not a batched product, whose recording would take the parameters of all seeds for one contiguous tensor
        products = (matrices * params.view(*self._shape).unsqueeze(-2)).sum(-1)
        squares: Tensor = (products - targets).square()
        return squares.sum()

    def _outer(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return self._inner(params, hyper, batch) / self._shape[0]


class Networks(Family):
    """Cross-entropy of a network with one hidden layer of sigmoid units, on batches of images.

    sources: images (N, pixels) with labels by purpose, of each seed. The outer loss is that of other images of the same
    set than those of the step.
    """

    def __init__(
        self,
        study: str,
        seeds: Sequence[int],
        device: torch.device,
        sizes: tuple[int, int, int],
        batches: tuple[int, int],
        sources: dict[str, list[Images]],
    ) -> None:
        super().__init__(study, seeds, device)
        self._network, self._sources = MLP(sizes, "sigmoid"), sources
        self._units, (self._batch_size, self._outer_batch_size) = sizes[1], batches
        self.problem = traced(Problem(self._network.loss, self._network.loss))

    def start(self, purpose: str, number: int) -> Tensor:
        """See `Family`."""
        draws = self.generators(f"{purpose} start {self._units}", number)
        return torch.stack([self._network.initial(each) for each in draws]).to(self._device)

    def draw(self, purpose: str, number: int, first: int, steps: int) -> tuple[Sequence[Batch], Batch]:
        """See `Family`."""
        sources = self._sources[purpose]
        draws = self.generators(f"{purpose} batches {number}", first)
        ids = [
            torch.randint(len(source.labels), (steps * self._batch_size + self._outer_batch_size,), generator=each)
            for source, each in zip(sources, draws, strict=True)
        ]
        sizes = [steps * self._batch_size, self._outer_batch_size]
        inner, outer = torch.split(torch.stack(ids).to(self._device), sizes, -1)
        return [gather(sources, part) for part in torch.split(inner, self._batch_size, -1)], gather(sources, outer)
