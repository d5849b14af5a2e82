"""Control of a network's complexity by λ: networks trained separately at each λ, and hypernetworks over λ; pruning.

What a hypernetwork has learned at a λ is compared with the network that was trained there alone: accuracy, and accuracy
when the least relevant weights are zeroed. What is not as published stands in `complexity_control_published`, a task
that repeats it.

Source: deck 002, "Deep learning model selection with parametric complexity control"; Grebenkova, Bakhteev and Strijov
2023, with the code of their experiments on MNIST.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.data import Dataset, Split
from bilevel.hypergradients import Hypergradient
from bilevel.images import Images, check_sizes, counts_of, divide, gather, splits_of, standardized
from bilevel.models import complexity
from bilevel.optimizers import Adam
from bilevel.outer import Adam as OuterAdam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.runs import OuterLoop, blank, greedy
from bilevel.settings import Count, Positive, Settings, SettingsError
from bilevel.tasks.complexity_control.pruning import SHARES, accuracies, accuracy_metrics
from bilevel.tracing import traced

Family = Literal["base", "var", "rep"]
Level = Annotated[float, Field(ge=-10, le=10)]

KNOTS = {"linear": 2, "piecewise": 6}
SAMPLES = 60_000
"""λ stands against the mean loss as it does with the published number of images, however many there are."""
SUMMARIZED = (0, 50, 70, 80, 90)
"""Shares pruned, in percent, whose accuracies are in the summary."""


class ComplexitySettings(Settings):
    """Settings of the experiment.

    family: `base`: networks without a distribution of weights; `var`, `rep`: with one, see `ComplexityControl`.
    hypernetwork: `none`: a network for each λ; `linear`, `piecewise`: one hypernetwork with 2 or 6 knots.
    log_lambda: decimal logarithms of the λ that networks are trained and hypernetworks looked at, in rising order.
    lambdas_per_step: of a hypernetwork, drawn anew for each step.
    train_size, test_size: numbers of images. Without test_size, all of an official test split, or all that is left.
    epochs: passes over the training images. batch_size: what is left of a pass at its end is not used.
    learning_rate: of Adam.
    """

    family: Family = "var"
    hypernetwork: Literal["none", "linear", "piecewise"] = "none"
    log_lambda: list[Level] = Field(default=[-3.0, 0.0, 2.0], min_length=1)
    lambdas_per_step: Count = 3
    train_size: Count = 4000
    test_size: Count | None = None
    epochs: Count = 20
    batch_size: Count = 128
    learning_rate: Positive = 2e-3

    @property
    def validation_size(self) -> int:
        """There is no validation set: nothing is chosen by it."""
        return 0

    @property
    def knots(self) -> int:
        """Knots of what is learned: a network's own one for each λ, or those of the hypernetwork."""
        return KNOTS.get(self.hypernetwork, len(self.log_lambda))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(left >= right for left, right in zip(self.log_lambda, self.log_lambda[1:], strict=False)):
            raise ValueError("log_lambda: expected different numbers in rising order")
        if self.hypernetwork != "none" and len(self.log_lambda) < 2:
            raise ValueError("log_lambda: a hypernetwork needs two or more, between which its λ are drawn")
        return self


class Share(NamedTuple):
    """One seed's data: images (N, 784) with pixels in [−1, 1], and their labels."""

    train: Images
    test: Images


class Step(NamedTuple):
    """What a step sees, with the seed axis: images (S, B, 784), labels (S, B); of variational networks standard normal
    noise (S, L or 1, 39760), 1 where all networks share it; of hypernetworks the decimal logarithms of L drawn λ (S, L)
    and the weights of the knots at these (S, L, K)."""

    images: Tensor
    labels: Tensor
    noise: Tensor | None
    log_lambda: Tensor | None
    weights: Tensor | None


