"""Teacher for images: LeNet-5 trained on the training images alone, and the division of the data that it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.models import lenet
from bilevel.optimizers import Adam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.settings import SettingsError
from bilevel.teachers.base import Teacher, TeacherSettings, Trained
from bilevel.tracing import traced

Count = Annotated[int, Field(ge=1)]

SETS = ("train", "validation", "test")
CHUNK = 50  # images whose activations stay in a core's cache


class ConvnetSettings(TeacherSettings):
    """Settings of the teacher.

    train_size, validation_size, test_size: numbers of images. Without test_size, all of an official test split, or all
        that is left.
    epochs: passes over the training images.
    batch_size: of a step; what is left of a pass at its end is not used.
    learning_rate: of Adam.
    """

    train_size: Count = 3000
    validation_size: Count = 1000
    test_size: Count | None = None
    epochs: Count = 20
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3


class Convnet(Teacher):
    """LeNet-5 (`bilevel.models.lenet`) with plain cross-entropy, by Adam; each seed divides the data anew.

    Tensors: `parameters` (61706,); `pixels` (2,), mean and deviation of the training images' pixels (black 0, white 1),
    by which all images are standardized; `<set>_ids` and `<set>_labels` (n,) of `SETS`, places of the images in their
    split and what these show. Test images are of the official test split where there is one, otherwise, as the others,
    of all images. Metrics: `<set>_accuracy`.

    Source: Gorpinich, Bakhteev and Strijov 2022, whose teachers are ResNets.
    """

    settings_class: ClassVar[type[TeacherSettings]] = ConvnetSettings

    def __init__(self, name: str, settings: TeacherSettings, dataset: Dataset | None, device: torch.device) -> None:
        assert isinstance(settings, ConvnetSettings)
        assert dataset is not None
        self._name, self._settings, self._device = name, settings, device
        self.check_data(settings, dataset.name, {name: len(split.labels) for name, split in dataset.splits.items()})
        self._dataset = dataset

    @classmethod
    def check_data(cls, settings: TeacherSettings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or a batch the training images."""
        assert isinstance(settings, ConvnetSettings)
        if name is None:
            raise SettingsError("data: a data set is needed")
        divided = counts["train" if "train" in counts else "all"]
        wanted = settings.train_size + settings.validation_size
        test = counts.get("test", divided - wanted)
        if wanted > divided or test < 1 or (settings.test_size or 0) > test:
            raise SettingsError(
                f"train_size {settings.train_size}, validation_size {settings.validation_size} and test_size "
                f"{settings.test_size} do not fit {name} with {counts}"
            )
        if settings.batch_size > settings.train_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from the {settings.train_size} training images"
            )

    def train(self, seed: int) -> Trained:
        """See `Teacher`."""
        ids = self._divided(seed)
        splits = splits_of(self._dataset)
        chosen = {name: Split(splits[name].images[ids[name]], splits[name].labels[ids[name]]) for name in SETS}
        values = chosen["train"].images.double() / 255
        pixels = torch.stack([values.mean(), values.std()])
        images = {name: standardized(split.images, pixels).to(self._device) for name, split in chosen.items()}
        labels = {name: split.labels.to(self._device) for name, split in chosen.items()}
        parameters = self._fit(seed, images["train"], labels["train"])
        tensors = {"parameters": parameters.cpu(), "pixels": pixels}
        metrics = {}
        for name in SETS:
            tensors |= {f"{name}_ids": ids[name], f"{name}_labels": chosen[name].labels}
            right = logits(parameters, images[name]).argmax(-1) == labels[name]
            metrics[f"{name}_accuracy"] = float(right.double().mean())
        return Trained(tensors, metrics)

    def _divided(self, seed: int) -> dict[str, Tensor]:
        """Places of each set's images in its split."""
        s, splits = self._settings, splits_of(self._dataset)
        order = torch.randperm(len(splits["train"].labels), generator=generator(self._name, "split", seed))
        train, validation, test = order.tensor_split([s.train_size, s.train_size + s.validation_size])
        if splits["test"] is not splits["train"]:
            test = torch.randperm(len(splits["test"].labels), generator=generator(self._name, "test", seed))
        return {"train": train.clone(), "validation": validation.clone(), "test": test[: s.test_size].clone()}

    def _fit(self, seed: int, images: Tensor, labels: Tensor) -> Tensor:
        s = self._settings
        params = lenet.initial(generator(self._name, "initialization", seed)).to(self._device)
        optimizer, problem = Adam(learning_rate=s.learning_rate), traced(Problem(loss, loss))
        state = optimizer.init(params.unsqueeze(0))
        derivatives = Derivatives(problem, state.new_zeros(1, 0))
        for epoch in range(s.epochs):
            order = torch.randperm(s.train_size, generator=generator(self._name, "batches", seed, epoch))
            for ids in torch.split(order.to(self._device), s.batch_size)[: s.train_size // s.batch_size]:
                optimizer.advance_(derivatives, state, (images[ids].unsqueeze(0), labels[ids].unsqueeze(0)))
        return optimizer.params(state)[0].clone()


def splits_of(dataset: Dataset) -> dict[str, Split]:
    """The split that the images of each of `SETS` are taken from."""
    divided = dataset.splits["train" if "train" in dataset.splits else "all"]
    return {"train": divided, "validation": divided, "test": dataset.splits.get("test", divided)}


def standardized(images: Tensor, pixels: Tensor) -> Tensor:
    """Images (N, 1, 28, 28) of bytes less their mean, by their deviation, which are `pixels` (2,)."""
    mean, deviation = pixels.tolist()
    return images.float().div_(255).sub_(mean).div_(deviation)


def loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed over a batch (images, labels); no hyperparameters."""
    images, labels = batch
    return cross_entropy(lenet.forward(params, images), labels)


@torch.no_grad()
def logits(parameters: Tensor, images: Tensor) -> Tensor:
    """(N, 10) of standardized images (N, 1, 28, 28)."""
    return torch.cat([lenet.forward(parameters, part) for part in torch.split(images, CHUNK)])


TEACHER = Convnet
