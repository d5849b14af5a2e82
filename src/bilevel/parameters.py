"""Flat parameter vectors: names and shapes of their slices, and modules as pure functions of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Layout:
    """Names and shapes of the consecutive slices of a flat vector of `size` entries.

    >>> layout = Layout({"weight": (10, 784), "bias": (10,)})
    >>> layout.size
    7850
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes: list[int] = [math.prod(shape) for shape in self.shapes.values()]
        self.size: int = sum(self.sizes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` (..., size), each (..., *shape).

        Raises ValueError where the last axis is not `size` long.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(f"expected a last axis of {self.size} entries, got shape {tuple(flat.shape)}")
        # one split and not many narrows: its backward is a single concatenation
        pieces = torch.split(flat, self.sizes, dim=-1)
        return {
            name: piece.reshape((*piece.shape[:-1], *shape))
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Flat vector (size,) of tensors with this layout's names and shapes.

        Raises ValueError for a missing, additional or wrongly shaped tensor.
        """
        if set(tensors) != set(self.shapes):
            raise ValueError(f"expected tensors named {sorted(self.shapes)}, got {sorted(tensors)}")
        for name, shape in self.shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes])

    def __repr__(self) -> str:
        return f"Layout({self.shapes})"


def functional(module: nn.Module) -> tuple[Layout, Callable[..., Any]]:
    """A module as a pure function: `(layout, forward)` with `forward(params (P,), *inputs)`.

    The module is copied. Normalization layers use the statistics of the batch, so that `forward` depends on its
    arguments alone. The module's present parameters as a flat vector are
    `layout.join(dict(module.named_parameters()))`.

    Raises ValueError for a module that draws random numbers in training mode (dropout).
    """
    module = copy.deepcopy(module)
    for name, part in module.named_modules():
        probability = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(probability, float) and probability > 0 and part.training:
            raise ValueError(
                f"{name or type(part).__name__}: dropout draws random numbers, so the loss would not be a function of "
                "its arguments; call module.eval(), or set p=0"
            )
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    buffers = dict(module.named_buffers())
    layout = Layout({name: tuple(p.shape) for name, p in module.named_parameters()})

    def forward(params: Tensor, *inputs: Any) -> Any:
        # copies, so that what a module writes into a buffer is gone with the call
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(module, {**layout.split(params), **copies}, inputs)

    return layout, forward
