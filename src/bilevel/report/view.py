"""The page as a whole: its head, what is missing, the sections, cost and provenance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml
from markupsafe import Markup

from bilevel.report import blocks, verdicts, words
from bilevel.report.decks import Decks
from bilevel.report.lookup import Lookup, said_once, slug
from bilevel.report.model import Column, Notice, Page, Ran, Section, Table, TableRow, Tables, Value
from bilevel.report.source import Source, number, run_of, study_of


def page(decks: Decks, source: Source) -> Page:
    """All of it."""
    look = Lookup(decks, source)
    sections = [blocks.section(look, deck) for deck in decks.decks]
    claims = verdicts.claims(look)
    return Page(
        title=decks.title,
        about=words.prose(decks.about),
        facts=_facts(look),
        notices=list(_notices(look, sections)),
        claims=claims,
        tallies=verdicts.tallies(claims),
        choices=verdicts.choices(claims),
        decks=sections,
        other=_other(look),
        products=_products(look),
        timing=_timing(look),
        provenance=_provenance(look),
        configuration=_configuration(look),
        figure_styles=Markup(look.sheet.css()),
    )


def _facts(look: Lookup) -> list[tuple[str, str]]:
    """Studies (their names, where they are few), data, runs, seeds and commit."""
    runs = [run for run in look.source.runs() if not run_of(run[0])]
    studies = list(dict.fromkeys(study for study, _, _ in runs))
    missing, diverged = (len(look.source.listed(kind)) for kind in ("missing", "diverged"))
    count = f"{len(runs)} of {len(runs) + missing}" if missing else f"{len(runs)}"
    seeds = words.seeds(" ".join(dict.fromkeys(seed for _, _, seed in runs)))
    found = [
        ("Studies", f"{len(studies)}" if len(studies) > 6 else ", ".join(studies) or "none"),
        ("Data", ", ".join(dict.fromkeys(look.data(study) for study in studies if look.data(study)))),
        ("Runs", count + (f", {diverged} diverged" if diverged else "")),
        ("Seeds", seeds or "none"),
        ("Commit", str(look.source.provenance.get("commit") or "")),
        (
            "Beside it",
            ", ".join(f"{name} preset, {len(run.studies())} studies" for name, run in look.source.references.items()),
        ),
    ]
    return [(name, text) for name, text in found if text]


def _notices(look: Lookup, sections: Sequence[Section]) -> Iterator[Notice]:
    """What is not there, most important first."""
    missing, diverged = _runs(look, "missing"), _runs(look, "diverged")
    if missing:
        yield Notice(f"{_count(len(look.source.listed('missing')), 'run')} missing: shown as “not run”.", missing)
    if diverged:
        line = f"{_count(len(look.source.listed('diverged')), 'run')} diverged: left out of means and verdicts."
        yield Notice(line, diverged)
    gaps = [block.figure.gap for deck in sections for block in deck.blocks if block.figure and block.figure.gap]
    gaps += [f"Table {name} is not there." for name in look.source.absent]
    if gaps:
        yield Notice(f"{_count(len(gaps), 'table or figure', 'tables or figures')} missing.", gaps)


def _runs(look: Lookup, kind: str) -> list[str]:
    seeds: dict[tuple[str, str], list[str]] = {}
    for entry in look.source.listed(kind):
        key = (str(entry.get("study", "")), str(entry.get("method", "")))
        seeds.setdefault(key, []).append(str(entry.get("seed", "")))
    return [
        f"{study} · {look.method(method)} · seed{'s' if len(found) > 1 else ''} {words.seeds(' '.join(found))}"
        for (study, method), found in seeds.items()
    ]


def _other(look: Lookup) -> Tables:
    """Studies that no deck shows: nothing that was run is left out. A row a metric, of which there are many."""
    shown = {study for deck in look.decks.decks for study in deck.studies}
    found = [study for study in look.source.studies() if study not in shown]
    tables: list[tuple[Ran | None, Table | None]] = []
    for study in found:
        metrics = sorted({metric for name, _, metric in look.source.cells if name == study})
        methods = look.methods(study)
        columns = [Column(look.method(method), "value") for method in methods]
        rows = [
            TableRow(words.heading(look.metric(key)), [look.value(study, method, key) for method in methods])
            for key in metrics
        ]
        ran, rows = said_once(look.ran(study), rows)
        tables.append((ran, Table(slug(f"other-{study}"), "Metric", columns, rows)))
    return tables


def _products(look: Lookup) -> Table:
    """Products counted per outer step; a run that counts none, as it has no outer steps, has no row."""
    columns = [Column(look.metric(key).name, "number", look.metric(key).about) for key in look.decks.costs]
    studies = dict.fromkeys([*look.decks.studies, *look.source.studies()])
    rows = [
        TableRow(
            look.method(method),
            [
                Value(text=look.study(study).name),
                *(blocks.bare(look.value(study, method, key)) for key in look.decks.costs),
            ],
        )
        for study in studies
        if look.source.methods(study)
        for method in look.methods(study)
        if any((study, method, key) in look.source.cells for key in look.decks.costs)
        or not look.measured(study, method)
    ]
    caption = words.prose("Counted where the work is done, per outer step and seed.")
    return Table("products", "Method", [Column("Study"), *columns], rows, caption)


def _timing(look: Lookup) -> Table:
    """Seconds and memory of every job of this run."""
    rows = [
        TableRow(
            look.method(row["method"]),
            [
                Value(text=look.study(row["study"]).name),
                Value(text=words.seeds(row["seeds"])),
                *(_measured(row[key]) for key in ("seconds", "seconds_per_seed", "peak_memory_mb")),
                Value(text=row["device"] or words.DASH),
                Value(text=row["threads"] or words.DASH, sort=row["threads"]),
            ],
        )
        for row in look.source.timing
        if row["study"] == study_of(row["study"])
    ]
    columns = [Column("Study"), Column("Seeds")]
    columns += [Column(name, "number") for name in ("Seconds", "Seconds per seed", "Peak memory, MB")]
    columns += [Column("Device"), Column("Threads", "number")]
    about = "One row a job. These vary from one time to the next; nothing else on the page does."
    if look.source.references:
        about += " What earlier runs took is in their `report/reference/<run>/timing.csv`."
    caption = words.prose(about)
    return Table("timing", "Method", columns, rows, caption)


def _provenance(look: Lookup) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the results were made with."""
    titles = {
        "commit": "Commit",
        "versions": "Versions",
        "devices": "Devices",
        "data": "Data",
        "code_hashes": "Code of each method",
    }
    shown = {"configuration", "missing", "diverged", *titles}
    keys = [*titles, *(key for key in look.source.provenance if key not in shown)]
    parts = [(titles.get(key, key), list(words.flat(look.source.provenance.get(key)))) for key in keys]
    threads = ", ".join(dict.fromkeys(row["threads"] for row in look.source.timing))
    earlier = [
        (
            f"Run earlier: {name} preset",
            list(words.flat({key: run.provenance.get(key) for key in ("commit", "data", "devices")})),
        )
        for name, run in look.source.references.items()
    ]
    return [*parts, ("Threads of a run", [("", threads or words.DASH)]), *earlier]


def _configuration(look: Lookup) -> str:
    """The resolved configuration as YAML."""
    found = look.source.provenance.get("configuration")
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=88) if found else ""


def _measured(text: str) -> Value:
    value = number(text)
    return Value(gap=words.DASH) if value is None else Value(text=words.measured(value), sort=text)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
