"""Distillation of a convolutional network on images: the set-up of the paper that followed deck 004, in reduced size.

The student sees few of the images that its teacher was trained on. What is as in the paper and its code: the loss, with
the direction of the divergence and without a factor T²; the metaparameters, their first values and their box; the
greedy hypergradient of every step of the student, its clipping and the projection; the prediction of values. What is
not: the networks and the data are smaller; the student has no normalization and a constant rate; metaparameters go
further in a step, since there are fewer steps; all arms train on the same images, where the paper gives those without
metaparameters to learn the validation images too; and the test images are used for nothing but tests.

Source: Gorpinich, Bakhteev and Strijov 2022, with the code of the experiments on CIFAR-10 and Fashion-MNIST.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from bilevel.checkpoint import State
from bilevel.data import Dataset
from bilevel.images import SETS, counts_of, splits_of, standardized
from bilevel.models import lenet, student
from bilevel.optimizers import SGD
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.distillation.search import DistilledSettings, Searched
from bilevel.teachers.convnet import ConvnetSettings
from bilevel.tracing import traced

if TYPE_CHECKING:
    from bilevel.search import Params, Space


BETAS, TEMPERATURES = (0.0, 1.0), (0.1, 10.0)
"""The box of the metaparameters."""
CHUNK = 100  # images at once where metrics are taken


class ImagesSettings(DistilledSettings):
    """Settings of the experiment.

    iterations, prediction, evaluate_every: see `DistilledSettings`.
    student_size: images that the student sees, the first of its teacher's training images, whose order is random.
    batch_size: of a step of the student; what is left of a pass over its images at the end is not used.
    learning_rate: of gradient descent on the student. The gradient grows as 1 / T: without distillation a student
        still learns at 0.5, at low temperatures it diverges at 0.2.
    outer_batch_size: validation images on which the outer loss of an update is taken, drawn anew for each.
    outer_learning_rate, outer_clip: of gradient descent on the metaparameters, whose gradients are cut at ± the latter.
        The paper's rate is 0.1, for 35,000 iterations on CIFAR-10: the default lets metaparameters go as far, and cross
        their box, in 800.
    start: first metaparameters, which methods that do not move them keep: `none`: λ₁ 0, no distillation; `naive`: λ₁
        0.5; both T 1; `random`: λ₁ uniform on (0, 1), T log-uniform on (0.1, 10).
    """

    iterations: Count = 800
    student_size: Count = 500
    batch_size: Count = 50
    learning_rate: Positive = 0.1
    outer_batch_size: Count = 50
    outer_learning_rate: Positive = 4.0
    outer_clip: Positive = 0.01
    start: Literal["none", "naive", "random"] = "random"
    evaluate_every: Count = 80


class Labelled(NamedTuple):
    """Images of all seeds as `student.forward` takes them, (S, n, 256, 16 C), and labels (S, n)."""

    images: Tensor
    labels: Tensor


class Distilled(NamedTuple):
    """What a student learns from: images and labels as in `Labelled`, and the teacher's logits (S, n, 10)."""

    images: Tensor
    labels: Tensor
    teacher: Tensor


def distillation_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """(1 − λ₁) CE + λ₁ KL of one seed, see `DistillationImages`."""
    weight, temperature = hyper.unbind(-1)
    found = student.forward(params, batch.images)
    softened = log_softmax(found / temperature, -1)
    target = log_softmax(batch.teacher / temperature, -1)
    divergence = (target.exp() * (target - softened)).sum(-1).mean()
    return (1 - weight) * cross_entropy(found, batch.labels) + weight * divergence


