"""From run folders to tables: what every run wrote is put together, checked, sorted and summed up.

The same runs give the same bytes, in whatever order they are named: rows are sorted on all key columns,
floats are the shortest text that reads back as the same number, lines end in a bare newline, JSON keys are
sorted. Wall times differ from one execution to the next and stand in `timing.csv` alone.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bilevel.columns import BIN, COLUMNS, EDGE, PLACE, RUN, WHOLE_RUN, TableName
from bilevel.errors import UserError
from bilevel.files import write_together
from bilevel.statistics import mean_interval

Triple = tuple[str, str, int]
"""(study, method, seed): what a run is."""

Status = Literal["ok", "diverged"]

_KEYS: dict[TableName, list[str]] = {
    "scalars": [*RUN, "metric"],
    "trace": [*RUN, "step", "metric"],
    "histograms": [*RUN, *BIN],
    "points": [*RUN, *PLACE],
    "structures": [*RUN, *EDGE],
    "measurements": [*RUN, "step", "metric"],
}


class TableError(UserError, ValueError):
    """Runs that do not belong in one table; the message names the files and says what to do."""


class Record(BaseModel):
    """What `record.json` of a run folder says; keys that no table uses are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    study: str
    method: str
    seeds: list[int]
    status: dict[int, Status]
    code_hash: str
    data: dict[str, Any]
    versions: dict[str, str]
    device: str
    threads: int
    seconds: float
    peak_memory_mb: float

    @model_validator(mode="after")
    def _one_status_a_seed(self) -> "Record":
        if not self.seeds or sorted(self.status) != sorted(self.seeds):
            raise ValueError(f"seeds are {sorted(self.seeds)}, but status is given for {sorted(self.status)}")
        return self

    def runs(self, *statuses: Status) -> list[Triple]:
        """The (study, method, seed) of this folder that have one of these statuses."""
        return [(self.study, self.method, seed) for seed in self.seeds if self.status[seed] in statuses]


@dataclass(frozen=True)
class _Run:
    folder: Path
    record: Record
    frames: dict[TableName, pd.DataFrame]


def collect(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    expected: Sequence[Triple] | None = None,
    configuration: Mapping[str, Any] | None = None,
    commit: str | None = None,
) -> None:
    """Put the tables of all run folders together in `output`.

    Writes a table of rows for each of `bilevel.columns.COLUMNS`, `cells.csv` (mean and 95 % t-interval over the seeds
    that did not diverge, for each study, method and metric),
    `measured.csv` (the same of the measurements of whole runs), `timing.csv` (wall seconds, peak memory in MB) and
    `provenance.json`. Either all are replaced or, if anything is wrong with the runs, none.

    Args:
        run_dirs: folders with `record.json` and the tables, in any order.
        output: folder for the tables; made where it does not exist.
        expected: every run that the configuration asks for. Those that are not there are listed in
            `provenance.json` under `missing`, and a folder without `record.json` (of a run that did not
            finish) is passed over; where `expected` is None, such a folder is an error.
        configuration: resolved configuration, plain JSON values; copied into `provenance.json`.
        commit: of the project, if known.

    Raises:
        TableError: a file is missing, malformed or at odds with its record; a run is there twice; runs of one
            (study, method) were made by different code.
        FileError: a table cannot be written.
    """
    folders = sorted(run_dirs)
    if expected is not None:
        folders = [folder for folder in folders if (folder / "record.json").exists()]
    runs = [_read_run(folder) for folder in folders]
    _refuse_repeated(runs)
    _refuse_mixed_code(runs)
    records = [run.record for run in runs]
    rows = {name: _concatenate(name, [run.frames[name] for run in runs]) for name in COLUMNS}
    provenance = _provenance(records, expected or (), configuration or {}, commit)
    contents = {f"{name}.csv": csv_text(table) for name, table in rows.items()}
    contents["cells.csv"] = csv_text(_cells(rows["scalars"], records))
    contents["measured.csv"] = csv_text(_cells(_of_whole_runs(rows["measurements"]), records))
    contents["timing.csv"] = csv_text(_timing(records))
    contents["provenance.json"] = json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_together(output, contents)


def read_table(path: Path, name: TableName) -> pd.DataFrame:
    """Read a table of rows (`bilevel.columns`), of one run or of all; an empty value is NaN.

    Raises:
        TableError: the file is missing, or its columns or values are not those of this table.
    """
    columns = COLUMNS[name]
    numbers = [column for column, dtype in columns.items() if dtype == "float64"]
    try:
        table = pd.read_csv(
            path,
            dtype={column: dtype for column, dtype in columns.items() if column not in numbers},
            converters=dict.fromkeys(numbers, _number),
            keep_default_na=False,  # a method may be called "None" or "NA"
            encoding="utf-8",
        )
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a table of {name}: {error}") from error
    if list(table.columns) != list(columns):
        raise TableError(f"{path}: columns are {', '.join(table.columns)}; expected {', '.join(columns)}")
    return table.astype(columns)  # without rows the converters leave no type


def csv_text(table: pd.DataFrame) -> str:
    """The table as it is written: shortest floats that read back the same, empty cells for NaN."""
    return table.to_csv(index=False, lineterminator="\n")


def _number(text: str) -> float:
    return float(text or "nan")  # Python's float is exact to the last bit in every version of pandas


def _read_run(folder: Path) -> _Run:
    record = _read_record(folder / "record.json")
    frames: dict[TableName, pd.DataFrame] = {}
    for name, keys in _KEYS.items():
        path = folder / f"{name}.csv"
        frames[name] = read_table(path, name)
        _refuse_foreign_rows(path, frames[name], keys, record)
    _refuse_other_status(folder / "scalars.csv", frames["scalars"], record)
    return _Run(folder, record, frames)


