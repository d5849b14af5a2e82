"""Settings of the language models; what the published run had is the default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bilevel.settings import Count, NotNegative, Positive, Settings
from bilevel.tasks.language_model.vocabulary import SMALLEST

Share = Annotated[float, Field(ge=0, lt=1)]

ARMS = {"single_en": ("en",), "single_de": ("de",), "union": ("en", "de"), "multimodel": ("en", "de")}
"""Languages that each arm reads."""


class Dropout(Settings):
    """Probabilities with which entries are left out, the same ones at all steps of a batch.

    embedding: whole tokens. inputs, cell_inputs: of embeddings, one mask after the other. hidden: of all states that a
    matrix of the cell is multiplied by. outputs: of what logits are made of.
    """

    embedding: Share = 0.0
    inputs: Share = 0.2
    cell_inputs: Share = 0.75
    hidden: Share = 0.25
    outputs: Share = 0.75


class Phase(Settings):
    """How the weights of a network are trained, in the search or afterwards.

    hidden: n, of embeddings and states.
    rows, length: of a batch of each language, in tokens.
    steps: of the optimizer.
    optimizer: plain gradient descent, as published, or Adam, for runs of few steps.
    learning_rate: of the optimizer, on the mean loss of a token.
    clip: greatest length of a gradient.
    weight_decay: coupled to the gradient.
    slowness: coefficient of the mean of (h_t − h_{t−1})² within lines.
    dropout: see `Dropout`.
    evaluate_every: steps from one look at the validation lines to the next.
    """

    hidden: Count
    rows: Count
    length: Count
    steps: Count
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 20.0
    clip: Positive = 0.25
    weight_decay: NotNegative
    slowness: NotNegative = 1e-3
    dropout: Dropout = Dropout()
    evaluate_every: Count


class LanguageModelSettings(Settings):
    """Settings of the task. The defaults are those of the published run, as far as they are known.

    arm: which languages are read, and with how many cells: one language, both with one cell and one normalization
        (`union`), or both with a cell each and shared weights (`multimodel`).
    vocabulary: kinds of tokens, of both languages together, whatever the arm.
    nodes: of the cell.
    beta_contrastive: β of the pull between the hidden representations of translations, in the search and afterwards,
        where there are two cells. margin: of that loss.
    contrastive_pairs: how many pairs of a batch it looks at.
    structure_learning_rate, structure_weight_decay: of the Adam that moves structural parameters; the decay is coupled.
    search, retraining: how weights are trained. In the search each step is followed by one of the structure.
    nonmonotone: after how many evaluations without a better one the parameters of retraining are averaged (ASGD).
    outer_set: what the structure is fitted to: some of the training lines, held out in the search, or, as published,
        the validation lines that the parameters are chosen by.
    outer_size: pairs held out.
    train_size, validation_size, test_size: pairs; the last two must be given for data without a split of that name, and
        cut one that is there. None: all.
    """

    arm: Literal["single_en", "single_de", "union", "multimodel"] = "multimodel"
    vocabulary: Annotated[int, Field(ge=SMALLEST)] = 10_000
    nodes: Count = 8
    beta_contrastive: NotNegative = 1.0
    margin: NotNegative = 0.0
    contrastive_pairs: Annotated[int, Field(ge=2)] = 64
    structure_learning_rate: Positive = 3e-3
    structure_weight_decay: NotNegative = 1e-3
    search: Phase = Phase(hidden=300, rows=8, length=32, steps=780_000, weight_decay=5e-7, evaluate_every=15_600)
    retraining: Phase = Phase(
        hidden=850,
        rows=70,
        length=64,
        steps=450_000,
        weight_decay=8e-7,
        dropout=Dropout(embedding=0.1),
        evaluate_every=900,
    )
    nonmonotone: Count = 5
    outer_set: Literal["held_out", "validation"] = "held_out"
    outer_size: Count = 40_000
    train_size: Count | None = None
    validation_size: Count | None = None
    test_size: Count | None = None
