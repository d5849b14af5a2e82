"""Search for one cell for every domain of rotated images, as far as the published run and the corrected one share it.

Domains are MNIST's images turned by 0, 180, 90 and 270 degrees. A supernet (`bilevel.models.supernet`), whose weights
all domains share, is trained on training images; every domain has structural parameters of its own, the
hyperparameters, moved to lower the loss of validation images. In the end each domain's cell is discretized, and the
network of all discrete cells is trained anew.

Source: deck 003, "Постановка вычислительного эксперимента".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel import metrics
from bilevel.architecture import Genotype, shared_choices
from bilevel.checkpoint import Checkpoint
from bilevel.data import Dataset
from bilevel.hypergradients import Hypergradient
from bilevel.images import counts_of, splits_of
from bilevel.models import supernet
from bilevel.models.supernet import Discrete, Normalize, Statistics, Supernet
from bilevel.optimizers import Clipped, Cosine, Momentum
from bilevel.outer import Adam
from bilevel.parameters import functional
from bilevel.problem import Batch as AnyBatch
from bilevel.problem import Loss, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Result, Structure
from bilevel.runs import OuterLoop, greedy
from bilevel.settings import Count, NotNegative, Positive, Settings, SettingsError
from bilevel.tasks.rotated_mnist.images import ANGLES, Batch, Domains, Share, Stream, rotated, share
from bilevel.tasks.rotated_mnist.losses import Losses
from bilevel.tasks.rotated_mnist.retraining import nominal_parameters, retrained

STRUCTURE_DEVIATION = 1e-3
OUTER_BETAS = (0.5, 0.999)
UNION = "union"
CHUNK = 200  # images at once where metrics are taken


class RotatedMnistSettings(Settings):
    """Settings of the experiment; the defaults are the published sizes.

    arm: `multimodel`, a structure for each domain; `union`, the images of all domains together as one domain, with
        the same number of images and of steps.
    domains: how many.
    beta_struct, beta_contr: factors of the structural and of the contrastive regularizer; 0 is without.
    margin: of the contrastive one.
    channels, stem_channels: of the cell, which has twice as many since it is a reduction cell, and of the stem.
    image_size: 28, or 14, by means over 2×2 pixels.
    domain_size: images of a domain, one half for training and one for validation.
    test_size: images of the test set; without it, all of an official test split, or all that are left.
    epochs: passes over the training images of all domains in the search.
    retrain_epochs: passes over all images of all domains in training the discrete network.
    batch_size: of images of one domain; what is left of a pass at its end is not used.
    learning_rate, last_learning_rate: of the weights, at first and at last, by a cosine, from epoch to epoch.
    momentum, clip: of the weights; gradients are cut to this length.
    outer_learning_rate: of the Adam that moves the structural parameters.
    evaluate_every: epochs from one row of the trace to the next.
    """

    arm: Literal["multimodel", "union"] = "multimodel"
    domains: Annotated[int, Field(ge=1, le=len(ANGLES))] = 2
    beta_struct: NotNegative = 0.0
    beta_contr: NotNegative = 0.0
    margin: NotNegative = 0.0
    channels: Count = 16
    stem_channels: Count = 48
    image_size: Literal[14, 28] = 28
    domain_size: Annotated[int, Field(ge=2)] = 128
    test_size: Count | None = None
    epochs: Count = 100
    retrain_epochs: Count = 100
    batch_size: Count = 16
    learning_rate: Positive = 0.025
    last_learning_rate: NotNegative = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Positive = 5.0
    outer_learning_rate: Positive = 1e-3
    evaluate_every: Count = 1


class Batches(Sequence[AnyBatch]):
    """Batches of all seeds, stacked when asked for."""

    def __init__(self, numbers: Sequence[int], stacked: Callable[[int], Batch]) -> None:
        self._numbers, self._stacked = numbers, stacked

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> AnyBatch:  # type: ignore[override]  # slices are not needed
        return self._stacked(self._numbers[index])


class RotatedMnist(OuterLoop):
    """See the module; subclasses say which images are used, what an outer step is, and what holds structures together.

    For tests, normalization takes mean and variance over the training images of the domain (after retraining: over all
    of its images that were trained on; in the union: over those of all domains), never over test images.

    Retraining minimizes cross-entropy alone, on training and validation images, with the optimizer of the search from
    its beginning, a step for each domain's batch in turn.

    Trace: `search_loss_train`, `search_loss_validation`, `search_accuracy_train`, `search_accuracy_validation`, means
    over domains of the supernet's cross-entropy and accuracy; `weight_<operation>_<domain>`, the mean of p over edges.
    A domain's name is its angle; the union has one structure, `union`.
    Summary: `search_accuracy` of the supernet and `retrained_accuracy` of the discrete network on the test images,
    means over domains, and both with `_<domain>` for each; `parameters_nominal`, the slide's count (`retraining.py`);
    `parameters` of the discrete network; `edges`, choices that any domain has, and `edges_shared`, those that all have;
    the last losses and accuracies of the trace.
    """

    settings_class = RotatedMnistSettings
    one_by_one_on_cpu = True

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide and rotate the data of every seed."""
        assert isinstance(settings, RotatedMnistSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self._dataset = dataset
        self.names = [str(angle) for angle in ANGLES[: settings.domains]]
        self.structure_names = [UNION] if settings.arm == "union" else self.names
        self.space = supernet.space()
        self.shares = [self._share(seed) for seed in self.seeds]
        self._train, self._validation = (
            [
                Stream(self._seen(source), settings.batch_size, study, purpose, seed)
                for source, seed in zip(sources, self.seeds, strict=True)
            ]
            for purpose, sources in (
                ("batches", [share.train for share in self.shares]),
                ("outer", [share.validation for share in self.shares]),
            )
        )
        self.outer_steps = settings.epochs * self._train[0].per_epoch // self.group
        self.evaluate_every = settings.evaluate_every * self._train[0].per_epoch // self.group
        self.optimizer = self._optimizer(settings.epochs, self._train[0].per_epoch)
        self.layout, self._forward = functional(self._network(self.seeds[0]))
        self._losses = Losses(
            forward=self._forward,
            space=self.space,
            models=len(self.structure_names),
            beta_struct=settings.beta_struct,
            beta_contr=settings.beta_contr,
            margin=settings.margin,
            divergence=self.divergence,
        )
        self.problem = Problem(self._losses.single, self.outer_loss(self._losses))
        self._name = "run"

    @property
    @abstractmethod
    def group(self) -> int:
        """Weight steps of an outer step."""

    @abstractmethod
    def outer_loss(self, losses: Losses) -> Loss:
        """What the structural parameters are to lower."""

    @abstractmethod
    def divergence(self, structures: Tensor) -> Tensor:
        """The structural regularizer of structural parameters (D, size), a scalar."""

    @abstractmethod
    def outer_batch(self, step: int) -> Batch:
        """The batch on which it is taken."""

    @abstractmethod
    def subsets(self, count: int, seed: int) -> tuple[list[Tensor], Tensor]:
        """Ids among `count` images of each domain's, (domain_size,), and of all others, in a random order."""

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError without data, where there are too few images, or for regularizers of a union."""
        assert isinstance(settings, RotatedMnistSettings)
        if name is None:
            raise SettingsError("data: a data set is needed")
        if settings.arm == "union" and (settings.beta_struct > 0 or settings.beta_contr > 0):
            raise SettingsError(
                "arm: a union is one domain, and there is nothing to hold together; expected beta_struct and "
                "beta_contr 0 with it"
            )
        if settings.domains == 1 and (settings.beta_struct > 0 or settings.beta_contr > 0):
            raise SettingsError(
                "domains: a single domain has nothing to be held together with; expected beta_struct and beta_contr 0"
            )
        if settings.domain_size % 2 or settings.batch_size > settings.domain_size // 2:
            raise SettingsError(
                f"domain_size: expected an even number, and batches of {settings.batch_size} (batch_size) to fit one "
                f"half of it, got {settings.domain_size}"
            )
        count = counts["train" if "train" in counts else "all"]
        left = count - len(ANGLES) * settings.domain_size
        test = counts.get("test", left)
        if left < 0 or test < 1 or (settings.test_size or 0) > test:
            raise SettingsError(
                f"domain_size {settings.domain_size}, four times, and test_size {settings.test_size} do not fit {name} "
                f"with {counts}"
            )

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`."""
        self._name = name
        return greedy(self, method, name)

    def start(self) -> tuple[Tensor, Tensor]:
        """Weights, and structural parameters drawn from N(0, 0.001²)."""
        params = [self.layout.join(dict(self._network(seed).named_parameters())) for seed in self.seeds]
        count = len(self.structure_names) * self.space.size
        hyper = [torch.randn(count, generator=generator(self.study, "structure", seed)) for seed in self.seeds]
        state = self.optimizer.init(torch.stack(params).to(self.device))
        return state, torch.stack(hyper).mul_(STRUCTURE_DEVIATION).to(self.device)

    def outer_optimizer(self) -> Adam:
        """Adam, as it was run."""
        return Adam(self.settings.outer_learning_rate, OUTER_BETAS)

    def draw(self, step: int) -> tuple[Sequence[AnyBatch], AnyBatch]:
        """The next batches of the training images, and the outer batch."""
        numbers = range(step * self.group, (step + 1) * self.group)
        return Batches(numbers, self._inner_batch), self.outer_batch(step)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        rows = [
            self._fits(index, params, structures)
            for index, (params, structures) in enumerate(self._by_seed(state, hyper))
        ]
        weights = self.space.mixture(self._structures(hyper)).operations.mean(-2).cpu().double()
        found = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
        return found | {
            f"weight_{operation}_{name}": weights[:, model, kind]
            for model, name in enumerate(self.structure_names)
            for kind, operation in enumerate(self.space.operations)
        }

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class; trains the discrete networks."""
        rows = []
        for index, (params, structures) in enumerate(self._by_seed(state, hyper)):
            tested = self._tested(index, "search", self._supernet(index, params, structures))
            genotypes = [self.space.discretize(structure) for structure in structures]
            discrete = self.checkpoint.kept(
                f"retraining of seed {self.seeds[index]}", partial(self._discrete, index, genotypes)
            )
            rows.append({**tested, **self._fits(index, params, structures), **discrete})
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def structures(self, hyper: Tensor) -> list[Structure]:
        """Every operation of every edge of each domain's cell."""
        return [
            row
            for seed, structures in zip(self.seeds, self._structures(hyper), strict=True)
            for name, structure in zip(self.structure_names, structures, strict=True)
            for row in self._rows(seed, name, structure)
        ]

    def stacked(self, streams: Sequence[Stream], numbers: Sequence[int], with_other: bool) -> Batch:
        """Batches of these numbers of all seeds, and, with `with_other`, one of another domain to go with the first."""
        seeds = []
        for stream in streams:
            parts = [stream[number] for number in numbers]
            if with_other:
                parts.append(stream.elsewhere(numbers[0]))
            images, labels, domains = zip(*parts, strict=True)
            seeds.append((torch.stack(images), torch.stack(labels), torch.tensor(domains, device=self.device)))
        images, labels, domains = zip(*seeds, strict=True)
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(domains))

    @property
    def validation(self) -> list[Stream]:
        """Batches of each seed's validation images."""
        return self._validation

    def _inner_batch(self, number: int) -> Batch:
        return self.stacked(self._train, [number], self.settings.beta_contr > 0)

    def _seen(self, images: Domains) -> Domains:
        """As the arm sees them: by domain, or all together."""
        return images.joined if self.settings.arm == "union" else images

    def _share(self, seed: int) -> Share:
        s = self.settings
        splits = splits_of(self._dataset)
        subsets, test = self.subsets(len(splits["train"].labels), seed)
        if splits["test"] is not splits["train"]:
            test = torch.randperm(len(splits["test"].labels), generator=generator(self.study, "test", seed))
        return share(self._dataset, subsets[: s.domains], test[: s.test_size], s.image_size, self.device)

    def _network(self, seed: int) -> Supernet:
        s, draws = self.settings, generator(self.study, "initialization", seed)
        return Supernet(self.space, 2 * s.channels, s.stem_channels, len(self.structure_names), draws)

    def _optimizer(self, epochs: int, steps: int) -> Clipped:
        s = self.settings
        rate = Cosine(first=s.learning_rate, last=s.last_learning_rate, steps=epochs * steps, every=steps)
        return Clipped(Momentum(learning_rate=rate, momentum=s.momentum), s.clip)

    def _structures(self, hyper: Tensor) -> Tensor:
        """(S, M, size)."""
        return hyper.view(len(self.seeds), len(self.structure_names), -1)

    def _by_seed(self, state: Tensor, hyper: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.optimizer.params(state), self._structures(hyper), strict=True))

    def _rows(self, seed: int, name: str, structure: Tensor) -> list[Structure]:
        operations, inputs = self.space.mixture(structure)
        weights = (operations * inputs.unsqueeze(-1)).tolist()
        chosen = set(self.space.discretize(structure))
        return [
            Structure(seed, name, *edge, operation, weight, int((*edge, operation) in chosen))
            for edge, of_edge in zip(self.space.edges, weights, strict=True)
            for operation, weight in zip(self.space.operations, of_edge, strict=True)
        ]

    # --- metrics

    def _supernet(self, index: int, params: Tensor, structures: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Of each structure the supernet, (images) -> logits, normalized by the training images."""
        mixtures = [self.space.mixture(structure) for structure in structures]

        def forward(images: Tensor, model: int, normalize: Normalize) -> Tensor:
            domain = torch.tensor(model, device=self.device)
            logits: Tensor = self._forward(params, images, domain, mixtures[model], normalize)[0]
            return logits

        return _normalized(forward, self._seen(self.shares[index].train))

    def _fits(self, index: int, params: Tensor, structures: Tensor) -> dict[str, float]:
        """The supernet's losses and accuracies on training and validation images, means over domains."""
        networks, found = self._supernet(index, params, structures), {}
        for name, images in (("train", self.shares[index].train), ("validation", self.shares[index].validation)):
            outputs = [
                (network(images.images[domain]), images.labels[domain])
                for domain, network in enumerate(self._of_domains(networks))
            ]
            found[f"search_loss_{name}"] = _mean([float(cross_entropy(*output)) for output in outputs])
            found[f"search_accuracy_{name}"] = _mean([_accuracy(*output) for output in outputs])
        return found

    def _tested(self, index: int, kind: str, networks: Sequence[Callable[[Tensor], Tensor]]) -> dict[str, float]:
        """Accuracies on the test images, in each domain's rotation."""
        images, labels = self.shares[index].test
        accuracies = {
            name: _accuracy(network(rotated(images, domain)), labels)
            for domain, (name, network) in enumerate(zip(self.names, self._of_domains(networks), strict=True))
        }
        each = {f"{kind}_accuracy_{name}": value for name, value in accuracies.items()}
        return {f"{kind}_accuracy": _mean(list(accuracies.values())), **each}

    def _of_domains(self, networks: Sequence[Callable[[Tensor], Tensor]]) -> list[Callable[[Tensor], Tensor]]:
        """The network of each domain, which in the union is the only one."""
        return list(networks) if len(networks) == len(self.names) else [networks[0]] * len(self.names)

    def _discrete(self, index: int, genotypes: Sequence[Genotype], checkpoint: Checkpoint) -> dict[str, float]:
        """Metrics of the discrete network of a seed, trained anew."""
        s, seed, source = self.settings, self.seeds[index], self._seen(self.shares[index].known)
        draws = generator(self.study, "retraining", seed)
        network = Discrete(self.space, genotypes, 2 * s.channels, s.stem_channels, draws)
        stream = Stream(source, s.batch_size, self.study, "retraining batches", seed)
        optimizer = self._optimizer(s.retrain_epochs, stream.per_epoch)
        name = f"{self._name}: seed {seed}, retraining"
        params, forward = retrained(network, stream, optimizer, s.retrain_epochs, name, checkpoint)

        def logits(images: Tensor, domain: int, normalize: Normalize) -> Tensor:
            return forward(params, images, domain, normalize)

        return {
            **self._tested(index, "retrained", _normalized(logits, source)),
            "parameters_nominal": nominal_parameters(genotypes),
            "parameters": len(params),
            "edges": len(set().union(*genotypes)),
            "edges_shared": len(shared_choices(genotypes)),
        }


def _normalized(
    forward: Callable[[Tensor, int, Normalize], Tensor], source: Domains
) -> list[Callable[[Tensor], Tensor]]:
    """Of each domain of the source the network, (images) -> logits, normalized by the domain's images."""

    def of(domain: int) -> Callable[[Tensor], Tensor]:
        statistics = Statistics()
        with torch.no_grad():
            forward(source.images[domain], domain, statistics.collect)

        @torch.no_grad()
        def logits(images: Tensor) -> Tensor:
            return torch.cat([forward(part, domain, statistics.fixed()) for part in torch.split(images, CHUNK)])

        return logits

    return [of(domain) for domain in range(len(source.labels))]


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return 1 - metrics.error(logits, labels)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
