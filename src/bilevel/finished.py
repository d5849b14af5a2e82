"""Which runs of a configuration have been made, and whether with today's settings, data and code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bilevel import registry
from bilevel.config import Config
from bilevel.files import read_object


def current(config: Config, runs: Path) -> list[Path]:
    """Folders of finished runs that have today's settings, data and code; older ones count as missing."""
    return [folder for folder, outdated in finished(config, runs) if not outdated]


def finished(config: Config, runs: Path) -> Iterator[tuple[Path, str]]:
    """Folder of each run that has a record, and what of it is not of today, if anything.

    Snakemake sees to it that runs are made again; but it knows of those only that it made in this very folder.
    """
    for run in config.runs():
        folder = runs / run.folder
        if (folder / "record.json").exists():
            yield folder, _outdated(config, run.study, run.method, read_object(folder / "record.json"))


def _outdated(config: Config, study: str, row: str, record: dict[str, Any]) -> str:
    chosen = config.studies[study]
    code = registry.run_code_hash(chosen.task, chosen.methods[row].method)
    if record.get("code_hash") != code:
        return f"this run was made by other code ({record.get('code_hash')}, today's is {code})"
    if record.get("spec") != json.loads(config.spec(study, row)):
        return "this run was made with other settings than today's"
    if list(record.get("data") or {}) != ([chosen.data] if chosen.data else []):
        return f"this run was made on other data than {chosen.data}"
    return ""
