"""`bilevel <command>`, or `python -m bilevel <command>`: questions of people, and the jobs of the pipeline."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel import __version__
from bilevel.errors import UserError
from bilevel.files import not_ahead_of_the_clock
from bilevel.progress import say

if TYPE_CHECKING:
    from bilevel.checkpoint import CheckpointFile
    from bilevel.config import Config

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


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
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: memory was used up: {error or 'an allocation failed'}\n{_LESS_MEMORY}", file=sys.stderr)
        raise SystemExit(1) from None


_GRACE = 10
"""Seconds from a signal to end until the process is ended, saved or not."""

_LESS_MEMORY = """What helps: fewer seeds_per_job, fewer jobs at a time (--cores), smaller sizes in settings, or more
memory (mem_mb of the rule, on a cluster)."""


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocator on a CPU has no exception of its own; torch.OutOfMemoryError says "out of memory"
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("not enough memory", "out of memory", "can't allocate memory")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bilevel",
        description="Hypergradients for bilevel optimization, and a pipeline of experiments with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bilevel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    _add_questions(commands)
    _add_jobs(commands)
    return parser


_EPILOG = """examples:
  bilevel list methods
  bilevel explain aggregated
  bilevel plan --config config.yaml workflow/presets/full.yaml
  bilevel watch

