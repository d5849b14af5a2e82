"""Small float64 problems that every method is held against, each for three seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, tanh

import bilevel

SEEDS = 3
Loss = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """`whole_inner_loss` is the inner loss with the penalty written out, for the reference."""

    name: str
    problem: bilevel.Problem
    whole_inner_loss: Loss
    params: Tensor
    hyper: Tensor
    batches: list[Any]
    outer_batch: Any

    def seed(self, index: int) -> Case:
        """The same case for one seed, without the seed axis."""
        from bilevel.problem import map_batch

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index]

        return Case(
            self.name,
            self.problem,
            self.whole_inner_loss,
            self.params[index],
            self.hyper[index],
            [map_batch(pick, batch) for batch in self.batches],
            map_batch(pick, self.outer_batch),
        )

    def shortened(self, steps: int) -> Case:
        return replace(self, batches=self.batches[:steps])


def estimate(method: str, optimizer: Any, case: Case, **chosen: Any) -> bilevel.hypergradients.Estimate:
    """What a method with these settings says of the whole case."""
    return bilevel.hypergradients.create(method, **chosen)(
        case.problem, optimizer, optimizer.init(case.params), case.hyper, case.batches, case.outer_batch
    )


def central_difference(optimizer: Any, case: Case, width: float = 1e-6) -> Tensor:
    """The hypergradient of one seed by differences of outer losses."""

    def outer(hyper: Tensor) -> Tensor:
        return estimate("none", optimizer, replace(case, hyper=hyper)).outer_loss

    units = torch.eye(case.hyper.numel(), dtype=torch.float64) * width
    return torch.stack([(outer(case.hyper + unit) - outer(case.hyper - unit)) / (2 * width) for unit in units])


def _randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def _labels(*shape: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def quadratic(steps: int) -> Case:
    """½ (w−b)ᵀ G (w−b) + λ·Cw + ½ exp(λ₀) |w|²; the outer loss depends on λ directly too."""
    factor, coupling = _randn(5, 5, seed=0), _randn(3, 5, seed=1)
    curvature = factor @ factor.T / 5 + torch.eye(5, dtype=torch.float64)

    def inner(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (w - b) @ curvature @ (w - b) + h @ coupling @ w + 0.5 * h[0].exp() * (w * w).sum()

    def outer(w: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return (w * w).sum() + 10 * (w.sin() ** 2).sum() + (h * b[:3]).sum() + 0.1 * h.exp().sum()

    batches = [_randn(SEEDS, 5, seed=10 + t) for t in range(steps)]
    return Case(
        "quadratic",
        bilevel.Problem(inner, outer),
        inner,
        _randn(SEEDS, 5, seed=2),
        _randn(SEEDS, 3, seed=3, scale=0.3),
        batches,
        _randn(SEEDS, 5, seed=4),
    )


def sample_weights(steps: int) -> Case:
    """Logistic regression, 3 classes, with the weight sigmoid(λᵢ) on sample i; batches repeat samples."""
    features, labels = _randn(12, 4, seed=20), _labels(12, classes=3, seed=21)

    def inner(w: Tensor, h: Tensor, ids: Tensor) -> Tensor:
        losses = cross_entropy(features[ids] @ w.view(4, 3), labels[ids], reduction="none")
        return (losses * torch.sigmoid(h[ids])).mean()

    def outer(w: Tensor, h: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(batch[0] @ w.view(4, 3), batch[1])

    batches = [_labels(SEEDS, 6, classes=12, seed=30 + t) for t in range(steps)]
    return Case(
        "sample_weights",
        bilevel.Problem(inner, outer),
        inner,
        _randn(SEEDS, 12, seed=22, scale=0.3),
        _randn(SEEDS, 12, seed=23, scale=0.5),
        batches,
        (_randn(SEEDS, 7, 4, seed=24), _labels(SEEDS, 7, classes=3, seed=25)),
    )


MLP = bilevel.Layout({"w1": (5, 4), "b1": (4,), "w2": (4, 3), "b2": (3,)})


def _mlp_loss(w: Tensor, h: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    p = MLP.split(w)
    logits = tanh(batch[0] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
    return -log_softmax(logits, -1).gather(-1, batch[1].unsqueeze(-1)).mean()


def _mlp_case(name: str, sizes: list[int] | None, hyper_size: int, closed_form: bool, steps: int) -> Case:
    penalty = bilevel.penalties.L2(sizes)

    def whole(w: Tensor, h: Tensor, batch: Any) -> Tensor:
        groups = [1] * MLP.size if sizes is None else sizes
        coefficients = h.exp().repeat_interleave(torch.tensor(groups), output_size=MLP.size)
        return _mlp_loss(w, h, batch) + 0.5 * (coefficients * w * w).sum()

    problem = bilevel.Problem(_mlp_loss, _mlp_loss, penalty) if closed_form else bilevel.Problem(whole, _mlp_loss)
    return Case(
        name,
        problem,
        whole,
        _randn(SEEDS, MLP.size, seed=40, scale=0.5),
        _randn(SEEDS, hyper_size, seed=41, scale=0.5) - 3,
        [(_randn(SEEDS, 6, 5, seed=50 + t), _labels(SEEDS, 6, classes=3, seed=60 + t)) for t in range(steps)],
        (_randn(SEEDS, 8, 5, seed=42), _labels(SEEDS, 8, classes=3, seed=43)),
    )


def mlp(steps: int) -> Case:
    return _mlp_case("mlp", None, MLP.size, closed_form=True, steps=steps)


def mlp_groups(steps: int) -> Case:
    return _mlp_case("mlp_groups", list(MLP.sizes), 4, closed_form=True, steps=steps)


def mlp_written_out(steps: int) -> Case:
    return _mlp_case("mlp_written_out", None, MLP.size, closed_form=False, steps=steps)


CASES = [quadratic, sample_weights, mlp, mlp_groups, mlp_written_out]

FIRST, SECOND = (bilevel.optimizers.Learned(start, scale=scale) for start, scale in ((0, "log"), (1, "logit")))
SCHEDULE = bilevel.optimizers.Learned(0, steps=3, scale="logit")
LINEAR = bilevel.optimizers.Learned(2, scale="linear")


def by_group(case: Case) -> dict[str, bilevel.optimizers.Optimizer]:
    """Optimizers with settings of two groups of the case's parameters, by a schedule where it has entries for one."""
    first, steps = case.params.shape[-1] // 3, 2 if case.hyper.shape[-1] > 3 else 1
    sizes = (first, case.params.shape[-1] - first)
    rate = bilevel.optimizers.Learned(0, steps=steps, sizes=sizes)
    factor = bilevel.optimizers.Learned(1, sizes=sizes, scale="logit")
    decay = bilevel.optimizers.Learned(0, sizes=sizes, scale="linear")
    return {
        "sgd_groups": bilevel.optimizers.SGD(learning_rate=rate, weight_decay=decay),
        "momentum_groups": bilevel.optimizers.Momentum(learning_rate=rate, momentum=factor, weight_decay=decay),
        "nesterov_groups": bilevel.optimizers.Momentum(learning_rate=rate, momentum=factor, nesterov=True),
        "adam_groups": bilevel.optimizers.Adam(learning_rate=rate, weight_decay=decay),
    }


