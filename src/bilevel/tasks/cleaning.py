"""Data hyper-cleaning, as far as both protocols share it: a weight for every training sample, half of them mislabelled.

The inner loss is the mean of sigmoid(λᵢ) · cross-entropyᵢ over a batch of training samples, the outer loss the
cross-entropy of a batch of clean samples. Source: deck 000; Franceschi et al. 2017, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.data import Dataset, Split
from bilevel.images import Images, check_sizes, counts_of, gather, splits_of
from bilevel.metrics import auc
from bilevel.models import convnet
from bilevel.optimizers import Momentum
from bilevel.outer import Adam
from bilevel.problem import Batch
from bilevel.randomness import generator
from bilevel.results import Histogram, Metrics
from bilevel.runs import OuterLoop
from bilevel.settings import Count, NotNegative, Positive, Settings, SettingsError

BINS = 20
CHUNK = 500


class CleaningSettings(Settings):
    """Settings of hyper-cleaning; the defaults are those of the published run.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split.
    noise: probability that a training label is replaced by a uniform draw over all ten.
    outer_steps, inner_steps: number of hyperparameter updates, and of inner steps for each.
    batch_size: of inner and of outer batches.
    learning_rate, momentum, weight_decay: of the inner optimizer. outer_learning_rate: of the Adam that moves λ.
    """

    train_size: Count = 1000
    validation_size: Count = 1500
    test_size: Count | None = None
    noise: Annotated[float, Field(ge=0, le=1)] = 0.5
    outer_steps: Count = 25
    inner_steps: Count = 50
    batch_size: Count = 64
    learning_rate: Positive = 0.025
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-3
    outer_learning_rate: Positive = 1.0


class Share(NamedTuple):
    """One seed's data: training images with noisy labels and whether each is right, validation and test sets.

    Images are normalized to [−1, 1], as the network takes them (`convnet.patches`, (N, 196, 16)).
    """

    train: Images
    right: Tensor
    validation: Images
    test: Images


class Batches(Sequence[Batch]):
    """Inner batches (images, labels, ids), gathered when asked for from ids (T, S, B)."""

    def __init__(self, shares: Sequence[Share], ids: Tensor) -> None:
        self._shares, self._ids = shares, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # slices are not needed
        ids = self._ids[index]
        images, labels = gather([share.train for share in self._shares], ids)
        return images, labels, ids


def weighted_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean of sigmoid(λᵢ) · cross-entropyᵢ over a training batch."""
    images, labels, ids = batch
    losses = cross_entropy(convnet.forward(params, images), labels, reduction="none")
    return (losses * torch.sigmoid(hyper.gather(0, ids))).mean()


