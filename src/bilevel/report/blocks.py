"""The sections of the decks, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bilevel.report import figures, verdicts, words
from bilevel.report.decks import Deck, Figure, Metric, Metrics, Overview, Quantity, Row, SlideTable, Study, Text
from bilevel.report.lookup import Lookup, mark, slug
from bilevel.report.model import NOT_RUN, Block, Claim, Column, Link, Section, Subject, Table, TableRow, Value
from bilevel.report.source import Cell, study_of

Scale = tuple[float, float]


def section(look: Lookup, deck: Deck) -> Section:
    """A deck with its blocks in order."""
    numbers = iter(range(1, len(deck.blocks) + 1))
    blocks: list[Block] = []
    for place, block in enumerate(deck.blocks, start=1):
        anchor = f"deck-{deck.id}-{place}"
        if isinstance(block, Text):
            blocks.append(_text(block, anchor))
        elif isinstance(block, SlideTable):
            blocks.append(_slide_table(look, block, deck, anchor))
        elif isinstance(block, Metrics):
            blocks.append(_metrics(look, block, anchor))
        elif isinstance(block, Overview):
            blocks.append(_overview(look, block, anchor))
        else:
            blocks.append(_figure(look, block, deck, anchor, next(numbers)))
    return Section(deck.id, f"deck-{deck.id}", deck.title, deck.original, deck.authors, blocks)


def _text(block: Text, anchor: str) -> Block:
    items = [(item.lead, words.prose(item.text)) for item in block.items]
    return Block("text", anchor, block.title, paragraphs=words.paragraphs(block.text), items=items)


def _figure(look: Lookup, block: Figure, deck: Deck, anchor: str, place: int) -> Block:
    drawn = figures.read(look.source.figures / deck.id / f"{block.figure}.svg", look.sheet)
    return Block("figure", anchor, block.title, caption=words.prose(block.caption), figure=drawn, number=place)


def _metrics(look: Lookup, block: Metrics, anchor: str) -> Block:
    tables = [
        look.metrics_table(study, block.metrics, f"{anchor}-{study}", block.methods)
        for study in look.source.with_earlier(block.studies)
    ]
    return Block("metrics", anchor, block.title, tables=tables, caption=words.prose(block.caption))


def _overview(look: Lookup, block: Overview, anchor: str) -> Block:
    places = _places(look)
    claims: dict[str, list[Claim]] = {}
    for told, claim in zip(look.source.claims, verdicts.claims(look), strict=True):
        claims.setdefault(told["id"], []).append(claim)
    subjects = [
        Subject(
            row.name,
            row.original,
            words.prose(row.by),
            [Link(_described(look.study(key)), places.get(key, "")) for key in row.studies],
            [claims[wanted] for wanted in row.claims if wanted in claims],
        )
        for row in block.rows
    ]
    return Block(
        "overview", anchor, block.title, caption=words.prose(block.caption), corner=block.corner, subjects=subjects
    )


def _described(study: Study) -> str:
    """What a study is about; names alone, such as Network, tell little outside of their deck."""
    return study.about.rstrip(".") or study.name


def _places(look: Lookup) -> dict[str, str]:
    """Where on the page each study stands first."""
    places: dict[str, str] = {}
    for deck in look.decks.decks:
        for place, block in enumerate(deck.blocks, start=1):
            for study in block.studies if isinstance(block, SlideTable | Metrics) else ():
                places.setdefault(study, f"deck-{deck.id}-{place}")
    return places


def _slide_table(look: Lookup, block: SlideTable, deck: Deck, anchor: str) -> Block:
    columns = [column for quantity in block.quantities for column in _columns(look, quantity, block)]
    scales = {quantity.metric: _scale(look, quantity, block) for quantity in block.quantities}
    rows = [_row(look, row, block, deck, scales) for row in block.rows]
    studies = look.source.with_earlier(block.studies)
    groups = [
        (words.heading(look.metric(item.metric)), 1 + len(_studies(look, item, block))) for item in block.quantities
    ]
    table = Table(slug(f"{anchor}-table"), "Method", columns, rows, words.prose(block.caption), groups)
    notices = [notice for study in studies if (notice := _other_data(look, study, block, deck))]
    notices += [f"{look.study(study).name}: {NOT_RUN}." for study in block.studies if look.ran(study).gap]
    return Block(
        "slide_table",
        anchor,
        block.title,
        paragraphs=words.paragraphs(block.text),
        notices=list(dict.fromkeys(notices)),
        tables=[(None, table)],
    )


def _other_data(look: Lookup, study: str, block: SlideTable, deck: Deck) -> str:
    """Said where a study ran on other data than the slide, so that no figure is taken for a repetition."""
    data = look.data(study)
    if not block.comparable:
        return (
            f"Data or sizes are not those of the {block.source}. Levels are not to be compared with it, only methods "
            "with one another."
        )
    if not data or data in deck.data:
        return ""
    return (
        f"The {block.source}'s figures are for {deck.data_name or ' or '.join(deck.data)}. Levels on {data} are not to "
        "be compared with it, only methods with one another."
    )


def _studies(look: Lookup, quantity: Quantity, block: SlideTable) -> list[str]:
    """Those with a column; a count is the same in earlier runs."""
    return look.source.with_earlier(block.studies) if quantity.interval else list(block.studies)


def _columns(look: Lookup, quantity: Quantity, block: SlideTable) -> list[Column]:
    about, kind = look.metric(quantity.metric).about, "value" if quantity.interval else "number"
    return [
        Column(quantity.slide, "number", f"as the {block.source} has it", start=True),
        *(Column(look.study(study).name, kind, about) for study in _studies(look, quantity, block)),
    ]


def _scale(look: Lookup, quantity: Quantity, block: SlideTable) -> Scale:
    """Range of everything that is drawn for a quantity, with a little room."""
    metric = look.metric(quantity.metric)
    found = [row.slide[quantity.metric] / metric.scale for row in block.rows if quantity.metric in row.slide]
    for row in block.rows:
        for study in look.source.with_earlier(list(row.methods)):
            cell = look.source.cells.get((study, row.methods[study_of(study)], quantity.metric))
            found += [value for value in (cell.mean, cell.low, cell.high) if value is not None] if cell else []
    low, high = min(found, default=0.0), max(found, default=1.0)
    room = 0.04 * ((high - low) or 1.0)
    return low - room, high + room


def _row(look: Lookup, row: Row, block: SlideTable, deck: Deck, scales: Mapping[str, Scale]) -> TableRow:
    cells: list[Value] = []
    for quantity in block.quantities:
        metric, told = look.metric(quantity.metric), row.slide.get(quantity.metric)
        cells.append(
            Value(gap=words.DASH) if told is None else Value(text=words.decimal(told, metric.digits), sort=f"{told}")
        )
        for study in _studies(look, quantity, block):
            method = row.methods.get(study_of(study))
            cell = look.source.cells.get((study, method, quantity.metric)) if method else None
            value = look.value(study, method, quantity.metric) if method else Value(gap=words.DASH)
            same = not _other_data(look, study, block, deck)
            cells.append(_beside(value, cell, quantity, metric, told, scales[quantity.metric], same))
    absent = f"not {'on' if block.source == 'slide' else 'in'} the {block.source}"
    return TableRow(row.name, cells, row.note, "" if row.on_slide else absent, row.best)


def _beside(
    value: Value,
    cell: Cell | None,
    quantity: Quantity,
    metric: Metric,
    told: float | None,
    scale: Scale,
    same: bool,
) -> Value:
    """A value beside the slide's: drawn on the table's scale, and whether the interval holds the slide's figure."""
    if cell is None or cell.mean is None:
        return value
    if not quantity.interval:
        return bare(value)
    slide = None if told is None else told / metric.scale
    inside = ""
    if slide is not None and same and cell.low is not None and cell.high is not None:
        inside = "inside" if cell.low <= slide <= cell.high else "outside"
    drawn = mark(cell.mean, cell.low, cell.high, scale, slide)
    return replace(value, mark=drawn, inside=inside, source=quantity.slide.lower())


def bare(value: Value) -> Value:
    """A count: every seed has the same."""
    return replace(value, n="", interval="", remark="")
