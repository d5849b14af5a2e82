"""Tables of a run, kept to be shown beside later ones: `report/reference/NAME/`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel.errors import UserError
from bilevel.files import write_together

TABLES = ("cells.csv", "measured.csv", "claims.csv", "timing.csv")


def keep(tables: Path, output: Path) -> None:
    """Copy what the page shows of a run, of the studies that ran.

    Args:
        tables: the run's tables (`results/tables`), finished up to the claims.
        output: folder to be written; its name is what the page calls the run.

    Raises:
        UserError: a table is not there.
        FileError: the folder cannot be written.
    """
    texts = {name: _read(tables / name) for name in TABLES}
    studies = {row["study"] for row in csv.DictReader(io.StringIO(texts["cells.csv"]))}
    kept = {name: _only(text, studies) for name, text in texts.items()}
    provenance = _provenance(json.loads(_read(tables / "provenance.json")), studies)
    write_together(output, {"provenance.json": json.dumps(provenance, indent=1, sort_keys=True) + "\n", **kept})


def _provenance(found: Mapping[str, Any], studies: set[str]) -> dict[str, Any]:
    """Without where data were looked for, which is a matter of the machine."""
    configured = found["configuration"]["studies"]
    configuration = {"studies": {study: configured[study] for study in sorted(studies)}}
    kept = {key: found[key] for key in ("commit", "data", "devices", "diverged", "versions")}
    return {**kept, "code_hashes": {study: found["code_hashes"][study] for study in sorted(studies)}} | {
        "configuration": configuration
    }


def _read(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path}: is not there; finish the pipeline first")
    return path.read_text(encoding="utf-8")


def _only(text: str, studies: set[str]) -> str:
    """The rows of a table that are of these studies."""
    head, *rows = csv.reader(io.StringIO(text))
    file = io.StringIO()
    place = head.index("study")
    csv.writer(file, lineterminator="\n").writerows([head, *(row for row in rows if row[place] in studies)])
    return file.getvalue()