def plain_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy over a clean batch."""
    images, labels = batch
    return cross_entropy(convnet.forward(params, images), labels)


class Cleaning(OuterLoop):
    """What both protocols share; a protocol says how data are split and what depends on the seed."""

    settings_class = CleaningSettings
    one_by_one_on_cpu = True
    outer_set: ClassVar[Literal["validation_size", "test_size"]] = "validation_size"

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Split, corrupt and normalize the data of every seed."""
        assert isinstance(settings, CleaningSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.outer_steps = settings.outer_steps
        self.optimizer = Momentum(
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.shares = [self._share(dataset, self.data_seed(seed)) for seed in self.seeds]

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or an outer batch the set that it is drawn from."""
        assert isinstance(settings, CleaningSettings)
        test = check_sizes(settings, name, counts)
        outer = {"validation_size": settings.validation_size, "test_size": test}
        if outer[cls.outer_set] < settings.batch_size:
            raise SettingsError(
                f"{cls.outer_set}: outer batches of {settings.batch_size} are drawn from {outer[cls.outer_set]} images"
            )

    def data_seed(self, seed: int) -> int:
        """The seed that splits the data and corrupts the labels."""
        return seed

    def initial_seed(self, seed: int) -> int:
        """The seed of the first parameters."""
        return seed

    def outer_source(self, share: Share) -> Images:
        """Where outer batches come from."""
        return share.validation

    def order(self, count: int, official: bool, seed: int) -> Tensor:
        """Order in which the images of the split that is divided, an official training set or not, are handed out."""
        return torch.randperm(count, generator=generator(self.study, "split", seed))

    def start(self) -> tuple[Tensor, Tensor]:
        """Network at its first parameters, and λ = 0: every sample has weight one half."""
        params = torch.stack(
            [convnet.initial(generator(self.study, "initialization", self.initial_seed(seed))) for seed in self.seeds]
        ).to(self.device)
        return self.optimizer.init(params), params.new_zeros(len(self.seeds), self.settings.train_size)

    def outer_optimizer(self) -> Adam:
        """Adam with its default decay rates."""
        return Adam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """Training ids with replacement for every inner step; one outer batch without."""
        s = self.settings
        inner, outer = [], []
        for seed, share in zip(self.seeds, self.shares, strict=True):
            draws = generator(self.study, "batches", seed, step)
            inner.append(torch.randint(s.train_size, (s.inner_steps, s.batch_size), generator=draws))
            outer.append(torch.randperm(len(self.outer_source(share).labels), generator=draws)[: s.batch_size])
        ids = torch.stack(inner, dim=1).to(self.device)
        outer_batch = gather([self.outer_source(share) for share in self.shares], torch.stack(outer).to(self.device))
        return Batches(self.shares, ids), outer_batch

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """`test_accuracy`, and `noise_auc`: how well the weights tell right from wrong training labels."""
        params = self.optimizer.params(state)
        return {
            "test_accuracy": self._accuracies(params, [share.test for share in self.shares]),
            "noise_auc": torch.tensor(
                [auc(row, share.right) for row, share in zip(hyper.cpu(), self.shares, strict=True)],
                dtype=torch.float64,
            ),
        }

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """`test_accuracy_max` (over the evaluations before each outer step), final test accuracy and AUC."""
        accuracies = torch.stack([metrics["test_accuracy"] for metrics in trace])
        return {
            "test_accuracy_max": accuracies[:-1].max(0).values,
            "test_accuracy_final": accuracies[-1],
            "noise_auc": trace[-1]["noise_auc"],
        }

    def histograms(self, hyper: Tensor) -> list[Histogram]:
        """Weights sigmoid(λ) of rightly and wrongly labelled samples, 20 bins on [0, 1]."""
        return [
            row
            for seed, values, share in zip(self.seeds, hyper.cpu(), self.shares, strict=True)
            for group, members in (("clean", share.right), ("corrupted", ~share.right))
            for row in _histogram(seed, group, torch.sigmoid(values[members]))
        ]

    def _accuracies(self, params: Tensor, sets: Sequence[Images]) -> Tensor:
        return torch.tensor(
            [accuracy(row, images) for row, images in zip(params, sets, strict=True)], dtype=torch.float64
        )

    def _share(self, dataset: Dataset, seed: int) -> Share:
        s = self.settings
        splits = splits_of(dataset)
        divided, tested = splits["train"], splits["test"]
        order = self.order(len(divided.labels), "train" in dataset.splits, seed)
        train, validation, test = order.tensor_split([s.train_size, s.train_size + s.validation_size])
        if tested is not divided:
            test = torch.arange(len(tested.labels))
        labels, right = self._corrupt(divided.labels[train], seed)
        return Share(
            Images(self._normalized(divided.images[train]), labels.to(self.device)),
            right,
            self._images(divided, validation),
            self._images(tested, test[: s.test_size]),
        )

    def _corrupt(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        draws = generator(self.study, "corruption", seed)
        replaced = torch.rand(len(labels), generator=draws) < self.settings.noise
        noisy = torch.where(replaced, torch.randint(10, (len(labels),), generator=draws), labels)
        return noisy, noisy == labels

    def _images(self, split: Split, ids: Tensor) -> Images:
        return Images(self._normalized(split.images[ids]), split.labels[ids].to(self.device))

    def _normalized(self, images: Tensor) -> Tensor:
        return convnet.patches(images.to(self.device, torch.float32).div_(127.5).sub_(1))


@torch.no_grad()
def accuracy(params: Tensor, images: Images) -> float:
    """Fraction of images whose class has the largest logit."""
    hits = sum(int((convnet.forward(params, part.images).argmax(-1) == part.labels).sum()) for part in _chunks(images))
    return hits / len(images.labels)


def _chunks(images: Images) -> Iterator[Images]:
    for start in range(0, len(images.labels), CHUNK):
        yield Images(images.images[start : start + CHUNK], images.labels[start : start + CHUNK])


def _histogram(seed: int, group: str, weights: Tensor) -> Iterator[Histogram]:
    edges = [index / BINS for index in range(BINS + 1)]
    bins = (weights * BINS).long().clamp_(0, BINS - 1)
    for index, count in enumerate(torch.bincount(bins, minlength=BINS).tolist()):
        yield Histogram(seed, "sample_weight", group, edges[index], edges[index + 1], count)