OPTIMIZERS = {
    "sgd": bilevel.optimizers.SGD(learning_rate=0.1),
    "sgd_decay": bilevel.optimizers.SGD(learning_rate=0.1, weight_decay=0.05),
    "sgd_learned": bilevel.optimizers.SGD(learning_rate=SCHEDULE, weight_decay=LINEAR),
    "momentum": bilevel.optimizers.Momentum(learning_rate=0.05, momentum=0.9),
    "momentum_decay": bilevel.optimizers.Momentum(learning_rate=0.05, momentum=0.8, weight_decay=0.05),
    "momentum_learned": bilevel.optimizers.Momentum(learning_rate=FIRST, momentum=SECOND, weight_decay=LINEAR),
    "momentum_schedules": bilevel.optimizers.Momentum(learning_rate=0.05, momentum=SCHEDULE),
    "nesterov": bilevel.optimizers.Momentum(learning_rate=0.05, momentum=0.9, weight_decay=0.05, nesterov=True),
    "nesterov_learned": bilevel.optimizers.Momentum(
        learning_rate=FIRST, momentum=SECOND, weight_decay=LINEAR, nesterov=True
    ),
    "adam": bilevel.optimizers.Adam(learning_rate=0.05),
    "adam_uncorrected": bilevel.optimizers.Adam(learning_rate=0.01, weight_decay=0.05, bias="uncorrected"),
    "adam_first_gradient": bilevel.optimizers.Adam(learning_rate=0.05, bias="first_gradient"),
    "momentum_cosine": bilevel.optimizers.Momentum(
        learning_rate=bilevel.optimizers.Cosine(0.1, 0.01, steps=4, every=2), momentum=0.9
    ),
    "clipped_momentum": bilevel.optimizers.Clipped(
        bilevel.optimizers.Momentum(learning_rate=0.05, momentum=0.8, weight_decay=0.05), norm=0.5
    ),
    "clipped_rates": bilevel.optimizers.Clipped(bilevel.optimizers.SGD(learning_rate=SCHEDULE), norm=0.2),
    "clipped_adam": bilevel.optimizers.Clipped(bilevel.optimizers.Adam(learning_rate=0.05), norm=0.3),
    "adam_learned": bilevel.optimizers.Adam(learning_rate=SCHEDULE, weight_decay=LINEAR),
}
