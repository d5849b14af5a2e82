"""`python -m bilevel <command>`: what the rules of the pipeline run; any of them can be repeated by hand."""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bilevel.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors meant for people are printed without a traceback, with exit status 1."""
    chosen = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = chosen.command
    try:
        command(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bilevel", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    data = commands.add_parser("data", help="find, check and convert a data set")
    data.add_argument("name")
    data.add_argument("--directories", nargs="*", default=[], help="folders to look in first")
    data.add_argument("--download", action="store_true", help="allow the official address")
    data.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    data.set_defaults(command=_data)

    teacher = commands.add_parser("teacher", help="train a teacher for one seed")
    teacher.add_argument("name", help="what the configuration calls it")
    teacher.add_argument("--seed", type=int, required=True)
    teacher.add_argument("--spec", type=json.loads, required=True, help="JSON: kind and settings")
    teacher.add_argument("--data", type=Path, help="a .safetensors file made by `data`, for kinds that use one")
    teacher.add_argument("--output", type=Path, required=True, help="folder of the teacher's files")
    teacher.set_defaults(command=_teacher)

    run = commands.add_parser("run", help="one method of one study, for some seeds")
    run.add_argument("--study", required=True)
    run.add_argument("--method", required=True, help="its name within the study")
    run.add_argument("--seeds", type=int, nargs="+", required=True)
    run.add_argument("--spec", type=json.loads, required=True, help="JSON: task, method and their settings")
    run.add_argument("--data", type=Path, help="a .safetensors file made by `data`, for tasks that use one")
    run.add_argument(
        "--teachers",
        nargs="+",
        type=Path,
        default=[],
        help="digests made by `teacher`, one for each seed or one for all, for tasks that distill one",
    )
    run.add_argument("--output", type=Path, required=True, help="folder of the results")
    run.set_defaults(command=_run)

    tables = commands.add_parser("tables", help="runs to tables")
    tables.add_argument("--config", type=json.loads, required=True, help="the resolved configuration as JSON")
    tables.add_argument("--runs", type=Path, required=True)
    tables.add_argument("--output", type=Path, required=True)
    tables.set_defaults(command=_tables)

    claims = commands.add_parser("claims", help="tables to verdicts")
    claims.add_argument("--claims", type=Path, required=True)
    claims.add_argument("--scalars", type=Path, required=True)
    claims.add_argument("--output", type=Path, required=True)
    claims.set_defaults(command=_claims)

    figures = commands.add_parser("figures", help="tables to the figures of a deck")
    figures.add_argument("deck")
    figures.add_argument("--decks", type=Path, required=True)
    figures.add_argument("--tables", type=Path, required=True)
    figures.add_argument("--output", type=Path, required=True, help="folder of the figures")
    figures.set_defaults(command=_figures)

    report = commands.add_parser("report", help="tables and figures to the page")
    report.add_argument("--tables", type=Path, required=True)
    report.add_argument("--figures", type=Path, required=True)
    report.add_argument("--decks", type=Path, required=True)
    report.add_argument("--output", type=Path, required=True)
    report.set_defaults(command=_report)

    partial = commands.add_parser("partial", help="tables, figures and page of whatever runs there are")
    partial.add_argument("--config", type=json.loads, required=True)
    partial.add_argument("--results", type=Path, required=True)
    partial.set_defaults(command=_partial)

    schema = commands.add_parser("schema", help="JSON schema of config.yaml, to standard output")
    schema.set_defaults(command=_schema)
    return parser


def _data(arguments: argparse.Namespace) -> None:
    from bilevel import data

    directories = [Path(directory).expanduser() for directory in arguments.directories]
    data.prepare(arguments.name, arguments.output, directories, arguments.download)
    print(arguments.output.with_suffix(".origin.txt").read_text(encoding="utf-8").strip())


def _teacher(arguments: argparse.Namespace) -> None:
    keep_memory()
    from bilevel.data import load
    from bilevel.teachers import save, teacher_class

    begin = time.perf_counter()
    spec: dict[str, Any] = arguments.spec
    _check_spec(spec, {"teacher", "settings", "device", "threads"}, [arguments.seed])
    device = _prepared_device(spec)
    kind = teacher_class(spec["teacher"])
    dataset = None if arguments.data is None else load(arguments.data)
    trained = kind(arguments.name, kind.read_settings(spec["settings"]), dataset, device).train(arguments.seed)
    made_of = {**spec, "data": _digests(arguments.data)}
    save(trained, arguments.output, name=arguments.name, seed=arguments.seed, spec=made_of)
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in trained.metrics.items())
    print(
        f"teacher {arguments.name}, seed {arguments.seed}: {metrics}; {time.perf_counter() - begin:.1f} s",
        file=sys.stderr,
    )


def _run(arguments: argparse.Namespace) -> None:
    keep_memory()
    from bilevel import registry, results
    from bilevel.data import load
    from bilevel.tasks import create_method, task_class
    from bilevel.teachers import load as load_teacher

    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.perf_counter()
    spec: dict[str, Any] = arguments.spec
    keys = {"deck", "task", "settings", "method", "method_settings", "device", "threads"}
    _check_spec(spec, keys | ({"teacher"} if arguments.teachers else set()), arguments.seeds)
    if len(arguments.teachers) not in (0, 1, len(arguments.seeds)):
        raise UserError(
            f"--teachers: expected one for all seeds or one for each of {len(arguments.seeds)}, "
            f"got {len(arguments.teachers)}"
        )
    device = _prepared_device(spec)
    cls = task_class(spec["task"])
    settings = cls.read_settings(spec["settings"])
    method = create_method(spec["task"], spec["method"], spec["method_settings"])
    # taken before the work, so that an edit while a job runs is seen afterwards
    code = registry.run_code_hash(spec["task"], spec["method"])
    dataset = None if arguments.data is None else load(arguments.data)
    teachers = [load_teacher(digest) for digest in arguments.teachers]
    task = cls(arguments.study, settings, dataset, arguments.seeds, device)
    if teachers:
        each = teachers * len(arguments.seeds) if len(teachers) == 1 else teachers
        task.use_teachers([tensors for tensors, _ in each])
    result = task.run(method, f"{arguments.study} {arguments.method}")
    record = {
        "spec": spec,
        "task": spec["task"],
        "deck": spec["deck"],
        "settings": {"task": settings.model_dump(), "method": {"method": spec["method"], **_fields(method)}},
        "code_hash": code,
        "data": _digests(arguments.data),
        "teachers": {str(digest.seed): digest.sha256 for _, digest in teachers},
        **results.surroundings(device),
        "seconds": time.perf_counter() - begin,
        "peak_memory_mb": results.peak_memory_mb(),
        "started": started,
    }
    results.save(
        result,
        arguments.output,
        study=arguments.study,
        method=arguments.method,
        seeds=arguments.seeds,
        record=record,
    )
    good = int(result.alive.sum())
    print(
        f"{arguments.study} {arguments.method}: {good} of {len(arguments.seeds)} seeds ok, {record['seconds']:.1f} s",
        file=sys.stderr,
    )


def _digests(data: Path | None) -> dict[str, Any]:
    return {} if data is None else {data.stem: json.loads(data.with_suffix(".json").read_text())}


def _check_spec(spec: Any, keys: set[str], seeds: list[int]) -> None:
    from bilevel.config import MAX_SEED

    if not isinstance(spec, dict) or set(spec) != keys:
        raise UserError(f"--spec: expected a JSON object with the keys {', '.join(sorted(keys))}")
    if not isinstance(spec["threads"], int) or spec["threads"] < 1:
        raise UserError(f"--spec: threads must be 1 or more, got {spec['threads']!r}")
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise UserError(f"--seeds: expected different seeds from 0 to {MAX_SEED}, got {seeds}")


def _prepared_device(spec: dict[str, Any]) -> Any:
    """The device that `spec` asks for, with torch set up as every computation is."""
    import torch

    device = _device(spec["device"])
    torch.set_num_threads(spec["threads"])
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # untyped; nothing reads it
    return device


def _fields(method: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(method)


def _device(name: str) -> Any:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"compute.device: expected auto, cpu or cuda, got {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device: cuda was asked for, but torch finds no CUDA device; use cpu or auto")
    return torch.device(name)


def _tables(arguments: argparse.Namespace) -> None:
    from bilevel import config

    chosen = config.read(arguments.config)
    folders = [arguments.runs / run.folder for run in chosen.runs()]
    _collect(arguments.config, [folder for folder in folders if (folder / "record.json").exists()], arguments.output)


def _collect(configuration: dict[str, Any], folders: list[Path], output: Path) -> None:
    from bilevel import config, tables

    runs = config.read(configuration).runs()
    expected = [(run.study, run.method, seed) for run in runs for seed in run.seeds]
    tables.collect(folders, output, expected=expected, configuration=configuration, commit=_commit())


def _claims(arguments: argparse.Namespace) -> None:
    from bilevel import claims

    claims.write(arguments.claims, arguments.scalars, arguments.output)


def _figures(arguments: argparse.Namespace) -> None:
    from bilevel import plots

    plots.draw_all(arguments.deck, arguments.tables, arguments.output, arguments.decks)


def _report(arguments: argparse.Namespace) -> None:
    from bilevel import report

    report.render(arguments.tables, arguments.figures, arguments.decks, arguments.output)


def _partial(arguments: argparse.Namespace) -> None:
    from bilevel import claims, plots, report

    # beside the workflow's own tables and page, which it would otherwise take for its own work
    results, decks = arguments.results / "partial", Path("report/decks.yaml")
    tables = results / "tables"
    _collect(arguments.config, _current(arguments.config, arguments.results / "runs"), tables)
    claims.write(Path("report/claims.yaml"), tables / "scalars.csv", tables / "claims.csv")
    for deck in plots.FIGURES:
        plots.draw_all(deck, tables, results / "figures" / deck, decks)
    report.render(tables, results / "figures", decks, results / "report.html")
    print(f"report with gaps: {results / 'report.html'}", file=sys.stderr)


def _current(configuration: dict[str, Any], runs: Path) -> list[Path]:
    """Folders of finished runs that have today's settings, data and code; older ones count as missing."""
    from bilevel import config, registry

    chosen = config.read(configuration)
    found = []
    for run in chosen.runs():
        study, path = chosen.studies[run.study], runs / run.folder / "record.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        code = registry.run_code_hash(study.task, study.methods[run.method].method)
        spec = json.loads(chosen.spec(run.study, run.method))
        if (record.get("spec"), record["code_hash"], list(record["data"])) == (
            spec,
            code,
            [study.data] if study.data else [],
        ):
            found.append(path.parent)
    return found


def _schema(arguments: argparse.Namespace) -> None:
    from bilevel import config

    print(json.dumps(config.schema(), indent=2, sort_keys=True))


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def keep_memory() -> None:
    """Have the C library keep freed memory.

    A training step frees and asks for the same megabytes over and over; giving them back to the system each time costs
    up to a fifth of the run. No effect where the C library is not glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(top_pad, 2**26)
        library.mallopt(mmap_max, 0)
    except (OSError, AttributeError):
        return
