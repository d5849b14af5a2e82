"""Looking things up: names of metrics, methods and studies, and the values that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bilevel.report import words
from bilevel.report.compact import Sheet
from bilevel.report.decks import Decks, Method, Metric, Study
from bilevel.report.model import NOT_RUN, Column, Mark, Ran, Table, TableRow, Value
from bilevel.report.source import Cell, Source, run_of, study_of


@dataclass(frozen=True)
class Lookup:
    """The decks file and the tables, asked by key; what the file does not know goes by its key.

    sheet: what the figures of the page have in common.
    """

    decks: Decks
    source: Source
    sheet: Sheet = field(default_factory=Sheet)

    def metric(self, key: str) -> Metric:
        """How a metric is written; its key as name where the file does not know it."""
        return self.decks.metrics.get(key, Metric(name=key, digits=3))

    def method(self, key: str) -> str:
        """Name of a method."""
        return self.decks.methods.get(key, Method(name=key)).name

    def study(self, key: str) -> Study:
        """A study; its key as name where the file does not know it."""
        if run := run_of(key):
            own = self.study(study_of(key))
            return own.model_copy(update={"name": f"{own.name} · {run}"})
        return self.decks.studies.get(key, Study(name=key))

    def data(self, study: str) -> str:
        """Data set of a study."""
        return str(self.source.configured(study).get("data") or "")

    def methods(self, study: str) -> list[str]:
        """Methods that a study has or should have, in its own order."""
        listed = list(self.study(study).methods)
        return listed + [key for key in self.source.methods(study) if key not in listed]

    def ran(self, study: str) -> Ran:
        """What a study ran on."""
        known = self.study(study)
        seeds = dict.fromkeys(seed for name, _, seed in self.source.runs() if name == study)
        parts = [study_of(study), self.data(study), f"seeds {words.seeds(' '.join(seeds))}" if seeds else ""]
        if run := run_of(study):
            parts.append(f"run earlier, {run} preset, commit {self.source.references[run].provenance.get('commit')}")
        gap = "" if self.source.methods(study) else NOT_RUN
        return Ran(known.name, study, known.about, " · ".join(part for part in parts if part), gap)

    def measured(self, study: str, method: str) -> bool:
        """Whether a method of a study has any metric."""
        return method in self.source.methods(study)

    def value(self, study: str, method: str, key: str) -> Value:
        """Mean, interval and number of seeds of one metric."""
        cell, metric = self.source.cells.get((study, method, key)), self.metric(key)
        if cell is None:
            return Value(gap="not measured" if self.measured(study, method) else NOT_RUN)
        lost = f"{cell.diverged} diverged" if cell.diverged else ""
        if cell.mean is None:
            return Value(gap="diverged" if cell.diverged else "no value")
        return Value(
            text=words.in_unit(cell.mean, metric),
            interval=_interval(cell, metric),
            n=f"n\u00a0=\u00a0{cell.n}",
            remark=lost,
            sort=f"{cell.mean:.6g}",
        )

    def metrics_table(
        self, study: str, metrics: Sequence[str], anchor: str, methods: Sequence[str] = ()
    ) -> tuple[Ran, Table | None]:
        """Methods of a study against some metrics; all methods where none are named."""
        ran = self.ran(study)
        if ran.gap:
            return ran, None
        columns = [self._column(key) for key in metrics]
        rows = [
            TableRow(self.method(method), [self.value(study, method, key) for key in metrics])
            for method in self.methods(study)
            if not methods or method in methods
        ]
        ran, rows = said_once(ran, rows)
        return ran, Table(slug(anchor), "Method", columns, rows)

    def _column(self, key: str) -> Column:
        metric = self.metric(key)
        return Column(words.heading(metric), "value" if metric.digits else "number", metric.about)


def said_once(ran: Ran, rows: list[TableRow]) -> tuple[Ran, list[TableRow]]:
    """The number of seeds with what a study ran on, where it is the same in every cell, rather than in each."""
    counts = {value.n for row in rows for value in row.cells if value.n}
    if len(counts) != 1:
        return ran, rows
    ran = replace(ran, facts=f"{ran.facts} · {counts.pop()} throughout")
    return ran, [replace(row, cells=[replace(value, n="") for value in row.cells]) for row in rows]


def mark(
    at: float, low: float | None, high: float | None, scale: tuple[float, float], reference: float | None
) -> Mark | None:
    """An interval drawn on a scale, with a reference value; one seed is a dot."""
    start, width = scale[0], scale[1] - scale[0]
    if width <= 0:
        return None

    def place(value: float) -> float:
        return round(4 + 92 * (value - start) / width, 1)

    bounds = (at, at) if low is None or high is None else (low, high)
    return Mark(place(at), place(bounds[0]), place(bounds[1]), None if reference is None else place(reference))


def _interval(cell: Cell, metric: Metric) -> str:
    """Bounds in the metric's unit; a dash where one seed has none; nothing for a count that all seeds share."""
    if metric.digits == 0 and cell.low in (None, cell.high):
        return ""
    if cell.low is None or cell.high is None:
        return words.DASH
    return f"[{words.in_unit(cell.low, metric)}, {words.in_unit(cell.high, metric)}]"


def slug(text: str) -> str:
    """A text that may be an id."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text)
