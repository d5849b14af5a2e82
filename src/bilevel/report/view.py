"""What the template is given: every number already a text, every gap already named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml
from markupsafe import Markup

from bilevel.report import figures, words
from bilevel.report.decks import (
    Deck,
    Decks,
    Figure,
    Method,
    Metric,
    Metrics,
    Quantity,
    Row,
    SlideTable,
    Study,
    Text,
)
from bilevel.report.source import Cell, Source, number

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
    """A cell of a table. `gap` stands in the place of a number; `sort` is what the column is sorted on."""

    text: str = ""
    unit: str = ""
    interval: str = ""
    n: str = ""
    remark: str = ""
    gap: str = ""
    sort: str = ""
    mark: Mark | None = None
    inside: str = ""


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
    anchor: str


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
    caption: Markup = Markup()
    groups: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Ran:
    """What a study ran on, in words; `gap` says that it did not run."""

    name: str
    key: str
    about: str
    facts: str
    gap: str = ""


@dataclass(frozen=True)
class Block:
    """A block of a deck; `kind` says which of the other fields hold it."""

    kind: str
    id: str
    title: str
    paragraphs: list[Markup] = field(default_factory=list)
    items: list[tuple[str, Markup]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    tables: list[tuple[Ran | None, Table | None]] = field(default_factory=list)
    caption: Markup = Markup()
    figure: figures.Drawn | None = None
    number: int = 0


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
    other: list[tuple[Ran | None, Table | None]]
    products: Table
    timing: Table
    provenance: list[tuple[str, list[tuple[str, str]]]]
    configuration: str


@dataclass(frozen=True)
class View:
    """Makes the page's parts from the decks file and the tables."""

    decks: Decks
    source: Source

    def page(self) -> Page:
        """All of it."""
        sections = [self.section(deck) for deck in self.decks.decks]
        claims = self.claims()
        return Page(
            title=self.decks.title,
            about=words.prose(self.decks.about),
            facts=self.facts(),
            notices=list(self.notices(sections)),
            claims=claims,
            tallies=_tallies(claims),
            choices=_choices(claims),
            decks=sections,
            other=self.other(),
            products=self.products(),
            timing=self.timing(),
            provenance=self.provenance(),
            configuration=self.configuration(),
        )

    # names

    def metric(self, key: str) -> Metric:
        """How a metric is written; its key as name where the file does not know it."""
        return self.decks.metrics.get(key, Metric(name=key, digits=3))

    def method(self, key: str) -> str:
        """Name of a method."""
        return self.decks.methods.get(key, Method(name=key)).name

    def study(self, key: str) -> Study:
        """A study; its key as name where the file does not know it."""
        return self.decks.studies.get(key, Study(name=key))

    # the head of the page

    def facts(self) -> list[tuple[str, str]]:
        """Studies, runs, seeds and commit."""
        runs = self.source.runs()
        studies = list(dict.fromkeys(study for study, _, _ in runs))
        missing, diverged = (len(self.source.listed(kind)) for kind in ("missing", "diverged"))
        count = f"{len(runs)} of {len(runs) + missing}" if missing else f"{len(runs)}"
        seeds = words.seeds(" ".join(dict.fromkeys(seed for _, _, seed in runs)))
        found = [
            ("Studies", ", ".join(studies) or "none"),
            ("Data", ", ".join(dict.fromkeys(self.data(study) for study in studies if self.data(study)))),
            ("Runs", count + (f", {diverged} diverged" if diverged else "")),
            ("Seeds", seeds or "none"),
            ("Commit", str(self.source.provenance.get("commit") or "")),
        ]
        return [(name, text) for name, text in found if text]

    def data(self, study: str) -> str:
        """Data set of a study."""
        return str(self.source.configured(study).get("data", ""))

    def notices(self, sections: Sequence[Section]) -> Iterator[Notice]:
        """What is not there, most important first."""
        missing, diverged = self._runs("missing"), self._runs("diverged")
        if missing:
            yield Notice(
                f"{_count(len(self.source.listed('missing')), 'run')} missing: shown as “not run”.", missing
            )
        if diverged:
            line = f"{_count(len(self.source.listed('diverged')), 'run')} diverged: left out of means and verdicts."
            yield Notice(line, diverged)
        gaps = [
            block.figure.gap
            for deck in sections
            for block in deck.blocks
            if block.figure and block.figure.gap
        ]
        gaps += [f"Table {name} is not there." for name in self.source.absent]
        if gaps:
            yield Notice(f"{_count(len(gaps), 'table or figure', 'tables or figures')} missing.", gaps)

    def _runs(self, kind: str) -> list[str]:
        seeds: dict[tuple[str, str], list[str]] = {}
        for entry in self.source.listed(kind):
            key = (str(entry.get("study", "")), str(entry.get("method", "")))
            seeds.setdefault(key, []).append(str(entry.get("seed", "")))
        return [
            f"{study} · {self.method(method)} · seed{'s' if len(found) > 1 else ''} {words.seeds(' '.join(found))}"
            for (study, method), found in seeds.items()
        ]

    # verdicts

    def claims(self) -> list[Claim]:
        """Every verdict, in the order of the table."""
        spans = self._spans()
        return [self._claim(row, spans) for row in self.source.claims]

    def _spans(self) -> dict[str, float]:
        """For each metric the largest distance from zero that an effect of it reaches: one scale a metric."""
        spans: dict[str, float] = {}
        for row in self.source.claims:
            found = [
                abs(value) for key in ("effect", "low", "high") if (value := number(row[key])) is not None
            ]
            spans[row["metric"]] = max([spans.get(row["metric"], 0.0), *found])
        return spans

    def _claim(self, row: Mapping[str, str], spans: Mapping[str, float]) -> Claim:
        verdict = row["verdict"].replace("_", " ").strip() or NOT_RUN
        p = number(row["p_adjusted"])
        n = number(row["n"])
        seeds = number(row["seeds_to_decide"])
        return Claim(
            verdict=verdict if verdict in VERDICTS else NOT_RUN,
            statement=row["statement"],
            deck=row["deck"],
            source=row["source"],
            study=self.study(row["study"]).name,
            published=row["published"],
            note=row["note"],
            effect=self._effect(row, spans[row["metric"]]),
            n=words.DASH if not n else f"{n:.0f}",
            p=words.probability(p),
            p_sort="" if p is None else f"{p}",
            seeds=words.DASH if seeds is None else words.decimal(seeds, 0),
            anchor=f"claim-{row['id']}-{row['study']}",
        )

    def _effect(self, row: Mapping[str, str], span: float) -> Value:
        metric = self.metric(row["metric"])
        effect, low, high = (number(row[key]) for key in ("effect", "low", "high"))
        if effect is None:
            return Value(gap=words.DASH)
        interval = words.DASH if metric.digits else ""
        mark = _mark(effect, low, high, (-span, span), 0.0)
        if low is not None and high is not None:
            bounds = (words.signed(bound * metric.scale, metric.digits) for bound in (low, high))
            interval = "[{}, {}]".format(*bounds)
        return Value(
            text=words.signed(effect * metric.scale, metric.digits),
            unit=words.difference_unit(metric),
            remark=metric.name,
            interval=interval,
            sort=f"{effect}",
            mark=replace(mark, claimed=row["better"]) if mark else None,
        )

    # decks

    def section(self, deck: Deck) -> Section:
        """A deck with its blocks in order."""
        numbers = iter(range(1, len(deck.blocks) + 1))
        blocks: list[Block] = []
        for place, block in enumerate(deck.blocks, start=1):
            anchor = f"deck-{deck.id}-{place}"
            if isinstance(block, Text):
                blocks.append(_text(block, anchor))
            elif isinstance(block, SlideTable):
                blocks.append(self._slide_block(block, deck, anchor))
            elif isinstance(block, Metrics):
                blocks.append(self._metrics_block(block, anchor))
            else:
                blocks.append(self._figure_block(block, deck, anchor, next(numbers)))
        return Section(deck.id, f"deck-{deck.id}", deck.title, deck.original, deck.authors, blocks)

    def _figure_block(self, block: Figure, deck: Deck, anchor: str, place: int) -> Block:
        drawn = figures.read(self.source.figures / deck.id / f"{block.figure}.svg")
        return Block(
            "figure", anchor, block.title, caption=words.prose(block.caption), figure=drawn, number=place
        )

    def _metrics_block(self, block: Metrics, anchor: str) -> Block:
        tables = [self.metrics_table(study, block.metrics, f"{anchor}-{study}") for study in block.studies]
        return Block("metrics", anchor, block.title, tables=tables, caption=words.prose(block.caption))

    def metrics_table(self, study: str, metrics: Sequence[str], anchor: str) -> tuple[Ran, Table | None]:
        """All methods of a study against some metrics."""
        ran = self.ran(study)
        if ran.gap:
            return ran, None
        columns = [self._column(key) for key in metrics]
        rows = [
            TableRow(
                self.method(method),
                [self.value(study, method, key) for key in metrics],
                tag=_tag(self, method),
            )
            for method in self._methods(study)
        ]
        return ran, Table(_slug(anchor), "Method", columns, rows)

    def _column(self, key: str) -> Column:
        metric = self.metric(key)
        return Column(words.heading(metric), "value" if metric.digits else "number", metric.about)

    def _methods(self, study: str) -> list[str]:
        listed = list(self.study(study).methods)
        return listed + [key for key in self.source.methods(study) if key not in listed]

    def ran(self, study: str) -> Ran:
        """What a study ran on."""
        known = self.study(study)
        seeds = dict.fromkeys(seed for name, _, seed in self.source.runs() if name == study)
        parts = [study, self.data(study), f"seeds {words.seeds(' '.join(seeds))}" if seeds else ""]
        gap = "" if self.source.methods(study) else NOT_RUN
        return Ran(known.name, study, known.about, " · ".join(part for part in parts if part), gap)

    def value(self, study: str, method: str, key: str) -> Value:
        """Mean, interval and number of seeds of one metric."""
        cell, metric = self.source.cells.get((study, method, key)), self.metric(key)
        if cell is None:
            ran = any(other[:2] == (study, method) for other in self.source.cells)
            return Value(gap="not measured" if ran else NOT_RUN)
        lost = f"{cell.diverged} diverged" if cell.diverged else ""
        if cell.mean is None:
            return Value(gap="diverged" if cell.diverged else "no value")
        return Value(
            text=words.in_unit(cell.mean, metric),
            interval=_interval(cell, metric),
            n=f"n = {cell.n}",
            remark=lost,
            sort=f"{cell.mean}",
        )

    # the slide's table

    def _slide_block(self, block: SlideTable, deck: Deck, anchor: str) -> Block:
        columns = [column for quantity in block.quantities for column in self._slide_columns(quantity, block)]
        scales = {quantity.metric: self._slide_scale(quantity, block) for quantity in block.quantities}
        rows = [self._slide_row(row, block, deck, scales) for row in block.rows]
        groups = [
            (words.heading(self.metric(item.metric)), 1 + len(block.studies)) for item in block.quantities
        ]
        table = Table(_slug(f"{anchor}-table"), "Method", columns, rows, words.prose(block.caption), groups)
        notices = [notice for study in block.studies if (notice := self._other_data(study, deck))]
        notices += [f"{self.study(study).name}: {NOT_RUN}." for study in block.studies if self.ran(study).gap]
        return Block(
            "slide_table",
            anchor,
            block.title,
            paragraphs=words.paragraphs(block.text),
            notices=list(dict.fromkeys(notices)),
            tables=[(None, table)],
        )

    def _other_data(self, study: str, deck: Deck) -> str:
        """Said where a study ran on other data than the slide, so that no figure is taken for a repetition."""
        data = self.data(study)
        if not data or data in deck.data:
            return ""
        return (
            f"The slide's figures are for {deck.data_name or ' or '.join(deck.data)}; these runs used {data}. "
            "Levels are not to be compared with the slide, only methods with one another."
        )

    def _slide_columns(self, quantity: Quantity, block: SlideTable) -> list[Column]:
        about, kind = self.metric(quantity.metric).about, "value" if quantity.interval else "number"
        return [
            Column(quantity.slide, "number", "as the slide has it", start=True),
            *(Column(self.study(study).name, kind, about) for study in block.studies),
        ]

    def _slide_scale(self, quantity: Quantity, block: SlideTable) -> tuple[float, float]:
        """Range of everything that is drawn for a quantity, with a little room."""
        metric = self.metric(quantity.metric)
        found = [
            row.slide[quantity.metric] / metric.scale for row in block.rows if quantity.metric in row.slide
        ]
        for row in block.rows:
            for study, method in row.methods.items():
                cell = self.source.cells.get((study, method, quantity.metric))
                found += (
                    [value for value in (cell.mean, cell.low, cell.high) if value is not None] if cell else []
                )
        low, high = min(found, default=0.0), max(found, default=1.0)
        room = 0.04 * ((high - low) or 1.0)
        return low - room, high + room

    def _slide_row(
        self, row: Row, block: SlideTable, deck: Deck, scales: Mapping[str, tuple[float, float]]
    ) -> TableRow:
        cells: list[Value] = []
        for quantity in block.quantities:
            metric, told = self.metric(quantity.metric), row.slide.get(quantity.metric)
            cells.append(
                Value(gap=words.DASH)
                if told is None
                else Value(text=words.decimal(told, metric.digits), sort=f"{told}", remark="")
            )
            for study in block.studies:
                method = row.methods.get(study)
                cell = self.source.cells.get((study, method, quantity.metric)) if method else None
                value = self.value(study, method, quantity.metric) if method else Value(gap=words.DASH)
                same = not self._other_data(study, deck)
                cells.append(_beside(value, cell, quantity, metric, told, scales[quantity.metric], same))
        return TableRow(row.name, cells, row.note, "" if row.on_slide else "not on the slide", row.best)

    # the rest of the page

    def other(self) -> list[tuple[Ran | None, Table | None]]:
        """Studies that no deck shows: nothing that was run is left out."""
        shown = {study for deck in self.decks.decks for study in deck.studies}
        found = sorted({study for study, _, _ in self.source.cells} - shown)
        tables: list[tuple[Ran | None, Table | None]] = []
        for study in found:
            metrics = sorted({metric for name, _, metric in self.source.cells if name == study})
            tables.append(self.metrics_table(study, metrics, f"other-{study}"))
        return tables

    def products(self) -> Table:
        """Products counted per outer step."""
        columns = [Column(self.metric(key).name, "number", self.metric(key).about) for key in self.decks.costs]
        studies = dict.fromkeys([*self.decks.studies, *(study for study, _, _ in self.source.cells)])
        rows = [
            TableRow(
                self.method(method),
                [
                    Value(text=self.study(study).name),
                    *(_bare(self.value(study, method, key)) for key in self.decks.costs),
                ],
            )
            for study in studies
            if self.source.methods(study)
            for method in self._methods(study)
        ]
        caption = words.prose("Counted where the work is done, per outer step and seed.")
        return Table("products", "Method", [Column("Study"), *columns], rows, caption)

    def timing(self) -> Table:
        """Seconds and memory of every job."""
        rows = [
            TableRow(
                self.method(row["method"]),
                [
                    Value(text=self.study(row["study"]).name),
                    Value(text=words.seeds(row["seeds"])),
                    *(_measured(row[key]) for key in ("seconds", "seconds_per_seed", "peak_memory_mb")),
                    Value(text=row["device"] or words.DASH),
                    Value(text=row["threads"] or words.DASH, sort=row["threads"]),
                ],
            )
            for row in self.source.timing
        ]
        columns = [Column("Study"), Column("Seeds")]
        columns += [Column(name, "number") for name in ("Seconds", "Seconds per seed", "Peak memory, MB")]
        columns += [Column("Device"), Column("Threads", "number")]
        caption = words.prose(
            "One row a job. These vary from one time to the next; nothing else on the page does."
        )
        return Table("timing", "Method", columns, rows, caption)

    def provenance(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """What the results were made with."""
        titles = {
            "commit": "Commit",
            "versions": "Versions",
            "devices": "Devices",
            "data": "Data",
            "code_hashes": "Code of each method",
        }
        shown = {"configuration", "missing", "diverged", *titles}
        keys = [*titles, *(key for key in self.source.provenance if key not in shown)]
        parts = [(titles.get(key, key), list(words.flat(self.source.provenance.get(key)))) for key in keys]
        threads = ", ".join(dict.fromkeys(row["threads"] for row in self.source.timing))
        return [*parts, ("Threads of a run", [("", threads or words.DASH)])]

    def configuration(self) -> str:
        """The resolved configuration as YAML."""
        found = self.source.provenance.get("configuration")
        return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=88) if found else ""