def separate_loss(family: Family, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Sum of the objectives of one seed's separate networks at log₁₀ λ = hyper (L,), see `ComplexityControl`."""
    learned = complexity.at_knots(params, len(hyper))
    return _objectives(family, learned, hyper, batch) * len(hyper)


def hypernetwork_loss(family: Family, knots: int, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean of the objectives of one seed's networks that a hypernetwork makes at the batch's λ."""
    learned = batch.weights @ complexity.at_knots(params, knots)
    return _objectives(family, learned, batch.log_lambda, batch)


def mean_loss(knots: int, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of one seed's networks at the means of their weights."""
    learned = complexity.at_knots(params, knots)
    if batch.weights is not None:
        learned = batch.weights @ learned
    return _cross_entropy(complexity.means_of(learned), batch)


def _objectives(family: Family, learned: Tensor, log_lambda: Tensor, batch: Batch) -> Tensor:
    """Mean over networks (L, 39760 or twice that)."""
    strength = 10**log_lambda
    if family == "base":
        complexities = strength * learned.square().sum(-1)
        return _cross_entropy(learned, batch) + complexities.mean() / SAMPLES
    means, log_deviations = complexity.divided(learned)
    deviations = log_deviations.exp()
    prior = strength.log().neg() if family == "rep" else torch.zeros_like(strength)
    complexities = complexity.divergence(means, log_deviations, deviations, prior)
    if family == "var":
        complexities = strength * complexities
    return _cross_entropy(means + deviations * batch.noise, batch) + complexities.mean() / SAMPLES


def _cross_entropy(networks: Tensor, batch: Batch) -> Tensor:
    """Mean over networks and images."""
    found = complexity.logits(networks, batch.images)
    return cross_entropy(found.flatten(0, 1), batch.labels.repeat(len(networks)))


class ComplexityControl(OuterLoop):
    """Trains networks 784-50(ReLU)-10 (`bilevel.models.complexity`) by Adam on the objective, with N = 60,000,

        base:  cross-entropy + λ ‖w‖² / N,
        var:   E cross-entropy + λ KL(q ‖ N(0, 1)) / N,
        rep:   E cross-entropy + KL(q ‖ N(0, 1/λ)) / N,

    where q is normal, with a mean and a deviation for every weight and bias; E is taken at one draw a step, which all
    images of the batch share. Separate networks have parameters of their own at each λ, and share batches and draws. A
    hypernetwork interpolates between knots in log λ; it descends the mean of the objective at λ that are drawn
    log-uniformly between the smallest and the largest one looked at, each with a draw of its own. Networks are tested
    at their means. λ is `hyper`, and stays.

    Images are divided anew for every seed, the same for all methods, as are batches and drawn λ.

    Trace: the step is the percentage of each layer's weights that is zeroed, 0 to 90 (`pruning.pruned`); test accuracy
    `accuracy_<log λ>` of each λ looked at, and `accuracy_mean` over these.
    Summary: the same at 0, 50, 70, 80 and 90 %, `accuracy_<log λ>_pruned_<percent>`, and the final `train_loss`, the
    cross-entropy at the means on the last batch.
    """

    settings_class = ComplexitySettings
    methods = ("none",)
    prunes_one_more = False

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide the data of every seed."""
        assert isinstance(settings, ComplexitySettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, counts_of(dataset))
        self.outer_steps = self.evaluate_every = settings.epochs
        self.optimizer = Adam(learning_rate=settings.learning_rate)
        self.problem = _problem(settings.family, settings.hypernetwork, settings.knots)
        self.shares = [self._share(dataset, seed) for seed in self.seeds]
        self._curves: list[dict[int, list[float]]] = []

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError where the sets do not fit the data, or a batch the training images."""
        assert isinstance(settings, ComplexitySettings)
        check_sizes(settings, name, counts)
        if settings.batch_size > settings.train_size:
            raise SettingsError(
                f"batch_size: batches of {settings.batch_size} are drawn from the {settings.train_size} training images"
            )

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`; the trace is that of pruning."""
        result = greedy(self, method, name)
        names = self._names()
        trace = {percent: blank(accuracy_metrics(self._curves, names, percent), result.alive) for percent in SHARES}
        return replace(result, trace=trace)

    def start(self) -> tuple[Tensor, Tensor]:
        """First parameters at every knot, and log₁₀ λ of the networks looked at."""
        params = torch.stack([self.initial(generator(self.study, "initialization", seed)) for seed in self.seeds])
        hyper = torch.tensor(self.settings.log_lambda).repeat(len(self.seeds), 1)
        return self.optimizer.init(params.to(self.device)), hyper.to(self.device)

    def initial(self, draws: torch.Generator) -> Tensor:
        """First parameters (P,) of one seed."""
        return complexity.initial(self.settings.knots, self._variational, draws)

    def outer_optimizer(self) -> OuterAdam:
        """Nothing for it to do, since the only method moves nothing."""
        return OuterAdam(0.1)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """The batches of an epoch; the last of them for the outer loss."""
        batches = Batches(self, step)
        return batches, batches[len(batches) - 1]

    def epoch(self, number: int, seed: int) -> list[Tensor]:
        """Ids of each batch of a pass over the training images."""
        size, count = self.settings.batch_size, self.settings.train_size
        order = torch.randperm(count, generator=generator(self.study, "batches", seed, number))
        return list(torch.split(order[: count // size * size], size))

    def drawn_range(self) -> tuple[float, float]:
        """Between which log₁₀ λ is drawn in the training of a hypernetwork."""
        return self.settings.log_lambda[0], self.settings.log_lambda[-1]

    def make_step(self, number: int, ids: Tensor) -> Step:
        """What step `number` sees, with images `ids` (S, B)."""
        s = self.settings
        images, labels = gather([share.train for share in self.shares], ids.to(self.device))
        draws = [generator(self.study, "draws", seed, number) for seed in self.seeds]
        levels = weights = noise = None
        if s.hypernetwork != "none":
            low, high = self.drawn_range()
            levels = torch.stack([torch.rand(s.lambdas_per_step, generator=each) for each in draws])
            levels = levels.mul_(high - low).add_(low)
            weights = self._weights(levels).to(self.device)
            levels = levels.to(self.device)
        if self._variational:
            count = 1 if levels is None else s.lambdas_per_step
            size = complexity.LAYOUT.size
            noise = torch.stack([torch.randn(count, size, generator=each) for each in draws]).to(self.device)
        return Step(images, labels, noise, levels, weights)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """Nothing: the trace is that of pruning, see `run`."""
        return {}

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        self._curves = [
            accuracies(learned, self._variational, *share.test, one_more=self.prunes_one_more)
            for learned, share in zip(self._networks(state, hyper), self.shares, strict=True)
        ]
        found = {
            f"{metric}_pruned_{percent}": values
            for percent in SUMMARIZED
            for metric, values in accuracy_metrics(self._curves, self._names(), percent).items()
        }
        return {**found, "train_loss": trace[-1]["outer_loss"]}

    @property
    def _variational(self) -> bool:
        return self.settings.family != "base"

    def _names(self) -> list[str]:
        return [f"{level:g}" for level in self.settings.log_lambda]

    def _weights(self, levels: Tensor) -> Tensor:
        """Of the knots of a hypernetwork at log₁₀ λ (...), (..., K)."""
        low, high = self.settings.log_lambda[0], self.settings.log_lambda[-1]
        return complexity.interpolation((levels - low) / (high - low), self.settings.knots)

    def _networks(self, state: Tensor, hyper: Tensor) -> Tensor:
        """What is learned at λ (S, L) that are looked at, (S, L, 39760 or twice that)."""
        learned = self.optimizer.params(state).reshape(len(self.seeds), self.settings.knots, -1)
        return learned if self.settings.hypernetwork == "none" else self._weights(hyper) @ learned

    def divide(self, dataset: Dataset, seed: int) -> dict[str, Tensor]:
        """Places of training and test images in their splits."""
        return divide(dataset, self.settings, self.study, seed)

    def _share(self, dataset: Dataset, seed: int) -> Share:
        ids, splits = self.divide(dataset, seed), splits_of(dataset)
        return Share(*(self._images(splits[name], ids[name]) for name in Share._fields))

    def _images(self, split: Split, ids: Tensor) -> Images:
        images = standardized(split.images[ids].to(self.device), 0.5, 0.5).flatten(1)
        return Images(images, split.labels[ids].to(self.device))


class Batches(Sequence[Batch]):
    """Steps of an epoch, made when asked for."""

    def __init__(self, task: ComplexityControl, epoch: int) -> None:
        self._task = task
        passes = [task.epoch(epoch, seed) for seed in task.seeds]
        self._ids = [torch.stack(batch) for batch in zip(*passes, strict=True)]
        self._first = epoch * len(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # slices are not needed
        return self._task.make_step(self._first + index, self._ids[index])


def _problem(family: Family, hypernetwork: str, knots: int) -> Problem:
    own = hypernetwork == "none"
    inner = partial(separate_loss, family) if own else partial(hypernetwork_loss, family, knots)
    return traced(Problem(inner, partial(mean_loss, knots)))


TASK = ComplexityControl