Each command says more: bilevel COMMAND --help. The jobs of the pipeline (data, teacher, run, tables, claims, figures,
report) are what its rules call; any of them can be repeated by hand, as `snakemake --printshellcmds` shows it."""


def _add_questions(commands: _Commands) -> None:
    """What people ask."""
    listing = _add(
        commands,
        "list",
        _list,
        "Show what there is to choose from, a line each: tasks, methods, data sets, teachers, inner optimizers.",
        "bilevel list methods",
    )
    listing.add_argument("kind", nargs="?", choices=_KINDS, help="only these; default: all")

    explain = _add(
        commands,
        "explain",
        _explain,
        "Say what a method is (formula, settings, cost, memory, source), or a task, data set, teacher or optimizer.",
        "bilevel explain aggregated\n  bilevel explain cleaning_published/drmad",
    )
    explain.add_argument("name", help="as `bilevel list` has it")

    plan = _add(
        commands,
        "plan",
        _plan,
        "Say what a configuration will take before anything starts: runs, core-hours, GPU-hours and memory of each "
        "study, and whether its seeds will decide the claims. Times are those of earlier runs.",
        "bilevel plan --config config.yaml workflow/presets/full.yaml",
    )
    _add_config(plan, default="config.yaml")
    _add_results(plan)
    plan.add_argument("--cores", type=int, help="of the machine; default: those of this one")
    plan.add_argument(
        "--save", type=Path, metavar="FILE", help="also write the times of the runs in RESULTS to a CSV file"
    )

    watching = _add(
        commands,
        "watch",
        _watch,
        "Show which runs are done, running, failed and waiting, with step and last metric, from their files; again "
        "after a while, until all are done.",
        "bilevel watch\n  bilevel watch --once --all",
    )
    _add_config(watching, default="what the pipeline was last started with, RESULTS/config.json")
    _add_results(watching)
    watching.add_argument("--once", action="store_true", help="print one table and end")
    watching.add_argument("--all", action="store_true", help="show every run, not only what is running or has failed")
    watching.add_argument("--seconds", type=float, default=5.0, help="between two tables; default: %(default)s")

    reference = _add(
        commands,
        "reference",
        _reference,
        "Keep the tables of a finished run, so that later reports show it beside theirs: the full preset, for one, "
        "which takes hours.",
        "bilevel reference full",
    )
    reference.add_argument("name", help="of the run, as the page will call it: a folder in FOLDER")
    _add_results(reference)
    reference.add_argument(
        "--output", type=Path, default=Path("report/reference"), metavar="FOLDER", help="default: %(default)s"
    )

    _add(
        commands,
        "schema",
        _schema,
        "Print the JSON schema of config.yaml, with the settings of every task and method.",
        "bilevel schema > workflow/schemas/config.schema.json",
    )


def _add_jobs(commands: _Commands) -> None:
    """What the rules of the pipeline run."""
    data = _add(
        commands,
        "data",
        _data,
        "Find a data set, check its content, and write it as one file with a digest beside it.",
        "bilevel data mnist --directories ~/data --output results/data/mnist.safetensors",
    )
    data.add_argument("name", help="as `bilevel list data` has it")
    data.add_argument("--directories", nargs="*", default=[], metavar="FOLDER", help="folders to look in first")
    data.add_argument("--download", action="store_true", help="allow the official address")
    data.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")

    teacher = _add(
        commands,
        "teacher",
        _teacher,
        "Train a teacher for one seed.",
        "bilevel teacher logistic_anew --seed 0 --output results/teachers/logistic_anew \\\n"
        '    --spec \'{"teacher": "logistic", "settings": {}, "device": "cpu", "threads": 1}\'',
    )
    teacher.add_argument("name", help="what the configuration calls it")
    teacher.add_argument("--seed", type=int, required=True)
    _add_spec(teacher, "kind of teacher, settings, device and threads")
    teacher.add_argument("--data", type=Path, metavar="FILE", help="made by `data`, for kinds that use one")
    _add_output(teacher, "folder of the teacher's files")
    _add_checkpoint(teacher)

    run = _add(
        commands,
        "run",
        _run,
        "Run one method of one study for some seeds.",
        "bilevel run --study bias --method exact --seeds 0 1 --output /tmp/exact \\\n"
        '    --spec \'{"deck": "000", "task": "bias", "settings": {"problem": "quadratic"}, "method": "unrolled",\n'
        '             "method_settings": {}, "device": "cpu", "threads": 1}\'',
    )
    run.add_argument("--study", required=True, metavar="NAME")
    run.add_argument("--method", required=True, metavar="NAME", help="its name within the study")
    run.add_argument("--seeds", type=int, nargs="+", required=True, metavar="SEED")
    _add_spec(run, "deck, task, settings, method, method_settings, device and threads")
    run.add_argument("--data", type=Path, metavar="FILE", help="made by `data`, for tasks that use one")
    run.add_argument(
        "--teachers",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="digests made by `teacher`, one for each seed or one for all, for tasks that distill one",
    )
    _add_output(run, "folder of the run's files")
    _add_checkpoint(run)

    preload = _add(
        commands,
        "preload",
        _preload,
        "Import everything once, and run the commands of others as forks, which then begin at once: those that find "
        "the socket in BILEVEL_PRELOADED. The pipeline starts this beside itself.",
        "bilevel preload /tmp/socket --until $$ & BILEVEL_PRELOADED=/tmp/socket python -m bilevel run …",
    )
    preload.add_argument("socket", type=Path, metavar="PATH", help="of the socket to be made")
    preload.add_argument("--until", type=int, required=True, metavar="PID", help="end with this process")

    tables = _add(
        commands,
        "tables",
        _tables,
        "Put the files of all runs together into tables, with means and intervals over seeds.",
        "bilevel tables --config config.yaml --runs results/runs --output results/tables",
    )
    _add_config(tables)
    tables.add_argument("--runs", type=Path, required=True, metavar="FOLDER")
    _add_output(tables, "folder of the tables")

    claims = _add(
        commands,
        "claims",
        _claims,
        "Test every claim on the tables.",
        "bilevel claims --claims report/claims.yaml --scalars results/tables/scalars.csv --output claims.csv",
    )
    claims.add_argument("--claims", type=Path, required=True, metavar="FILE")
    claims.add_argument("--scalars", type=Path, required=True, metavar="FILE")
    _add_output(claims, "a .csv file")

    figures = _add(
        commands,
        "figures",
        _figures,
        "Draw the figures of a deck from the tables.",
        "bilevel figures 000 --decks report/decks.yaml --tables results/tables --output results/figures/000",
    )
    figures.add_argument("deck", help="its number, such as 000")
    _add_report_inputs(figures)
    _add_output(figures, "folder of the figures")

    report = _add(
        commands,
        "report",
        _report,
        "Make the page from tables and figures.",
        "bilevel report --decks report/decks.yaml --tables results/tables --figures results/figures \\\n"
        "    --references report/reference --output results/report.html",
    )
    _add_report_inputs(report)
    report.add_argument("--figures", type=Path, required=True, metavar="FOLDER")
    report.add_argument(
        "--references", type=Path, metavar="FOLDER", help="tables of earlier runs, to be shown beside these"
    )
    _add_output(report, "an .html file")

    partial = _add(
        commands,
        "partial",
        _partial,
        "Make tables, figures and page of whatever runs there are, with the gaps named.",
        "bilevel partial --config config.yaml --results results",
    )
    _add_config(partial)
    _add_results(partial)


_KINDS = ("tasks", "methods", "data", "teachers", "optimizers")


def _add(
    commands: _Commands, name: str, command: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    """A command that does `what`; the list of all commands has its first part, up to a colon."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=f"{what[0].lower()}{what[1:]}".partition(":")[0].rstrip("."),
        description=textwrap.fill(what, 100),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--config",
        nargs="+",
        required=default is None,
        metavar="FILE",
        help="YAML files, each laid over those before it, or the whole configuration as JSON text"
        + (f"; default: {default}" if default else ""),
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="RESULTS", help="default: %(default)s")


