"""Models of `report/decks.yaml`: what the slides say, and the order in which the page tells it.

A deck is data: an ordered list of blocks (text, the slide's table, a figure, a table of metrics). Names of
methods, studies and metrics stand once, at the top of the file, and serve figures and page alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bilevel import plain_yaml
from bilevel.settings import SettingsError, explain


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Model):
    """How a metric is called and written: value times `scale`, with `digits` decimals, in `unit`."""

    name: str
    unit: str = ""
    scale: float = 1.0
    digits: int = Field(default=3, ge=0)
    about: str = ""


class Method(_Model):
    """Name of a method, and the family whose color it has in figures."""

    name: str
    family: str = "other"


class Study(_Model):
    """A protocol of an experiment; `methods` are those it should have, in the order of tables and figures."""

    name: str
    about: str = ""
    methods: tuple[str, ...] = ()


class Item(_Model):
    """A paragraph with a lead, in a list."""

    lead: str
    text: str


class Text(_Model):
    """Words: paragraphs parted by blank lines, then a list. `code` between backquotes."""

    kind: Literal["text"]
    title: str = ""
    text: str = ""
    items: tuple[Item, ...] = ()


class Quantity(_Model):
    """A metric that the slide's table states; `slide` heads the column with the slide's figures."""

    metric: str
    slide: str
    interval: bool = True


class Row(_Model):
    """A row of the slide's table; `methods` says which method stands for it in each study."""

    name: str
    slide: dict[str, float] = Field(default_factory=dict)
    methods: dict[str, str] = Field(default_factory=dict)
    note: str = ""
    best: bool = False
    on_slide: bool = True


class SlideTable(_Model):
    """The slide's own table, its figures beside what came out in each of the studies.

    comparable: whether levels can be compared, as they cannot on other data or in another size than the slide's.
    """

    kind: Literal["slide_table"]
    comparable: bool = True
    title: str
    text: str = ""
    caption: str
    studies: tuple[str, ...]
    quantities: Annotated[tuple[Quantity, ...], Field(min_length=1)]
    rows: tuple[Row, ...]

    @property
    def source(self) -> str:
        """What the figures are of, in words: the slide, an article, a log."""
        return self.quantities[0].slide.lower()


class Figure(_Model):
    """A figure, by the name of its file, with a caption that stands in view."""

    kind: Literal["figure"]
    figure: str
    title: str
    caption: str


class Metrics(_Model):
    """The methods of each study against these metrics; `methods`: those shown, all where there are none."""

    kind: Literal["metrics"]
    title: str
    caption: str = ""
    studies: tuple[str, ...]
    metrics: tuple[str, ...]
    methods: tuple[str, ...] = ()


class Subject(_Model):
    """A row of an overview: how its studies go about a subject (`by`), and what came out, as ids of claims.

    original: the slide's own words.
    """

    name: str
    original: str = ""
    by: str
    studies: tuple[str, ...]
    claims: tuple[str, ...] = ()


class Overview(_Model):
    """A list of the slide, with links to studies and to verdicts; `corner` heads the column of its subjects."""

    kind: Literal["overview"]
    title: str
    caption: str = ""
    corner: str
    rows: tuple[Subject, ...]

    @property
    def linked(self) -> list[str]:
        """Studies that it leads to."""
        return [study for row in self.rows for study in row.studies]


Block = Annotated[Text | SlideTable | Figure | Metrics | Overview, Field(discriminator="kind")]


class Deck(_Model):
    """One slide deck, in its own order; `data` are the data sets whose results may be set against its figures."""

    id: str
    title: str
    original: str = ""
    authors: str = ""
    data: tuple[str, ...] = ()
    data_name: str = ""
    blocks: tuple[Block, ...] = ()

    @property
    def studies(self) -> list[str]:
        """Every study that a block of the deck names."""
        named = (block.studies for block in self.blocks if isinstance(block, SlideTable | Metrics))
        return list(dict.fromkeys(study for studies in named for study in studies))


class Decks(_Model):
    """The whole file."""

    title: str
    about: str
    metrics: dict[str, Metric]
    methods: dict[str, Method]
    studies: dict[str, Study]
    costs: tuple[str, ...] = ()
    decks: tuple[Deck, ...] = ()


def load(path: Path) -> Decks:
    """Read and check the file.

    Raises:
        SettingsError: not YAML, an unknown or missing key, or a name that the file does not define.
    """
    try:
        decks = Decks.model_validate(plain_yaml.parse(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: {explain(error)}") from error
    unknown = [line for deck in decks.decks for line in _unknown(deck, decks)]
    if unknown:
        raise SettingsError(f"{path}: " + "\n".join(unknown))
    return decks


def _unknown(deck: Deck, decks: Decks) -> Iterator[str]:
    """Names of metrics and studies that a deck uses and the file does not define."""
    linked = [study for block in deck.blocks if isinstance(block, Overview) for study in block.linked]
    for study in dict.fromkeys([*deck.studies, *linked]):
        if study not in decks.studies:
            yield f"deck {deck.id}: study {study} is not under studies"
    for metric in _metrics(deck):
        if metric not in decks.metrics:
            yield f"deck {deck.id}: metric {metric} is not under metrics"


def _metrics(deck: Deck) -> Iterator[str]:
    for block in deck.blocks:
        if isinstance(block, Metrics):
            yield from block.metrics
        if isinstance(block, SlideTable):
            yield from (quantity.metric for quantity in block.quantities)
