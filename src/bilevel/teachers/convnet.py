"""Teacher for images: LeNet-5 trained on the training images alone, and the division of the data that it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.images import SETS, check_sizes, counts_of, divide, splits_of, standardized
from bilevel.models import lenet
from bilevel.optimizers import Adam
from bilevel.problem import Problem
from bilevel.randomness import generator
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.teachers.base import Teacher, Trained
from bilevel.tracing import traced


class ConvnetSettings(Settings):
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
    learning_rate: Positive = 1e-3


class Convnet(Teacher):
    """LeNet-5 (`bilevel.models.lenet`) with plain cross-entropy, by Adam; each seed divides the data anew.

    Tensors: `parameters`; `pixels` (2,), mean and deviation of the training images' pixels (from 0 to 1, all channels
    together), by which all images are standardized; `<set>_ids` and `<set>_labels` (n,) of `SETS`, places of the images
    in their split and what these show. Test images are of the official test split where there is one, otherwise, as the
    others, of all images. Metrics: `<set>_accuracy`.

    Source: Gorpinich, Bakhteev and Strijov 2022, whose teachers are ResNets.
    """

    settings_class: ClassVar[type[Settings]] = ConvnetSettings

    def __init__(self, name: str, settings: Settings, dataset: Dataset | None, device: torch.device) -> None:
        assert isinstance(settings, ConvnetSettings)
        assert dataset is not None
        self._name, self._settings, self._device = name, settings, device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self._dataset = dataset

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or a batch the training images."""
        assert isinstance(settings, ConvnetSettings)
        check_sizes(settings, name, counts)
        if settings.batch_size > settings.train_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from the {settings.train_size} training images"
            )

    def train(self, seed: int) -> Trained:
        """See `Teacher`."""
        ids = divide(self._dataset, self._settings, self._name, seed)
        splits = splits_of(self._dataset)
        chosen = {name: Split(splits[name].images[ids[name]], splits[name].labels[ids[name]]) for name in SETS}
        pixels = _moments(chosen["train"].images)
        images = {name: standardized(split.images, *pixels.tolist()).to(self._device) for name, split in chosen.items()}
        labels = {name: split.labels.to(self._device) for name, split in chosen.items()}
        parameters = self._fit(seed, images["train"], labels["train"])
        tensors = {"parameters": parameters.cpu(), "pixels": pixels}
        metrics = {}
        for name in SETS:
            tensors |= {f"{name}_ids": ids[name], f"{name}_labels": chosen[name].labels}
            right = lenet.logits(parameters, images[name]).argmax(-1) == labels[name]
            metrics[f"{name}_accuracy"] = float(right.double().mean())
        return Trained(tensors, metrics)

    def _fit(self, seed: int, images: Tensor, labels: Tensor) -> Tensor:
        s = self._settings
        params = lenet.initial(generator(self._name, "initialization", seed), images.shape[1]).to(self._device)
        optimizer, problem = Adam(learning_rate=s.learning_rate), traced(Problem(lenet.loss, lenet.loss))
        state = optimizer.init(params.unsqueeze(0))
        derivatives = Derivatives(problem, state.new_zeros(1, 0))
        for epoch in self.checkpoint.steps(state, s.epochs):
            order = torch.randperm(s.train_size, generator=generator(self._name, "batches", seed, epoch))
            for ids in torch.split(order.to(self._device), s.batch_size)[: s.train_size // s.batch_size]:
                optimizer.advance_(derivatives, state, (images[ids].unsqueeze(0), labels[ids].unsqueeze(0)))
        return optimizer.params(state)[0].clone()


def _moments(images: Tensor) -> Tensor:
    """Mean and deviation of bytes as numbers from 0 to 1, in double precision, from how often each occurs."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ values) / counts.sum()
    return torch.stack([mean, ((counts @ (values - mean) ** 2) / (counts.sum() - 1)).sqrt()])


TEACHER = Convnet