def _add_spec(parser: argparse.ArgumentParser, keys: str) -> None:
    parser.add_argument("--spec", type=json.loads, required=True, metavar="JSON", help=f"an object with {keys}")


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help=what)


def _add_report_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decks", type=Path, required=True, metavar="FILE", help="report/decks.yaml")
    parser.add_argument("--tables", type=Path, required=True, metavar="FOLDER")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a .safetensors file for the state while the command runs: killed and started again, it goes on from "
        "there; removed at the end",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="from one save to the next (default: 15); 0: at every step",
    )


def _data(arguments: argparse.Namespace) -> None:
    from bilevel import data

    directories = [Path(directory).expanduser() for directory in arguments.directories]
    data.prepare(arguments.name, arguments.output, directories, arguments.download)
    print(arguments.output.with_suffix(".origin.txt").read_text(encoding="utf-8").strip())


def _preload(arguments: argparse.Namespace) -> None:
    from bilevel import preloaded

    preloaded.serve(arguments.socket, arguments.until, main)


def _teacher(arguments: argparse.Namespace) -> None:
    keep_memory()
    from bilevel import registry
    from bilevel.data import load
    from bilevel.teachers import save, teacher_class

    begin = time.perf_counter()
    spec: dict[str, Any] = arguments.spec
    _check_spec(spec, {"teacher", "settings", "device", "threads"}, [arguments.seed])
    device = _prepared_device(spec)
    kind = teacher_class(spec["teacher"])
    code = registry.teacher_code_hash(spec["teacher"])
    dataset = None if arguments.data is None else load(arguments.data)
    made_of = {**spec, "data": _digests(arguments.data)}
    teacher = kind(arguments.name, kind.read_settings(spec["settings"]), dataset, device)
    named = [arguments.name, arguments.seed, spec]
    checkpoint = _checkpoint_file(arguments, device, settings=named, code=code, data=made_of["data"])
    teacher.checkpoint = checkpoint.root
    trained = teacher.train(arguments.seed)
    save(trained, arguments.output, name=arguments.name, seed=arguments.seed, spec=made_of)
    not_ahead_of_the_clock(*_digest_files(arguments.data))
    checkpoint.remove()
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in trained.metrics.items())
    say(f"teacher {arguments.name}, seed {arguments.seed}: {metrics}; {time.perf_counter() - begin:.1f} s")