def _text(block: Text, anchor: str) -> Block:
    items = [(item.lead, words.prose(item.text)) for item in block.items]
    return Block("text", anchor, block.title, paragraphs=words.paragraphs(block.text), items=items)


def _beside(
    value: Value,
    cell: Cell | None,
    quantity: Quantity,
    metric: Metric,
    told: float | None,
    scale: tuple[float, float],
    same: bool,
) -> Value:
    """A value beside the slide's: drawn on the table's scale, and whether the interval holds the slide's figure."""
    if cell is None or cell.mean is None:
        return value
    if not quantity.interval:
        return _bare(value)
    slide = None if told is None else told / metric.scale
    inside = ""
    if slide is not None and same and cell.low is not None and cell.high is not None:
        inside = "inside" if cell.low <= slide <= cell.high else "outside"
    return replace(value, mark=_mark(cell.mean, cell.low, cell.high, scale, slide), inside=inside)


def _mark(
    at: float, low: float | None, high: float | None, scale: tuple[float, float], reference: float | None
) -> Mark | None:
    start, width = scale[0], scale[1] - scale[0]
    if width <= 0:
        return None

    def place(value: float) -> float:
        return round(4 + 92 * (value - start) / width, 1)

    bounds = (at, at) if low is None or high is None else (low, high)
    return Mark(
        place(at), place(bounds[0]), place(bounds[1]), None if reference is None else place(reference)
    )


