"""Recurrent cells for English and German: a search on lines of both languages, then training of what was chosen.

Deck 003, the language models. Structural parameters of a cell are the hyperparameters, the weights of the mixed cell
the parameters, moved in turn by any hypergradient; then the chosen cells are trained from new weights. What the slides
leave open or the published run did otherwise:

- A step descends the slide's whole inner loss, on lines in both languages that are translations of each other.
- The contrastive regularizer is the batch-hard triplet loss between domains of the image experiments, of a line's
  representation, the mean of its hidden states: its translation is the positive, all other lines of that language are
  the negatives. How the published run pulled parallel lines together, beyond its coefficient, is not known.
- The structure is fitted to training lines that are held out in the search. In the published run it was fitted to the
  validation lines (`outer_set: validation`), on which it was then reported. Here both sets are reported side by side.
- Perplexity is that of a token, as published, and of a word; tokens include the end of a line, not the prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from bilevel.architecture import Genotype, shared_choices
from bilevel.checkpoint import NOWHERE, Checkpoint, State
from bilevel.data import Corpus
from bilevel.models.recurrent_cell import (
    DiscreteNetwork,
    Lines,
    Masks,
    Reading,
    SearchNetwork,
    space,
)
from bilevel.optimizers import SGD, Clipped
from bilevel.optimizers import Adam as InnerAdam
from bilevel.outer import Adam
from bilevel.parameters import functional
from bilevel.problem import Problem, map_batch
from bilevel.randomness import generator
from bilevel.results import Metrics, Structure
from bilevel.runs import OuterLoop
from bilevel.settings import Settings, SettingsError
from bilevel.tasks.language_model.lines import Batch, locked_masks, stacked
from bilevel.tasks.language_model.losses import contrast, line_loss, slowness
from bilevel.tasks.language_model.retraining import retrain
from bilevel.tasks.language_model.settings import ARMS, LanguageModelSettings, Phase
from bilevel.tasks.language_model.texts import Tested, Texts, check_sizes

Moved = TypeVar("Moved", Batch, Lines)


class DecayedAdam:
    """Adam on the hypergradient plus ω λ."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self._adam, self._decay = Adam(learning_rate), weight_decay

    def step(self, hyper: Tensor, hypergradient: Tensor) -> Tensor:
        """The next hyperparameters, a new tensor."""
        return self._adam.step(hyper, hypergradient.add(hyper, alpha=self._decay))

    def state(self) -> State:
        """See `Adam`."""
        return self._adam.state()

    def restore(self, state: State) -> None:
        """See `Adam`."""
        self._adam.restore(state)


