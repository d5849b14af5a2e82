"""How much there is to do in a run, by its settings: what a measured time is scaled by, for `bilevel plan`.

The unit is arbitrary; only the ratio of two runs of one task with the same method means something, and that within
about a factor of two: constants are fitted to seconds of one core at small and at large settings. This is no part of
the tasks, so that a better estimate re-runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bilevel.settings import Settings

Counts = Mapping[str, int]
"""Number of items of each split of the data set; empty without one."""

TOGETHER = frozenset({"algorithms", "bias", "chains", "memory", "numeric", "search_function"})
"""Tasks whose problems are so small that seeds of a job take as long together as one of them."""


def of_task(name: str, settings: Settings, counts: Counts) -> float:
    """Work of one seed; 1 where nothing is known of the task."""
    return float(_TASKS[name](settings, counts)) if name in _TASKS else 1.0


def alike(name: str) -> list[str]:
    """Tasks of the same measure, such as an experiment as published and corrected."""
    return [other for other, measure in _TASKS.items() if name in _TASKS and measure is _TASKS[name]]


def of_teacher(kind: str, settings: Settings, counts: Counts) -> float:
    """Work of one teacher; 1 where nothing is known of its kind."""
    return float(_TEACHERS[kind](settings, counts)) if kind in _TEACHERS else 1.0


def _left(s: Any, counts: Counts) -> int:
    """Images of the test set: as many as are asked for, all of an official test split, or all that are left."""
    if s.test_size is not None:
        return int(s.test_size)
    if "test" in counts:
        return counts["test"]
    used = int(s.train_size + getattr(s, "validation_size", 0))
    return max(0, sum(counts.values()) - used)


def _activations(s: Any, counts: Counts) -> float:
    trainings = 4 * s.outer_steps + s.runs * s.outer_steps / s.evaluate_every
    return float(trainings * s.inner_steps * (100 + s.train_size) * (784 / s.pool**2 + 50 * len(s.hidden)))


def _bias(s: Any, counts: Counts) -> float:
    return float(sum(s.steps) + s.outer_steps[-1] * s.inner_steps)


def _cleaning(s: Any, counts: Counts) -> float:
    # images forward and back in training, and forward only in tests after each outer step
    return float(s.outer_steps * (3 * s.inner_steps * s.batch_size + s.validation_size + _left(s, counts)))


def _complexity_control(s: Any, counts: Counts) -> float:
    networks = len(s.log_lambda) if s.hypernetwork == "none" else s.lambdas_per_step
    return float(s.epochs * s.train_size * networks + 30 * len(s.log_lambda) * _left(s, counts))


def _distillation_images(s: Any, counts: Counts) -> float:
    return float(s.iterations * (s.batch_size + s.outer_batch_size))


def _distillation_synthetic(s: Any, counts: Counts) -> float:
    return float(s.iterations)


def _hypernetwork_global(s: Any, counts: Counts) -> float:
    return float(s.steps * s.samples * s.hidden + s.outer_steps * (s.validation_size + s.hidden) / 10)


def _hypernetwork_local(s: Any, counts: Counts) -> float:
    return float(s.outer_steps * (15 + s.inner_steps * s.samples + s.validation_size / 2000))


def _hypernetwork_scatter(s: Any, counts: Counts) -> float:
    trained = sum(s.steps * s.batch_size * min(count, s.most_samples) for count in s.evaluations)
    return float(trained + 10 * s.train_size * 241 + s.validation_size * s.candidates * len(s.evaluations))


def _kernel_logistic(s: Any, counts: Counts) -> float:
    return float(s.outer_steps * s.train_size**2)


def _language_model(s: Any, counts: Counts) -> float:
    def phase(p: Any) -> float:
        # a token of a small network costs the calls of its step
        token = 160_000 + p.hidden * (2 * p.hidden * s.nodes + s.vocabulary)
        return float(p.steps * p.rows * p.length * token)

    return 2 * phase(s.search) + phase(s.retraining)


def _learned_optimizer(s: Any, counts: Counts) -> float:
    coordinates = s.count * s.size if s.problem == "quadratic" else (784 // s.pool**2 + 10) * s.size
    runs = 1 if s.problem == "quadratic" else s.runs
    steps = 3 * s.outer_steps * s.unroll + (s.outer_steps / s.evaluate_every + 4) * runs * s.steps
    # a small problem costs its calls, about as much as five hundred coordinates
    return float(steps * (500 + coordinates))


def _lenet_l2(s: Any, counts: Counts) -> float:
    tests = (s.epochs + s.hyper_epochs) / 2 * (s.validation_size + _left(s, counts)) / 3
    return float((s.epochs + 4 * s.hyper_epochs) * s.train_size + tests)


def _rmad(s: Any, counts: Counts) -> float:
    trainings = 4 * s.outer_steps + s.runs * s.outer_steps / s.evaluate_every
    step = 100_000 + (100 + s.batch_size) * (784 / s.pool**2 + 50 * len(s.hidden))
    return float(trainings * s.inner_steps * step)


def _rotated_mnist(s: Any, counts: Counts) -> float:
    images = (3 * s.epochs + s.retrain_epochs + s.epochs / s.evaluate_every / 2) * s.domain_size
    return float(images * s.domains * s.image_size**2 * s.channels)


def _search_function(s: Any, counts: Counts) -> float:
    return float(s.evaluations * sum(10 + dimensions for dimensions in s.dimensions))


def _self_referential(s: Any, counts: Counts) -> float:
    # every symbol is a step of its own, whose few operations cost their calls
    symbols = (4 * s.inner_steps * s.outer_steps + s.outer_steps / s.evaluate_every) * s.length * s.ticks
    return float(symbols * (2000 + s.batch_size * s.hidden * (s.hidden + s.symbols)))


def _search_network(s: Any, counts: Counts) -> float:
    return float(s.evaluations * s.inner_steps * len(s.hyperparameters))


_TASKS: dict[str, Callable[[Any, Counts], float]] = {
    "activations": _activations,
    "algorithms": lambda s, counts: s.points,
    "bias": _bias,
    "chains": lambda s, counts: s.steps,
    "cleaning_corrected": _cleaning,
    "cleaning_published": _cleaning,
    "complexity_control": _complexity_control,
    "complexity_control_published": _complexity_control,
    "distillation_images": _distillation_images,
    "distillation_synthetic_corrected": _distillation_synthetic,
    "distillation_synthetic_published": _distillation_synthetic,
    "hypernetwork_global": _hypernetwork_global,
    "hypernetwork_local": _hypernetwork_local,
    "hypernetwork_scatter": _hypernetwork_scatter,
    "kernel_logistic": _kernel_logistic,
    "language_model": _language_model,
    "learned_optimizer": _learned_optimizer,
    "lenet_l2": _lenet_l2,
    "memory": lambda s, counts: sum(s.steps),
    "numeric": lambda s, counts: s.decades * s.inner_steps,
    "rmad": _rmad,
    "rotated_mnist_corrected": _rotated_mnist,
    "rotated_mnist_published": _rotated_mnist,
    "search_function": _search_function,
    "search_network": _search_network,
    "self_referential": _self_referential,
}

_TEACHERS: dict[str, Callable[[Any, Counts], float]] = {
    "convnet": lambda s, counts: s.epochs * s.train_size,
    "logistic": lambda s, counts: s.steps,
}