def _run(arguments: argparse.Namespace) -> None:
    keep_memory()
    from bilevel import preloaded, registry, results
    from bilevel.data import load
    from bilevel.tasks import create_method, run, task_class
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
    each = teachers * len(arguments.seeds) if len(teachers) == 1 else teachers
    made_of = {
        "data": _digests(arguments.data),
        "teachers": {str(digest.seed): digest.sha256 for _, digest in teachers},
    }
    named = [arguments.study, arguments.method, spec]
    checkpoint = _checkpoint_file(arguments, device, settings=named, code=code, seeds=arguments.seeds, **made_of)
    result = run(
        cls,
        method,
        study=arguments.study,
        settings=settings,
        dataset=dataset,
        seeds=arguments.seeds,
        device=device,
        teachers=[tensors for tensors, _ in each],
        name=f"{arguments.study} {arguments.method}",
        checkpoint=checkpoint.root,
    )
    record = {
        "spec": spec,
        "task": spec["task"],
        "deck": spec["deck"],
        "settings": {"task": settings.model_dump(), "method": {"method": spec["method"], **_fields(method)}},
        "code_hash": code,
        **made_of,
        **results.surroundings(device),
        "seconds": checkpoint.earlier + time.perf_counter() - begin,
        "resumed": checkpoint.resumed,
        "peak_memory_mb": results.peak_memory_mb() + preloaded.shared_mb(),
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
    tensors = [digest.with_suffix(".safetensors") for digest in arguments.teachers]
    not_ahead_of_the_clock(*_digest_files(arguments.data), *arguments.teachers, *tensors)
    checkpoint.remove()
    good = int(result.alive.sum())
    say(f"{arguments.study} {arguments.method}: {good} of {len(arguments.seeds)} seeds ok, {record['seconds']:.1f} s")


def _checkpoint_file(arguments: argparse.Namespace, device: Any, **made_of: Any) -> CheckpointFile:
    """The file that `--checkpoint` names, of what a command is `made_of`; signals to end are obeyed after a save."""
    from bilevel import results
    from bilevel.checkpoint import CheckpointFile

    found = results.surroundings(device)
    file = CheckpointFile(arguments.checkpoint, {**made_of, **found}, arguments.checkpoint_seconds)
    if arguments.checkpoint is None:
        return file

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(_GRACE)  # which ends the process, should there be no opportunity to save before
        file.end(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return file


def _digest_files(data: Path | None) -> list[Path]:
    return [] if data is None else [data.with_suffix(".json")]


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
    # what torch.use_deterministic_algorithms does, which however imports a compiler, for a second and a half
    torch.set_deterministic_debug_mode("error")
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


def _list(arguments: argparse.Namespace) -> None:
    from bilevel import catalogue

    kinds = [arguments.kind] if arguments.kind else list(_KINDS)
    for number, kind in enumerate(kinds):
        found = catalogue.listing(kind)
        width = max(len(name) for name, _ in found)
        if len(kinds) > 1:
            print(f"\n{kind}" if number else kind)
        for name, text in found:
            print(f"  {name.ljust(width)}  {text}")


def _explain(arguments: argparse.Namespace) -> None:
    from bilevel import catalogue

    print(catalogue.explain(arguments.name, min(100, shutil.get_terminal_size((100, 24)).columns)))


def _plan(arguments: argparse.Namespace) -> None:
    from bilevel import plan

    values = _configuration(arguments.config or ["config.yaml"])
    finished = set(_current(values, arguments.results / "runs"))
    chosen = _checked(values)
    print(plan.text(plan.make(chosen, arguments.results, finished), arguments.cores or os.cpu_count() or 1))
    if arguments.save is not None:
        plan.write(plan.measured(arguments.results), arguments.save)


def _checked(values: dict[str, Any]) -> Config:
    """The configuration, with the settings of tasks and methods looked at too."""
    from bilevel import config

    chosen = config.read(values)
    config.check(chosen)
    return chosen


def _watch(arguments: argparse.Namespace) -> None:
    from bilevel import config, watch

    kept = arguments.results / "config.json"
    if not arguments.config and not kept.exists():
        raise UserError(f"{kept}: no pipeline was started here; name its configuration: --config config.yaml")
    chosen = config.read(_configuration(arguments.config or [str(kept)]))
    try:
        watch.watch(chosen, arguments.results, once=arguments.once, every=arguments.all, pause=arguments.seconds)
    except KeyboardInterrupt:
        return


def _configuration(given: list[str]) -> dict[str, Any]:
    """The configuration as --config has it: JSON text, or files laid over one another."""
    from bilevel import config

    if not given[0].lstrip().startswith("{"):
        return config.layered(map(Path, given))
    try:
        found: dict[str, Any] = json.loads(given[0])
    except ValueError as error:
        raise UserError(f"--config: no JSON: {error}") from None
    return found


def _reference(arguments: argparse.Namespace) -> None:
    from bilevel import references

    references.keep(arguments.results / "tables", arguments.output / arguments.name)


def _tables(arguments: argparse.Namespace) -> None:
    configuration = _configuration(arguments.config)
    folders = []
    for folder, outdated in _finished(configuration, arguments.runs):
        if outdated:
            raise UserError(
                f"{folder / 'record.json'}: {outdated}; delete the folder {folder} and run again, or name the file "
                "after `snakemake --forcerun`"
            )
        folders.append(folder)
    _collect(configuration, folders, arguments.output)
    not_ahead_of_the_clock(*(folder / "record.json" for folder in folders))


def _collect(configuration: dict[str, Any], folders: list[Path], output: Path) -> None:
    from bilevel import config, tables

    runs = config.read(configuration).runs()
    expected = [(run.study, run.method, seed) for run in runs for seed in run.seeds]
    tables.collect(folders, output, expected=expected, configuration=configuration, commit=_commit())


def _claims(arguments: argparse.Namespace) -> None:
    from bilevel import claims

    claims.write(arguments.claims, arguments.scalars, arguments.output)
    not_ahead_of_the_clock(arguments.claims, arguments.scalars)


def _figures(arguments: argparse.Namespace) -> None:
    from bilevel import plots

    plots.draw_all(arguments.deck, arguments.tables, arguments.output, arguments.decks)
    not_ahead_of_the_clock(arguments.decks, *arguments.tables.glob("*"))


def _report(arguments: argparse.Namespace) -> None:
    from bilevel import report

    report.render(arguments.tables, arguments.figures, arguments.decks, arguments.output, arguments.references)
    earlier = arguments.references.rglob("*") if arguments.references else []
    not_ahead_of_the_clock(arguments.decks, *arguments.tables.glob("*"), *arguments.figures.rglob("*"), *earlier)


def _partial(arguments: argparse.Namespace) -> None:
    from bilevel import claims, plots, report

    # beside the workflow's own tables and page, which it would otherwise take for its own work
    results, decks = arguments.results / "partial", Path("report/decks.yaml")
    tables = results / "tables"
    configuration = _configuration(arguments.config)
    _collect(configuration, _current(configuration, arguments.results / "runs"), tables)
    claims.write(Path("report/claims.yaml"), tables / "scalars.csv", tables / "claims.csv")
    for deck in plots.FIGURES:
        plots.draw_all(deck, tables, results / "figures" / deck, decks)
    report.render(tables, results / "figures", decks, results / "report.html", Path("report/reference"))
    print(f"report with gaps: {results / 'report.html'}", file=sys.stderr)


def _current(configuration: dict[str, Any], runs: Path) -> list[Path]:
    """Folders of finished runs that have today's settings, data and code; older ones count as missing."""
    return [folder for folder, outdated in _finished(configuration, runs) if not outdated]


def _finished(configuration: dict[str, Any], runs: Path) -> Iterator[tuple[Path, str]]:
    """Folder of each run that has a record, and what of it is not of today, if anything.

    Snakemake sees to it that runs are made again; but it knows of those only that it made in this very folder.
    """
    from bilevel import config, registry

    chosen = config.read(configuration)
    for run in chosen.runs():
        study, folder = chosen.studies[run.study], runs / run.folder
        if not (folder / "record.json").exists():
            continue
        record = _json_object(folder / "record.json")
        code = registry.run_code_hash(study.task, study.methods[run.method].method)
        outdated = ""
        if record.get("code_hash") != code:
            outdated = f"this run was made by other code ({record.get('code_hash')}, today's is {code})"
        elif record.get("spec") != json.loads(chosen.spec(run.study, run.method)):
            outdated = "this run was made with other settings than today's"
        elif list(record.get("data") or {}) != ([study.data] if study.data else []):
            outdated = f"this run was made on other data than {study.data}"
        yield folder, outdated


def _json_object(path: Path) -> dict[str, Any]:
    """What a JSON file says; empty where that is no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