def _read_record(path: Path) -> Record:
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); run this job again") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'record'}: {item['msg']}" for item in error.errors()]
        raise TableError(f"{path}: {'; '.join(wrong)}") from error


def _refuse_foreign_rows(path: Path, frame: pd.DataFrame, keys: list[str], record: Record) -> None:
    found = set(frame[[*RUN]].itertuples(index=False, name=None))
    foreign = sorted(found.difference(record.runs("ok", "diverged")))
    if foreign:
        raise TableError(f"{path}: has rows of {_name(foreign[0])}, which is not a run of its record.json")
    repeated = frame[frame.duplicated(keys)]
    if len(repeated):
        values = ", ".join(f"{key} {value}" for key, value in repeated.iloc[0][keys].items())
        raise TableError(f"{path}: has two rows for {values}")


def _refuse_other_status(path: Path, scalars: pd.DataFrame, record: Record) -> None:
    found = set(scalars[["seed", "status"]].itertuples(index=False, name=None))
    for seed in record.seeds:
        told = {status for other, status in found if other == seed}
        if told.difference({record.status[seed]}) or (record.status[seed] == "ok" and not told):
            says = ", ".join(sorted(told)) or "has no row"
            raise TableError(f"{path}: status of seed {seed} is {record.status[seed]} in record.json, here: {says}")


def _refuse_repeated(runs: Iterable[_Run]) -> None:
    seen: dict[Triple, Path] = {}
    for run in runs:
        for triple in run.record.runs("ok", "diverged"):
            if triple in seen:
                raise TableError(
                    f"{_name(triple)} is there twice, in {seen[triple]} and in {run.folder}; "
                    "delete the folder that the configuration no longer asks for"
                )
            seen[triple] = run.folder


def _refuse_mixed_code(runs: Iterable[_Run]) -> None:
    first: dict[tuple[str, str], _Run] = {}
    for run in runs:
        record = run.record
        other = first.setdefault((record.study, record.method), run)
        if other.record.code_hash != record.code_hash:
            raise TableError(
                f"study {record.study}, method {record.method}: its seeds were not run by the same code: "
                f"{other.folder / 'record.json'} has code hash {other.record.code_hash}, "
                f"{run.folder / 'record.json'} has {record.code_hash}; "
                "delete the folder of the older code and run it again"
            )


def _concatenate(name: TableName, frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame(columns=[*COLUMNS[name]])
    return pd.concat(frames, ignore_index=True).sort_values(_KEYS[name], ignore_index=True)


def _cells(scalars: pd.DataFrame, records: Iterable[Record]) -> pd.DataFrame:
    diverged: dict[tuple[str, str], int] = defaultdict(int)
    for record in records:
        diverged[record.study, record.method] += len(record.runs("diverged"))
    columns = ["study", "method", "metric", "n", "diverged", "mean", "low", "high", "sd"]
    rows = []
    for names, group in scalars.groupby(["study", "method", "metric"], sort=True):
        study, method, metric = map(str, names)
        # A seed that did not diverge may still lack a value: a metric that is not defined for it.
        values = group["value"][group["status"] == "ok"].dropna()
        interval = asdict(mean_interval(values.to_numpy(dtype="float64")))
        key = {"study": study, "method": method, "metric": metric, "diverged": diverged[study, method]}
        rows.append(key | interval)
    return pd.DataFrame(rows, columns=columns)


def _of_whole_runs(measurements: pd.DataFrame) -> pd.DataFrame:
    whole = measurements[measurements["step"] == WHOLE_RUN].drop(columns="step")
    return whole.assign(status="ok")


def _timing(records: Iterable[Record]) -> pd.DataFrame:
    rows = [
        {
            "study": record.study,
            "method": record.method,
            "seeds": " ".join(map(str, sorted(record.seeds))),
            "seconds": record.seconds,
            "seconds_per_seed": record.seconds / len(record.seeds),
            "peak_memory_mb": record.peak_memory_mb,
            "device": record.device,
            "threads": record.threads,
        }
        for record in sorted(records, key=lambda record: (record.study, record.method, sorted(record.seeds)))
    ]
    columns = [
        "study",
        "method",
        "seeds",
        "seconds",
        "seconds_per_seed",
        "peak_memory_mb",
        "device",
        "threads",
    ]
    return pd.DataFrame(rows, columns=columns)


def _provenance(
    records: Sequence[Record],
    expected: Iterable[Triple],
    configuration: Mapping[str, Any],
    commit: str | None,
) -> dict[str, Any]:
    found = {triple for record in records for triple in record.runs("ok", "diverged")}
    diverged = [triple for record in records for triple in record.runs("diverged")]
    hashes: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        hashes[record.study][record.method] = record.code_hash
    return {
        "versions": _distinct(record.versions for record in records),
        "data": _distinct(record.data for record in records),
        "code_hashes": hashes,
        "devices": sorted({record.device for record in records}),
        "commit": commit,
        "configuration": dict(configuration),
        "missing": _listed(set(expected) - found),
        "diverged": _listed(diverged),
    }


def _distinct(named: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """For each name the different values it has in the records: one, unless runs differ."""
    texts: dict[str, dict[str, Any]] = defaultdict(dict)
    for mapping in named:
        for name, value in mapping.items():
            texts[name][json.dumps(value, sort_keys=True)] = value
    return {name: [value for _, value in sorted(by_text.items())] for name, by_text in texts.items()}


def _listed(triples: Iterable[Triple]) -> list[dict[str, str | int]]:
    return [{"study": study, "method": method, "seed": seed} for study, method, seed in sorted(set(triples))]


def _name(triple: Triple) -> str:
    study, method, seed = triple
    return f"study {study}, method {method}, seed {seed}"