class LanguageModel(OuterLoop):
    """See the module.

    Pairs are divided, ordered and weights begun by draws that all arms share; the vocabulary is learned from the
    training lines of both languages, for all arms the same. The inner optimizer is clipped gradient descent, as in the
    published run, or clipped Adam. The outer loss has no dropout and no slowness.

    Rows of a batch hold lines one after another; the hidden state is zero where one begins, and masks of dropout are
    those of the row. Lines longer than a row are cut in training, never in evaluation.

    In the search, states are normalized over the rows of a batch. A line that is evaluated is normalized as one more
    row beside as many rows of training lines as a batch has, which do not see it: its statistics are those of the
    training rows and of itself, never of other lines that are evaluated. (Statistics averaged over batches would not
    do: nothing keeps a recurrent state within bounds that is normalized by those of others.)

    Retraining goes on for `retraining.steps`; the parameters with the lowest mean over languages of the validation
    perplexity are reported.

    Methods: all of one step that see the direct part of the hypergradient; `first_order` is what was published.

    Trace: for each language `search_perplexity_validation_<language>` and `weight_<operation>_<language>`, the mean
    over edges of its weight.
    Summary, with <split> validation or test: `search_perplexity_<split>_<language>`; after retraining
    `perplexity_<split>_<language>` and `word_perplexity_<split>_<language>`; `unigram_perplexity_<split>_<language>`,
    of tokens foretold by their frequency in the training lines, one added to each; `edges_shared`, of two cells.
    """

    settings_class = LanguageModelSettings
    data_kind = "text"
    methods = ("first_order", "darts", "truncated", "aggregated")

    def __init__(
        self, study: str, settings: Settings, dataset: Corpus | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Divide the data, learn the vocabularies and encode."""
        assert isinstance(settings, LanguageModelSettings)
        assert dataset is not None
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.check_data(settings, dataset.name, {name: len(split.en) for name, split in dataset.splits.items()})
        self.languages = ARMS[settings.arm]
        self.groups = len(self.languages) if settings.arm == "multimodel" else 1
        self.space = space(settings.nodes)
        self._texts = [Texts(study, settings, dataset, seed) for seed in self.seeds]
        self._network = SearchNetwork(settings.nodes, settings.vocabulary, settings.search.hidden)
        _, self._forward = functional(self._network)
        self.outer_steps, self.evaluate_every = settings.search.steps, settings.search.evaluate_every
        self.optimizer = _optimizer(settings.search)
        self.problem = Problem(self._inner_loss, self._outer_loss)

    @classmethod
    def check_data(cls, settings: Settings, name: str | None, counts: Mapping[str, int]) -> None:
        """SettingsError without data, or where it has too few pairs."""
        assert isinstance(settings, LanguageModelSettings)
        if name is None:
            raise SettingsError("data: a data set of parallel text is needed, such as home_assistant")
        check_sizes(settings, counts)

    def _inner_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        reading = self._forward(params, self._mixture(hyper), batch.lines, batch.masks)
        return self._loss(reading, batch.lines) + self.settings.search.slowness * slowness(reading, batch.lines)

    def _outer_loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return self._loss(self._forward(params, self._mixture(hyper), batch.lines, batch.masks), batch.lines)

    def _loss(self, reading: Reading, lines: Lines) -> Tensor:
        s, loss = self.settings, line_loss(reading, lines)
        if self.groups == 1 or s.beta_contrastive == 0:
            return loss
        return loss + s.beta_contrastive * contrast(reading, lines, s.contrastive_pairs, s.margin)

    def _mixture(self, hyper: Tensor) -> Tensor:
        """Weights of operations (G, E, O) of one seed."""
        return self.space.mixture(hyper.view(self.groups, -1)).operations

    def start(self) -> tuple[Tensor, Tensor]:
        """New weights, and structural parameters normal with deviation 1e-3, as published."""
        params = torch.stack([self._initial(self._network, "initialization", seed) for seed in self.seeds])
        size = self.groups * self.space.size
        hyper = torch.stack([torch.randn(size, generator=generator(self.study, "structure", s)) for s in self.seeds])
        return self.optimizer.init(params.to(self.device)), hyper.to(self.device) * 1e-3

    def _initial(self, network: SearchNetwork | DiscreteNetwork, purpose: str, seed: int) -> Tensor:
        network.initialize_(generator(self.study, purpose, seed))
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    def outer_optimizer(self) -> DecayedAdam:
        """Adam, as published."""
        return DecayedAdam(self.settings.structure_learning_rate, self.settings.structure_weight_decay)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """A batch of training lines, and one of the lines that the structure is fitted to."""
        inner = [self._batch(index, step, "search") for index in range(len(self.seeds))]
        outer = [Batch(texts.outer[step], Masks()) for texts in self._texts]
        return [self._moved(stacked(inner))], self._moved(stacked(outer))

    def _batch(self, index: int, step: int, purpose: str) -> Batch:
        """A seed's batch of the search or of retraining."""
        phase, texts = self._phase(purpose), self._texts[index]
        lines = (texts.search if purpose == "search" else texts.retraining)[step]
        draws = generator(self.study, f"{purpose}_dropout", self.seeds[index], step)
        shape = len(self.languages), phase.rows, phase.hidden
        return Batch(lines, locked_masks(phase.dropout, self.settings.vocabulary, shape, draws))

    def _phase(self, purpose: str) -> Phase:
        return self.settings.search if purpose == "search" else self.settings.retraining

    def _moved(self, batch: Moved) -> Moved:
        moved: Moved = map_batch(lambda tensor: tensor.to(self.device), batch)
        return moved

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        params = self.optimizer.params(state)
        rows = [self._evaluated(index, params[index], hyper[index]) for index in range(len(self.seeds))]
        return _columns(rows)

    def _evaluated(self, index: int, params: Tensor, hyper: Tensor) -> dict[str, float]:
        found = self._search_metrics(index, params, hyper, ("validation",))
        means = self._mixture(hyper).mean(1)
        for language, weights in zip(self.languages, means.expand(len(self.languages), -1).tolist(), strict=True):
            for operation, weight in zip(self.space.operations, weights, strict=True):
                found[f"weight_{operation}_{language}"] = weight
        return found

    def _search_metrics(self, index: int, params: Tensor, hyper: Tensor, splits: Sequence[str]) -> dict[str, float]:
        """Loss on training lines, and perplexities, of one seed's search network."""
        mixture, texts, found = self._mixture(hyper), self._texts[index], dict[str, float]()
        for place, language in enumerate(self.languages):
            own = mixture[place : place + 1] if self.groups > 1 else mixture
            references = [place] if self.groups > 1 else range(len(self.languages))

            def read(lines: Lines, own: Tensor = own, references: Sequence[int] = references) -> Reading:
                joined, counts = self._beside_training(index, lines, references)
                reading: Reading = self._forward(params, own, joined, Masks(), counts)
                return Reading(*(values[:, :, : lines.tokens.shape[2]] for values in reading))

            for split in splits:
                tested = texts.tested[split][place]
                found[f"search_perplexity_{split}_{language}"] = math.exp(self._total(read, tested) / tested.tokens)
        return found

    def _beside_training(self, index: int, lines: Lines, languages: Sequence[int]) -> tuple[Lines, Tensor]:
        """Lines (L, 1, B) with rows of training lines after them, and which tokens count: theirs."""
        rows = self._moved(self._texts[index].reference(len(lines.tokens), languages))
        counts = torch.cat([torch.zeros_like(lines.real), torch.ones_like(rows.real)], dim=2)
        return Lines(*(torch.cat(parts, dim=2) for parts in zip(lines, rows, strict=True))), counts

    def _total(self, read: Callable[[Lines], Reading], tested: Tested) -> float:
        """Σ −log probability of all tokens of a set."""
        total = 0.0
        with torch.no_grad():
            for block in tested.blocks:
                lines = self._moved(block)
                total += float((read(lines).losses.double() * lines.real).sum())
        return total

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class. Trains what was chosen, one seed after another."""
        params = self.optimizer.params(state)
        return _columns(
            [
                self.checkpoint.kept(
                    f"retraining of seed {seed}",
                    partial(self._summarized, index, params[index], hyper[index]),
                )
                for index, seed in enumerate(self.seeds)
            ]
        )

    def _summarized(self, index: int, params: Tensor, hyper: Tensor, checkpoint: Checkpoint) -> dict[str, float]:
        splits, texts = ("validation", "test"), self._texts[index]
        found = self._search_metrics(index, params, hyper, splits)
        genotypes = self._genotypes(hyper)
        if len(genotypes) > 1:
            found["edges_shared"] = len(shared_choices(genotypes))
        best = self._retrained(index, genotypes, checkpoint)
        for split in splits:
            for place, (language, total) in enumerate(
                zip(self.languages, self._totals(index, genotypes, best, split), strict=True)
            ):
                tested = texts.tested[split][place]
                found[f"perplexity_{split}_{language}"] = math.exp(total / tested.tokens)
                found[f"word_perplexity_{split}_{language}"] = math.exp(total / tested.words)
                found[f"unigram_perplexity_{split}_{language}"] = texts.unigram_perplexity(split, place)
        return found

    def _genotypes(self, hyper: Tensor) -> list[Genotype]:
        """The chosen cell of each group of one seed."""
        return [self.space.discretize(structure) for structure in hyper.view(self.groups, -1)]

    def _retrained(self, index: int, genotypes: Sequence[Genotype], checkpoint: Checkpoint = NOWHERE) -> Tensor:
        """Parameters of one seed's chosen network."""
        s, phase = self.settings, self.settings.retraining
        network = DiscreteNetwork(genotypes, s.vocabulary, phase.hidden)
        params = self._initial(network, "retraining_initialization", self.seeds[index])
        _, forward = functional(network)

        def loss(params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
            reading = forward(params, batch.lines, batch.masks)
            return self._loss(reading, batch.lines) + phase.slowness * slowness(reading, batch.lines)

        def value(params: Tensor) -> float:
            totals = self._totals(index, genotypes, params, "validation")
            tested = self._texts[index].tested["validation"]
            return sum(math.exp(total / one.tokens) for total, one in zip(totals, tested, strict=True)) / len(totals)

        return retrain(
            loss,
            _optimizer(phase),
            params.to(self.device),
            lambda step: self._moved(stacked([self._batch(index, step, "retraining")])),
            steps=phase.steps,
            evaluate=value,
            evaluate_every=phase.evaluate_every,
            patience=s.nonmonotone,
            checkpoint=checkpoint,
        )

    def _totals(self, index: int, genotypes: Sequence[Genotype], params: Tensor, split: str) -> list[float]:
        """Σ −log probability of each language's tokens of a split, by the chosen network."""
        totals, cells = [], list(genotypes) * (len(self.languages) // len(genotypes))
        for genotype, tested in zip(cells, self._texts[index].tested[split], strict=True):
            _, forward = functional(
                DiscreteNetwork([genotype], self.settings.vocabulary, self.settings.retraining.hidden)
            )

            def read(lines: Lines, forward: Callable[..., Reading] = forward) -> Reading:
                return forward(params, lines, Masks())

            totals.append(self._total(read, tested))
        return totals

    def structures(self, hyper: Tensor) -> list[Structure]:
        """The cell of each language; with one cell for both, the same twice."""
        rows = []
        for seed, structure in zip(self.seeds, hyper, strict=True):
            genotypes, weights = self._genotypes(structure), self._mixture(structure).tolist()
            for place, language in enumerate(self.languages):
                group = place if self.groups > 1 else 0
                chosen = {(choice.source, choice.target, choice.operation) for choice in genotypes[group]}
                for edge, row in zip(self.space.edges, weights[group], strict=True):
                    for operation, weight in zip(self.space.operations, row, strict=True):
                        rows.append(
                            Structure(seed, language, *edge, operation, weight, int((*edge, operation) in chosen))
                        )
        return rows


def _optimizer(phase: Phase) -> Clipped:
    kind = {"sgd": SGD, "adam": InnerAdam}[phase.optimizer]
    return Clipped(kind(learning_rate=phase.learning_rate, weight_decay=phase.weight_decay), norm=phase.clip)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Metrics of every seed, as values (S,)."""
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


TASK = LanguageModel
