"""What the page is made from, as read: tables, provenance and where figures lie. Knows nothing of how it looks."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from bilevel.errors import UserError

CELLS = ("study", "method", "metric", "n", "diverged", "mean", "low", "high")
CLAIMS = (
    *(
        "deck",
        "source",
        "id",
        "study",
        "statement",
        "metric",
        "better",
        "published",
        "effect",
        "low",
        "high",
        "n",
    ),
    *("p_adjusted", "verdict", "seeds_to_decide", "note"),
)
TIMING = ("study", "method", "seeds", "seconds", "seconds_per_seed", "peak_memory_mb", "device", "threads")


class SourceError(UserError):
    """A table is there but cannot be read as what it should be."""


@dataclass(frozen=True)
class Cell:
    """A metric of one (study, method) over seeds; what is undefined is None."""

    n: int
    diverged: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Source:
    """Everything the page shows; `absent` names the files that are not there."""

    cells: Mapping[tuple[str, str, str], Cell] = field(default_factory=dict)
    claims: Sequence[Mapping[str, str]] = ()
    timing: Sequence[Mapping[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Path = Path()
    absent: tuple[str, ...] = ()
    references: Mapping[str, Source] = field(default_factory=dict)

    @classmethod
    def read(cls, tables: Path, figures: Path = Path(), references: Path | None = None) -> Self:
        """Read whatever is there, with earlier runs, kept in folders of `references`, beside it.

        A study of such a run is one more study, `STUDY@RUN`.
        """
        own = cls._read(tables, figures)
        folders = sorted(path for path in references.iterdir() if path.is_dir()) if references else []
        kept = {folder.name: cls._read(folder, figures) for folder in folders}
        return replace(
            own,
            cells={
                **own.cells,
                **{(at(s, name), m, k): c for name, run in kept.items() for (s, m, k), c in run.cells.items()},
            },
            timing=[*own.timing, *(_at(row, name) for name, run in kept.items() for row in run.timing)],
            references=kept,
        )

    @classmethod
    def _read(cls, tables: Path, figures: Path) -> Self:
        paths = [tables / name for name in ("cells.csv", "claims.csv", "timing.csv", "provenance.json")]
        cells = {
            (row["study"], row["method"], row["metric"]): _cell(row, path)
            for path in (paths[0], tables / "measured.csv")
            for row in _rows(path, CELLS)
        }
        absent = tuple(path.name for path in paths if not path.exists())
        return cls(cells, _rows(paths[1], CLAIMS), _rows(paths[2], TIMING), _json(paths[3]), figures, absent)

    def methods(self, study: str) -> list[str]:
        """Methods of a study that have at least one cell, sorted."""
        return sorted({method for other, method, _ in self.cells if other == study})

    def studies(self) -> list[str]:
        """Studies that this run has something of, sorted; not those of earlier runs."""
        return sorted({study for study, _, _ in self.cells if not run_of(study)})

    def with_earlier(self, studies: Sequence[str]) -> list[str]:
        """Each study, with what earlier runs have of it after it."""
        found = {study for study, _, _ in self.cells}
        return [
            key
            for study in studies
            for key in (study, *(at(study, name) for name in self.references))
            if key == study or key in found
        ]

    def configured(self, study: str) -> Mapping[str, Any]:
        """Settings of a study in the resolved configuration; empty where there are none."""
        if run_of(study):
            return self.references[run_of(study)].configured(study_of(study))
        found = self.provenance.get("configuration", {}).get("studies", {}).get(study, {})
        return found if isinstance(found, Mapping) else {}

    def listed(self, kind: str) -> list[Mapping[str, Any]]:
        """Runs of provenance's `missing` or `diverged`."""
        return [entry for entry in self.provenance.get(kind, []) if isinstance(entry, Mapping)]

    def runs(self) -> list[tuple[str, str, str]]:
        """(study, method, seed) of every run that has a record, earlier ones too."""
        return [(row["study"], row["method"], seed) for row in self.timing for seed in row["seeds"].split()]


def at(study: str, run: str) -> str:
    """What a study of an earlier run is called."""
    return f"{study}@{run}"


def study_of(study: str) -> str:
    """The study itself, of a name that may have a run in it."""
    return study.partition("@")[0]


def run_of(study: str) -> str:
    """The earlier run that a study is of; empty for this run."""
    return study.partition("@")[2]


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _at(row: Mapping[str, str], run: str) -> Mapping[str, str]:
    return {**row, "study": at(row["study"], run)}


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restval="")
        lacking = [column for column in columns if column not in (reader.fieldnames or ())]
        if lacking:
            raise SourceError(f"{path}: columns are missing: {', '.join(lacking)}")
        return list(reader)


def _cell(row: Mapping[str, str], path: Path) -> Cell:
    counts = [number(row[key]) for key in ("n", "diverged")]
    if None in counts:
        raise SourceError(f"{path}: n and diverged should be whole numbers, got {row['n']!r} and {row['diverged']!r}")
    n, diverged = (int(count or 0) for count in counts)
    return Cell(n, diverged, *(number(row[key]) for key in ("mean", "low", "high")))


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: should be a JSON object")
    return found