def validation_loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed over a batch."""
    return cross_entropy(student.forward(params, batch.images), batch.labels)


_PROBLEM = traced(Problem(distillation_loss, validation_loss))
"""Here, so that all tasks of a process share its recordings."""


class ClippedDescent:
    """λ ← λ − η clip(g, ±c), every entry by itself."""

    def __init__(self, learning_rate: float, clip: float) -> None:
        self.learning_rate, self.clip = learning_rate, clip

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """The next hyperparameters, a new tensor of the same shape."""
        return hyper.sub(hypergradient.clamp(-self.clip, self.clip), alpha=self.learning_rate)

    def state(self) -> State:
        """Nothing: a step does not depend on those before."""
        return None

    def restore(self, state: State) -> None:
        """Nothing to do."""


class DistillationImages(Searched):
    """Trains a student (`bilevel.models.student`) by gradient descent on few images, whose loss

        (1 − λ₁) · cross-entropy with the labels + λ₁ · KL(teacher ‖ student), both softened by T,

    has metaparameters λ₁ ∈ [0, 1] and T ∈ [0.1, 10], moved after every step to lower the cross-entropy of validation
    images and put back into this box. Both terms are means over images; there is no factor T². λ₁ multiplies the
    distillation term, as in the paper's code for images; the paper's text has it the other way round.

    Images are divided as the teacher has them: the student's are some of its training images; validation and test
    images are those that it did not see. All arms share them, the student's first parameters and its batches; arms that
    start at random metaparameters share these too.

    Methods: `none` keeps the first metaparameters. With one step at a time `truncated` is the exact greedy
    hypergradient; `darts` its finite difference. `tpe` searches, see `bilevel.tasks.distillation.search`.

    Trace: `test_accuracy`, `validation_accuracy`, `test_cross_entropy`, `validation_cross_entropy`,
    `beta_distillation` (λ₁), `temperature`. Summary: the same at the end, and `teacher_accuracy` on the test images.
    """

    settings_class = ImagesSettings
    teacher_kind = "convnet"
    settings: ImagesSettings
    space: ClassVar[Space] = {"beta_distillation": (*BETAS, False), "temperature": (*TEMPERATURES, True)}

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Everything but the division of the data, which comes with the teachers."""
        assert isinstance(settings, ImagesSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self._dataset = dataset
        self.outer_steps, self.evaluate_every = settings.iterations, settings.evaluate_every
        self.prediction = settings.prediction
        self.optimizer, self.problem = SGD(learning_rate=settings.learning_rate), _PROBLEM
        self._channels = splits_of(dataset)["train"].images.shape[1]
        self._steps_per_epoch = settings.student_size // settings.batch_size
        self._order: tuple[int, Tensor] | None = None

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError without data, or where a batch does not fit the images that it is drawn from."""
        assert isinstance(settings, ImagesSettings)
        if name is None:
            raise SettingsError("data: a data set is needed, the teacher's")
        if settings.batch_size > settings.student_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from the student's {settings.student_size} "
                "images (student_size)"
            )

    @classmethod
    def check_teacher(cls, settings: Settings, teacher: Settings) -> None:
        """SettingsError where student_size or outer_batch_size asks for more images than the teacher has."""
        assert isinstance(settings, ImagesSettings)
        assert isinstance(teacher, ConvnetSettings)
        _check_sizes(settings, {"train": teacher.train_size, "validation": teacher.validation_size})

    def use_teachers(self, teachers: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the division of the data, and the teachers' logits for their students' images.

        Raises SettingsError for teachers of another kind than `convnet` or of other data, and where student_size or
        outer_batch_size asks for more images than the teacher has.
        """
        wanted = {"parameters", "pixels", *(f"{name}_{part}" for name in SETS for part in ("ids", "labels"))}
        self.check_tensors(teachers, wanted)
        for seed, tensors in zip(self.seeds, teachers, strict=True):
            self._check_teacher(seed, tensors)
        self._teachers = [{name: tensor.to(self.device) for name, tensor in tensors.items()} for tensors in teachers]
        self._order = None
        size = self.settings.student_size
        shares = [self._images(tensors, "train", size) for tensors in self._teachers]
        taught = [
            lenet.logits(tensors["parameters"], images)
            for tensors, (images, _) in zip(self._teachers, shares, strict=True)
        ]
        self._train = Distilled(*_stacked(shares), torch.stack(taught))
        self._validation = Labelled(*_stacked([self._images(tensors, "validation") for tensors in self._teachers]))

    def start(self) -> tuple[Tensor, Tensor]:
        """The student's first parameters, the same for all arms, and the first metaparameters (S, 2)."""
        draws = [generator(self.study, "initialization", seed) for seed in self.seeds]
        params = torch.stack([student.initial(one, self._channels) for one in draws])
        hyper = torch.stack([self._first_hyper(seed) for seed in self.seeds])
        return self.optimizer.init(params.to(self.device)), hyper.to(self.device)

    def _first_hyper(self, seed: int) -> Tensor:
        if self.settings.start != "random":
            return torch.tensor({"none": [0.0, 1.0], "naive": [0.5, 1.0]}[self.settings.start])
        weight, power = torch.rand(2, generator=generator(self.study, "metaparameters", seed)).tolist()
        low, high = TEMPERATURES
        return torch.tensor([weight, low * (high / low) ** power])

    def outer_optimizer(self) -> ClippedDescent:
        """Gradient descent with clipped gradients."""
        return ClippedDescent(self.settings.outer_learning_rate, self.settings.outer_clip)

    def project(self, hyper: Tensor) -> Tensor:
        """The nearest point of the box."""
        weight, temperature = hyper.unbind(-1)
        return torch.stack([weight.clamp(*BETAS), temperature.clamp(*TEMPERATURES)], dim=-1)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """The next batch of the student's images, and validation images."""
        outer = self._permutations("outer", step, self._validation)[:, : self.settings.outer_batch_size]
        return self.inner_batches(step), Labelled(*_chosen(self._validation, outer))

    def inner_batches(self, step: int) -> Sequence[Batch]:
        """The next batch of the student's images."""
        epoch, index = divmod(step, self._steps_per_epoch)
        return [Distilled(*_chosen(self._train, self._epoch(epoch)[:, index]))]

    def _epoch(self, epoch: int) -> Tensor:
        """Ids of a pass over the student's images, (S, steps, B)."""
        if self._order is None or self._order[0] != epoch:
            used = self._steps_per_epoch * self.settings.batch_size
            orders = self._permutations("batches", epoch, self._train)[:, :used]
            self._order = epoch, orders.view(len(self.seeds), self._steps_per_epoch, self.settings.batch_size)
        return self._order[1]

    def _permutations(self, purpose: str, step: int, images: Labelled | Distilled) -> Tensor:
        count = images.labels.shape[1]
        orders = [torch.randperm(count, generator=generator(self.study, purpose, seed, step)) for seed in self.seeds]
        return torch.stack(orders).to(self.device)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        params = self.optimizer.params(state)
        found: dict[str, Tensor] = {}
        for name in ("test", "validation"):
            losses, rights = zip(*[self._metrics(index, row, name) for index, row in enumerate(params)], strict=True)
            found[f"{name}_accuracy"] = torch.tensor(rights, dtype=torch.float64)
            found[f"{name}_cross_entropy"] = torch.tensor(losses, dtype=torch.float64)
        return {**found, "beta_distillation": hyper[:, 0].cpu().double(), "temperature": hyper[:, 1].cpu().double()}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        return {**self.evaluate(state, hyper), "teacher_accuracy": self._teacher_accuracy()}

    def hyper_of(self, params: Sequence[Params]) -> Tensor:
        """Metaparameters (S, 2) of a point of `space` for each seed."""
        rows = [[one["beta_distillation"], one["temperature"]] for one in params]
        return torch.tensor(rows, device=self.device)

    def tuned_loss(self, state: Tensor, hyper: Tensor) -> Tensor:
        """What a search lowers, (S,): the cross-entropy of all validation images."""
        params = self.optimizer.params(state)
        losses = [self._metrics(index, row, "validation")[0] for index, row in enumerate(params)]
        return torch.tensor(losses, dtype=torch.float64)

    def _metrics(self, index: int, params: Tensor, name: str) -> tuple[float, float]:
        """Mean cross-entropy of a seed's student, and the share of images it is right about, on all of a set."""
        images, labels = self._images(self._teachers[index], name)
        with torch.no_grad():
            found = torch.cat([student.forward(params, student.patches(part)) for part in torch.split(images, CHUNK)])
        found = found.double()
        return float(cross_entropy(found, labels)), float((found.argmax(-1) == labels).double().mean())

    def _teacher_accuracy(self) -> Tensor:
        shares = []
        for tensors in self._teachers:
            images, labels = self._images(tensors, "test")
            shares.append(float((lenet.logits(tensors["parameters"], images).argmax(-1) == labels).double().mean()))
        return torch.tensor(shares, dtype=torch.float64)

    def _images(self, teacher: Mapping[str, Tensor], name: str, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Standardized images (n, C, rows, columns) of one of a teacher's sets or the first, and labels (n,)."""
        split, ids = splits_of(self._dataset)[name], teacher[f"{name}_ids"][:size].cpu()
        images = standardized(split.images[ids].to(self.device), *teacher["pixels"].tolist())
        return images, split.labels[ids].to(self.device)

    def _check_teacher(self, seed: int, tensors: Mapping[str, Tensor]) -> None:
        """SettingsError where it cannot teach these students."""
        for name, split in splits_of(self._dataset).items():
            ids, labels = tensors[f"{name}_ids"].cpu(), tensors[f"{name}_labels"].cpu()
            if int(ids.max()) >= len(split.labels) or not torch.equal(split.labels[ids], labels):
                raise SettingsError(
                    f"teacher: that of seed {seed} was trained on other data than {self._dataset.name}; name one whose "
                    f"data is {self._dataset.name}"
                )
        _check_sizes(self.settings, {name: len(tensors[f"{name}_ids"]) for name in ("train", "validation")})


def _check_sizes(settings: ImagesSettings, counts: Mapping[str, int]) -> None:
    for setting, count, name in (
        ("student_size", settings.student_size, "train"),
        ("outer_batch_size", settings.outer_batch_size, "validation"),
    ):
        if count > counts[name]:
            raise SettingsError(
                f"{setting}: {count} of the teacher's {name} images are asked for, it has {counts[name]}"
            )


def _stacked(shares: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images as the student takes them, and labels, of all seeds."""
    return torch.stack([student.patches(images) for images, _ in shares]), torch.stack([labels for _, labels in shares])


def _chosen(images: Labelled | Distilled, ids: Tensor) -> list[Tensor]:
    """Of each seed the rows `ids` (S, B) of every tensor."""
    seeds = torch.arange(len(ids), device=ids.device).unsqueeze(-1)
    return [tensor[seeds, ids] for tensor in images]


TASK = DistillationImages
