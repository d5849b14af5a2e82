"""LeNet-5 on handwritten digits with learned L2 coefficients: none, one for all weights, or one for every weight.

Deck 001, "Пример: LeNet на MNIST": the parameters are optimized alone, then the hyperparameters with them by the greedy
algorithm, k differentiated steps of Adam and one update of the coefficients in turn. Three things the slide leaves open
or does otherwise. Coefficients are exp(ρ), so that they stay positive. What the slide calls L_te, the error on the test
set, is here the cross-entropy on a validation set of its own, unless `outer_set` says otherwise: coefficients fitted to
the test set, one for every weight, would say nothing about new digits. And the metrics are all that the slide's numbers
may be, since it does not define them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bilevel import metrics, peak_memory
from bilevel.checkpoint import State
from bilevel.columns import WHOLE_RUN
from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Hypergradient
from bilevel.images import SETS, Batches, Images, Share, check_sizes, counts_of, divide, gather, splits_of, standardized
from bilevel.models import lenet
from bilevel.optimizers import Adam
from bilevel.outer import Adam as OuterAdam
from bilevel.penalties import L2
from bilevel.problem import Batch, Problem
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Histogram, Metrics, Result
from bilevel.runs import OuterLoop, greedy
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tracing import traced

DRAWS = "lenet_l2"
"""What random numbers are drawn for, whatever a study is called: studies that differ in a setting can be compared."""
LEAST_DEVIATION = 1e-3  # of pixels: below it images are taken to be all the same
LOWEST, HIGHEST, BINS = -14.0, -2.0, 48


class LenetSettings(Settings):
    """Settings of the experiment.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    epochs: passes over the training images in which the parameters move alone.
    hyper_epochs: passes in which the hyperparameters move too.
    inner_steps: k, differentiated steps between two updates of the hyperparameters.
    batch_size: of an inner step; what is left of a pass at its end is not used.
    learning_rate: of the inner Adam.
    outer_learning_rate: of the Adam that moves the hyperparameters.
    outer_batch_size: images on which the outer loss of an update is taken, drawn anew for each.
    initial_level: ρ at the start; the coefficient of a weight is exp(ρ), in the penalty ½ Σ exp(ρᵢ) wᵢ².
    regularization: no penalty, one ρ for all weights and biases, or one for each.
    outer_set: where outer batches come from; `test` is what the slide says, and fits the coefficients to the test set.
    train_on: `both` trains on the validation images too, since other arms have used these to tune coefficients; only
        without a penalty.
    """

    train_size: Count = 3000
    validation_size: Count = 1000
    test_size: Count | None = None
    epochs: Count = 20
    hyper_epochs: Count = 20
    inner_steps: Count = 15
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    outer_learning_rate: Positive = 0.05
    outer_batch_size: Count = 125
    initial_level: Annotated[float, Field(ge=-40, le=10)] = -9.0
    regularization: Literal["none", "shared", "individual"] = "individual"
    outer_set: Literal["validation", "test"] = "validation"
    train_on: Literal["train", "both"] = "train"

    @property
    def images(self) -> int:
        """Number of images that parameters are trained on."""
        return self.train_size + (self.validation_size if self.train_on == "both" else 0)

    @property
    def steps_per_epoch(self) -> int:
        """Number of inner steps."""
        return self.images // self.batch_size


class LenetL2(OuterLoop):
    """See the module.

    Training, validation and test images are disjoint and drawn anew for every seed, as are first parameters and
    batches; all methods, all kinds of regularization and all studies of this task share them. Pixels are standardized
    by mean and deviation of the training images. The inner optimizer is the deck's Adam; it goes on from the epochs of
    parameters alone.

    Trace, about every second epoch and at the end: on test data `cross_entropy`, `cross_entropy_softmax` (of softmax
    outputs that a further softmax is applied to, at least 1.46115), `error`, `one_minus_auc` (macro, of probabilities)
    and `one_minus_auc_hard` (of the predicted classes); `validation_cross_entropy`, `validation_error`.
    Summary: the same, and with the suffix `_start` those after the epochs of parameters alone; `level_mean`,
    `level_min`, `level_max` of ρ where there is a penalty.
    Histograms: `log_coefficient`, ρ of the weights and biases of each layer.
    Measurements: `seconds_per_epoch` of parameters alone, `seconds_per_hyper_epoch`, and `hyper_epoch_to_epoch`;
    medians, over the epochs and over the updates, without the time for metrics, over the number of seeds of the job. On
    a CPU they are seconds of the processor, which other jobs beside this one do not add to. Where the system tells
    (Linux, CUDA), `memory_epoch`, `memory_hyper_epoch`, bytes that the last of these epochs and the last update needed
    at most above what was held before it, for all seeds of the job, and `process_hyper_epoch_to_epoch`, the peak of all
    that the process held in that update over that in that epoch.
    """

    settings_class = LenetSettings
    one_by_one_on_cpu = True
    _step_started: float | None
    _held: int | None
    _memory: dict[str, tuple[int, int]]
    _epoch_seconds: list[float]
    _step_seconds: list[float]

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Split and standardize the data of every seed."""
        assert isinstance(settings, LenetSettings)
        assert dataset is not None
        self.settings, self.seeds, self.device = settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.shares = [self._share(dataset, seed) for seed in self.seeds]
        self.steps_per_epoch = settings.steps_per_epoch
        self.outer_steps = settings.hyper_epochs * self.steps_per_epoch // settings.inner_steps
        self.evaluate_every = max(1, 2 * self.steps_per_epoch // settings.inner_steps)
        self.optimizer = Adam(learning_rate=settings.learning_rate, bias="first_gradient")
        self.problem = _PROBLEMS[settings.regularization]
        self._name = "run"
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter
        self._clear()

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or batches the sets that they are drawn from."""
        assert isinstance(settings, LenetSettings)
        test = check_sizes(settings, name, counts)
        outer = settings.validation_size if settings.outer_set == "validation" else test
        if outer < settings.outer_batch_size:
            raise SettingsError(
                f"outer_batch_size: batches of {settings.outer_batch_size} are drawn from the {outer} images of the "
                f"{settings.outer_set} set"
            )
        if settings.train_on == "both" and settings.regularization != "none":
            raise SettingsError(
                "train_on: both: only with regularization: none; coefficients would be tuned on images trained on"
            )
        steps = settings.steps_per_epoch
        if settings.hyper_epochs * steps < settings.inner_steps:
            raise SettingsError(
                f"inner_steps: {settings.hyper_epochs} hyper_epochs of {steps} steps ({settings.images} images "
                f"// batch_size {settings.batch_size}) leave no room for {settings.inner_steps} steps and an update"
            )

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`; adds the measurements."""
        self._name = name
        result = greedy(self, method, name)
        return replace(result, measurements={WHOLE_RUN: self._measured()})

    def start(self) -> tuple[Tensor, Tensor]:
        """State after the epochs of parameters alone, and the hyperparameters, which are as they were at the start."""
        self._clear()
        s = self.settings
        params = torch.stack([lenet.initial(generator(DRAWS, "initialization", seed)) for seed in self.seeds]).to(
            self.device
        )
        state = self.optimizer.init(params)
        count = lenet.LAYOUT.size if s.regularization == "individual" else 1
        hyper = params.new_full((len(self.seeds), count), s.initial_level)
        checkpoint, first = self.checkpoint.part("parameters alone"), 0
        if checkpoint.found is not None:
            first, state = checkpoint.found["epochs"], checkpoint.found["state"]
            self.from_checkpoint(checkpoint.found["measured"])
        derivatives, progress = Derivatives(self.problem, hyper), Progress(self._name, "epoch", first)
        for epoch in range(first, s.epochs):
            held = peak_memory.begin(self.device) if epoch + 1 == s.epochs else None
            started = self._clock()
            batches = self._inner_batches(epoch * self.steps_per_epoch, self.steps_per_epoch)
            for index in range(len(batches)):
                self.optimizer.advance_(derivatives, state, batches[index])
            self._finish()
            self._epoch_seconds.append(self._clock() - started)
            self._record_peak("epoch", held)
            progress.report(epoch + 1, s.epochs)
            checkpoint.keep({"epochs": epoch + 1, "state": state, "measured": self.to_checkpoint()})
        return state, hyper

    def to_checkpoint(self) -> State:
        """What was measured so far."""
        return {"memory": self._memory, "epochs": self._epoch_seconds, "steps": self._step_seconds}

    def from_checkpoint(self, state: State) -> None:
        """See `OuterLoop`."""
        self._memory = {name: (held, peak) for name, (held, peak) in state["memory"].items()}
        self._epoch_seconds, self._step_seconds = state["epochs"], state["steps"]

    def outer_optimizer(self) -> OuterAdam:
        """Adam with its default decay rates."""
        return OuterAdam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """The next k batches of the stream that the epochs of parameters alone began, and an outer batch."""
        self._end_step()
        self._held = peak_memory.begin(self.device) if step + 1 == self.outer_steps else None
        self._step_started = self._clock()
        s = self.settings
        first = s.epochs * self.steps_per_epoch + step * s.inner_steps
        sources = [share.validation if s.outer_set == "validation" else share.test for share in self.shares]
        chosen = [
            torch.randperm(len(source.labels), generator=generator(DRAWS, "outer", seed, step))
            for seed, source in zip(self.seeds, sources, strict=True)
        ]
        ids = torch.stack([order[: s.outer_batch_size] for order in chosen]).to(self.device)
        return self._inner_batches(first, s.inner_steps), gather(sources, ids)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """The metrics of the class."""
        self._end_step()
        return self._metrics(state)

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """The metrics at the end and, with the suffix `_start`, at the beginning; the range of ρ."""
        final = self._metrics(state)
        start = {f"{name}_start": trace[0][name] for name in final}
        if self.settings.regularization == "none":
            return {**final, **start}
        levels = hyper.cpu().double()
        low, high = levels.aminmax(dim=-1)
        return {**final, **start, "level_mean": levels.mean(-1), "level_min": low, "level_max": high}

    def histograms(self, hyper: Tensor) -> list[Histogram]:
        """ρ of the weights and biases of each layer, 48 bins on [−14, −2]; what lies outside counts at the ends."""
        if self.settings.regularization == "none":
            return []
        levels = hyper.expand(len(self.seeds), lenet.LAYOUT.size).cpu()
        return [
            row
            for seed, values in zip(self.seeds, levels, strict=True)
            for layer, members in _by_layer(values)
            for row in _histogram(seed, layer, members)
        ]

    def _inner_batches(self, first: int, count: int) -> Batches:
        """Batches of `count` inner steps from step `first` on, of as many epochs as they are in."""
        last = first + count - 1
        epochs = range(first // self.steps_per_epoch, last // self.steps_per_epoch + 1)
        ids = torch.cat([self._epoch(epoch) for epoch in epochs])[first - epochs[0] * self.steps_per_epoch :][:count]
        return Batches([share.train for share in self.shares], ids.to(self.device))

    def _epoch(self, epoch: int) -> Tensor:
        """Ids of a pass over the training images, (steps, S, B)."""
        size = self.settings.batch_size
        orders = [
            torch.randperm(self.settings.images, generator=generator(DRAWS, "batches", seed, epoch))
            for seed in self.seeds
        ]
        return torch.stack([order[: self.steps_per_epoch * size].view(-1, size) for order in orders], dim=1)

    def _metrics(self, state: Tensor) -> dict[str, Tensor]:
        rows = [
            {**_on_test(row, share.test), **_on_validation(row, share.validation)}
            for row, share in zip(self.optimizer.params(state), self.shares, strict=True)
        ]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def _share(self, dataset: Dataset, seed: int) -> Share:
        ids, splits = divide(dataset, self.settings, DRAWS, seed), splits_of(dataset)
        train = splits["train"].images[ids["train"]].to(torch.float32).div_(255)
        mean, deviation = float(train.mean()), max(float(train.std()), LEAST_DEVIATION)
        if self.settings.train_on == "both":
            ids["train"] = torch.cat([ids["train"], ids["validation"]])
        return Share(*(self._images(splits[name], ids[name], mean, deviation) for name in SETS))

    def _images(self, split: Split, ids: Tensor, mean: float, deviation: float) -> Images:
        images = standardized(split.images[ids].to(self.device), mean, deviation)
        return Images(images, split.labels[ids].to(self.device))

    def _clear(self) -> None:
        self._step_started = None
        self._held = None
        self._memory, self._epoch_seconds, self._step_seconds = {}, [], []

    def _end_step(self) -> None:
        """An outer step takes from `draw` to the next one, or to the metrics before that."""
        if self._step_started is not None:
            self._finish()
            self._step_seconds.append(self._clock() - self._step_started)
            self._record_peak("hyper_epoch", self._held)
            self._step_started = None

    def _record_peak(self, name: str, held: int | None) -> None:
        """Bytes held before, and at the peak since then."""
        peak = None if held is None else peak_memory.peak(self.device)
        if held is not None and peak is not None:
            self._memory[name] = held, peak

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _measured(self) -> dict[str, Tensor]:
        epoch = median(self._epoch_seconds) / len(self.seeds)
        update = median(self._step_seconds) / len(self.seeds)
        hyper_epoch = update * self.steps_per_epoch / self.settings.inner_steps
        found = {
            "seconds_per_epoch": epoch,
            "seconds_per_hyper_epoch": hyper_epoch,
            "hyper_epoch_to_epoch": hyper_epoch / epoch,
        }
        if len(self._memory) == 2:
            (held, peak), (hyper_held, hyper_peak) = self._memory["epoch"], self._memory["hyper_epoch"]
            found |= {
                "memory_epoch": peak - held,
                "memory_hyper_epoch": hyper_peak - hyper_held,
                "process_hyper_epoch_to_epoch": hyper_peak / peak,
            }
        return {name: torch.full((len(self.seeds),), value, dtype=torch.float64) for name, value in found.items()}


_PROBLEMS = {
    kind: traced(Problem(lenet.loss, lenet.loss, penalty))
    for kind, penalty in (("none", None), ("shared", L2([lenet.LAYOUT.size])), ("individual", L2()))
}
"""By the setting `regularization`; here, so that all tasks of a process share their recordings."""


def _on_test(params: Tensor, images: Images) -> dict[str, float]:
    logits, labels = _logits(params, images), images.labels.cpu()
    return {
        "cross_entropy": metrics.cross_entropy(logits, labels),
        "cross_entropy_softmax": metrics.cross_entropy_of_softmax(logits, labels),
        "error": metrics.error(logits, labels),
        "one_minus_auc": 1 - metrics.macro_auc(logits.softmax(-1), labels),
        "one_minus_auc_hard": 1 - metrics.hard_macro_auc(logits, labels),
    }


def _on_validation(params: Tensor, images: Images) -> dict[str, float]:
    logits, labels = _logits(params, images), images.labels.cpu()
    return {
        "validation_cross_entropy": metrics.cross_entropy(logits, labels),
        "validation_error": metrics.error(logits, labels),
    }


def _logits(params: Tensor, images: Images) -> Tensor:
    """(N, 10), in double precision."""
    return lenet.logits(params, images.images).cpu().double()


def _by_layer(values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name of a layer and the entries of `values` (P,) that belong to its weights and biases."""
    layers: dict[str, list[Tensor]] = {}
    for name, part in lenet.LAYOUT.split(values).items():
        layers.setdefault(name.partition(".")[0], []).append(part.flatten())
    for layer, parts in layers.items():
        yield layer, torch.cat(parts)


def _histogram(seed: int, layer: str, levels: Tensor) -> Iterator[Histogram]:
    width = (HIGHEST - LOWEST) / BINS
    bins = ((levels.double() - LOWEST) / width).floor().long().clamp_(0, BINS - 1)
    for index, count in enumerate(torch.bincount(bins, minlength=BINS).tolist()):
        yield Histogram(seed, "log_coefficient", layer, LOWEST + index * width, LOWEST + (index + 1) * width, count)


TASK = LenetL2