def _interval(cell: Cell, metric: Metric) -> str:
    """Bounds in the metric's unit; a dash where one seed has none; nothing for a count that all seeds share."""
    if metric.digits == 0 and cell.low in (None, cell.high):
        return ""
    if cell.low is None or cell.high is None:
        return words.DASH
    return f"[{words.in_unit(cell.low, metric)}, {words.in_unit(cell.high, metric)}]"


def _bare(value: Value) -> Value:
    """A count: every seed has the same."""
    return replace(value, n="", interval="", remark="")


def _measured(text: str) -> Value:
    value = number(text)
    return Value(gap=words.DASH) if value is None else Value(text=words.measured(value), sort=text)


def _tag(view: View, method: str) -> str:
    return "" if method in view.decks.methods else "unnamed"


def _tallies(claims: Sequence[Claim]) -> list[Tally]:
    names = {"deck": "Claims of the slides", "project": "Our own questions"}
    found = dict.fromkeys([*names, *(claim.source for claim in claims)])
    tallies = []
    for source in found:
        verdicts = [claim.verdict for claim in claims if claim.source == source]
        if verdicts:
            tallies.append(
                Tally(names.get(source, source), [(kind, verdicts.count(kind)) for kind in VERDICTS])
            )
    return tallies


def _choices(claims: Sequence[Claim]) -> dict[str, list[tuple[str, str]]]:
    """What the list of verdicts can be narrowed to: attribute -> (value, name); only where there is a choice."""
    names: dict[str, Callable[[str], str]] = {
        "verdict": str,
        "source": lambda key: {"deck": "Slides", "project": "Own questions"}.get(key, key),
        "study": str,
        "deck": lambda key: f"Deck {key}",
    }
    found = {key: list(dict.fromkeys(getattr(claim, key) for claim in claims)) for key in names}
    found["verdict"] = [kind for kind in VERDICTS if kind in found["verdict"]]
    return {
        key: [(value, names[key](value)) for value in values]
        for key, values in found.items()
        if len(values) > 1
    }


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
