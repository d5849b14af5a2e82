"""What the template is given: every number already a text, every gap already named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from bilevel.report import figures

NOT_RUN = "not run"
VERDICTS = ("supported", "contradicted", "undecided", NOT_RUN)


@dataclass(frozen=True)
class Mark:
    """A drawn interval; places in percent of its width. `reference` is the slide's figure, or zero."""

    at: float
    low: float
    high: float
    reference: float | None = None
    claimed: str = ""


@dataclass(frozen=True)
class Value:
    """A cell of a table. `gap` stands in the place of a number; `sort` is what the column is sorted on.

    inside: `inside` or `outside`, where the figure of a source (a slide, a log) is by the interval.
    """

    text: str = ""
    unit: str = ""
    interval: str = ""
    n: str = ""
    remark: str = ""
    gap: str = ""
    sort: str = ""
    mark: Mark | None = None
    inside: str = ""
    source: str = ""


@dataclass(frozen=True)
class Earlier:
    """What an earlier run found on a claim."""

    run: str
    verdict: str
    effect: Value
    n: str


@dataclass(frozen=True)
class Claim:
    """A verdict in one study."""

    verdict: str
    statement: str
    deck: str
    source: str
    study: str
    published: str
    note: str
    effect: Value
    n: str
    p: str
    p_sort: str
    seeds: str
    rank: int
    anchor: str
    earlier: list[Earlier]


@dataclass(frozen=True)
class Tally:
    """How many verdicts of each kind one source has."""

    name: str
    counts: list[tuple[str, int]]


@dataclass(frozen=True)
class Column:
    """Head of a column; `kind` is `words`, `value` (mean and interval) or `number`; `start` begins a group."""

    name: str
    kind: str = "words"
    about: str = ""
    start: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row with its head."""

    name: str
    cells: list[Value]
    note: str = ""
    tag: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table that sorts; `groups` are heads that span columns, (name, number of columns)."""

    id: str
    corner: str
    columns: list[Column]
    rows: list[TableRow]
    caption: Markup | None = None
    groups: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Ran:
    """What a study ran on, in words; `gap` says that it did not run."""

    name: str
    key: str
    about: str
    facts: str
    gap: str = ""


Tables = Sequence[tuple[Ran | None, Table | None]]
"""Tables under what they ran on; a study without runs has no table."""


@dataclass(frozen=True)
class Link:
    """A name, and the id of what it leads to, if that is on the page."""

    name: str
    target: str = ""


@dataclass(frozen=True)
class Subject:
    """A row of an overview; `claims` has the verdicts of each claim, one a study."""

    name: str
    original: str
    by: Markup
    studies: list[Link]
    claims: list[list[Claim]]


@dataclass(frozen=True)
class Block:
    """A block of a deck; `kind` says which of the other fields hold it."""

    kind: str
    id: str
    title: str
    paragraphs: list[Markup] = field(default_factory=list)
    items: list[tuple[str, Markup]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    tables: Tables = ()
    caption: Markup | None = None
    figure: figures.Drawn | None = None
    number: int = 0
    corner: str = ""
    subjects: list[Subject] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A deck."""

    id: str
    anchor: str
    title: str
    original: str
    authors: str
    blocks: list[Block]


@dataclass(frozen=True)
class Notice:
    """Something that is not there: a line, and the particulars."""

    line: str
    entries: list[str]


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    about: Markup
    facts: list[tuple[str, str]]
    notices: list[Notice]
    claims: list[Claim]
    tallies: list[Tally]
    choices: Mapping[str, list[tuple[str, str]]]
    decks: list[Section]
    other: Tables
    products: Table
    timing: Table
    provenance: list[tuple[str, list[tuple[str, str]]]]
    configuration: str
    figure_styles: Markup
