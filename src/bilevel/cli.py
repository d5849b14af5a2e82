"""`bilevel <command>`, or `python -m bilevel <command>`: questions of people, and the jobs of the pipeline."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel import __version__
from bilevel.errors import UserError
from bilevel.files import not_ahead_of_the_clock

if TYPE_CHECKING:
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
    except BrokenPipeError:  # whoever read this, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    for add in (_add_list, _add_explain, _add_plan, _add_watch, _add_reference, _add_schema):
        add(commands)


def _add_list(commands: _Commands) -> None:
    parser = _add(
        commands,
        "list",
        _list,
        "Show what there is to choose from, a line each: tasks, methods, data sets, teachers, inner optimizers.",
        "bilevel list methods",
    )
    parser.add_argument("kind", nargs="?", choices=_KINDS, help="only these; default: all")


def _add_explain(commands: _Commands) -> None:
    parser = _add(
        commands,
        "explain",
        _explain,
        "Say what a method is (formula, settings, cost, memory, source), or a task, data set, teacher or optimizer.",
        "bilevel explain aggregated\n  bilevel explain cleaning_published/drmad",
    )
    parser.add_argument("name", help="as `bilevel list` has it")


def _add_plan(commands: _Commands) -> None:
    parser = _add(
        commands,
        "plan",
        _plan,
        "Say what a configuration will take before anything starts: runs, core-hours, GPU-hours and memory of each "
        "study, and whether its seeds will decide the claims. Times are those of earlier runs.",
        "bilevel plan --config config.yaml workflow/presets/full.yaml",
    )
    _add_config(parser, default="config.yaml")
    _add_results(parser)
    parser.add_argument("--cores", type=_count, help="of the machine; default: those of this one")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="also write the times of the runs in RESULTS to a CSV file"
    )


def _add_watch(commands: _Commands) -> None:
    parser = _add(
        commands,
        "watch",
        _watch,
        "Show which runs are done, running, failed and waiting, with step and last metric, from their files; again "
        "after a while, until all are done.",
        "bilevel watch\n  bilevel watch --once --all",
    )
    _add_config(parser, default="what the pipeline was last started with, RESULTS/config.json")
    _add_results(parser)
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument("--all", action="store_true", help="show every run, not only what is running or has failed")
    parser.add_argument("--seconds", type=_seconds, default=5.0, help="between two tables; default: %(default)s")


def _add_reference(commands: _Commands) -> None:
    parser = _add(
        commands,
        "reference",
        _reference,
        "Keep the tables of a finished run, so that later reports show it beside theirs: the full preset, for one, "
        "which takes hours.",
        "bilevel reference full",
    )
    parser.add_argument("name", help="of the run, as the page will call it: a folder in FOLDER")
    _add_results(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("report/reference"), metavar="FOLDER", help="default: %(default)s"
    )


def _add_schema(commands: _Commands) -> None:
    _add(
        commands,
        "schema",
        _schema,
        "Print the JSON schema of config.yaml, with the settings of every task and method.",
        "bilevel schema > workflow/schemas/config.schema.json",
    )


def _add_jobs(commands: _Commands) -> None:
    """What the rules of the pipeline run."""
    for add in (
        _add_data,
        _add_teacher,
        _add_run,
        _add_preload,
        _add_tables,
        _add_claims,
        _add_figures,
        _add_report,
        _add_partial,
    ):
        add(commands)


def _add_data(commands: _Commands) -> None:
    parser = _add(
        commands,
        "data",
        _data,
        "Find a data set, check its content, and write it as one file with a digest beside it.",
        "bilevel data mnist --directories ~/data --output results/data/mnist.safetensors",
    )
    parser.add_argument("name", help="as `bilevel list data` has it")
    parser.add_argument("--directories", nargs="*", default=[], metavar="FOLDER", help="folders to look in first")
    parser.add_argument("--download", action="store_true", help="allow the official address")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")


def _add_teacher(commands: _Commands) -> None:
    parser = _add(
        commands,
        "teacher",
        _teacher,
        "Train a teacher for one seed.",
        "bilevel teacher logistic_anew --seed 0 --output results/teachers/logistic_anew \\\n"
        '    --spec \'{"teacher": "logistic", "settings": {}, "device": "cpu", "threads": 1}\'',
    )
    parser.add_argument("name", help="what the configuration calls it")
    parser.add_argument("--seed", type=int, required=True)
    _add_spec(parser, "kind of teacher, settings, device and threads")
    parser.add_argument("--data", type=Path, metavar="FILE", help="made by `data`, for kinds that use one")
    _add_output(parser, "folder of the teacher's files")
    _add_checkpoint(parser)


def _add_run(commands: _Commands) -> None:
    parser = _add(
        commands,
        "run",
        _run,
        "Run one method of one study for some seeds.",
        "bilevel run --study bias --method exact --seeds 0 1 --output /tmp/exact \\\n"
        '    --spec \'{"deck": "000", "task": "bias", "settings": {"problem": "quadratic"}, "method": "unrolled",\n'
        '             "method_settings": {}, "device": "cpu", "threads": 1}\'',
    )
    parser.add_argument("--study", required=True, metavar="NAME")
    parser.add_argument("--method", required=True, metavar="NAME", help="its name within the study")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, metavar="SEED")
    _add_spec(parser, "deck, task, settings, method, method_settings, device and threads")
    parser.add_argument("--data", type=Path, metavar="FILE", help="made by `data`, for tasks that use one")
    parser.add_argument(
        "--teachers",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="digests made by `teacher`, one for each seed or one for all, for tasks that distill one",
    )
    _add_output(parser, "folder of the run's files")
    _add_checkpoint(parser)


def _add_preload(commands: _Commands) -> None:
    parser = _add(
        commands,
        "preload",
        _preload,
        "Import everything once, and run the commands of others as forks, which then begin at once: those that find "
        "the socket in BILEVEL_PRELOADED. The pipeline starts this beside itself.",
        "bilevel preload /tmp/socket --until $$ & BILEVEL_PRELOADED=/tmp/socket python -m bilevel run …",
    )
    parser.add_argument("socket", type=Path, metavar="PATH", help="of the socket to be made")
    parser.add_argument("--until", type=int, required=True, metavar="PID", help="end with this process")


def _add_tables(commands: _Commands) -> None:
    parser = _add(
        commands,
        "tables",
        _tables,
        "Put the files of all runs together into tables, with means and intervals over seeds.",
        "bilevel tables --config config.yaml --runs results/runs --output results/tables",
    )
    _add_config(parser)
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER")
    _add_output(parser, "folder of the tables")


def _add_claims(commands: _Commands) -> None:
    parser = _add(
        commands,
        "claims",
        _claims,
        "Test every claim on the tables.",
        "bilevel claims --claims report/claims.yaml --scalars results/tables/scalars.csv --output claims.csv",
    )
    parser.add_argument("--claims", type=Path, required=True, metavar="FILE")
    parser.add_argument("--scalars", type=Path, required=True, metavar="FILE")
    _add_output(parser, "a .csv file")


def _add_figures(commands: _Commands) -> None:
    parser = _add(
        commands,
        "figures",
        _figures,
        "Draw the figures of a deck from the tables.",
        "bilevel figures 000 --decks report/decks.yaml --tables results/tables --output results/figures/000",
    )
    parser.add_argument("deck", help="its number, such as 000")
    _add_report_inputs(parser)
    _add_output(parser, "folder of the figures")


def _add_report(commands: _Commands) -> None:
    parser = _add(
        commands,
        "report",
        _report,
        "Make the page from tables and figures.",
        "bilevel report --decks report/decks.yaml --tables results/tables --figures results/figures \\\n"
        "    --references report/reference --output results/report.html",
    )
    _add_report_inputs(parser)
    parser.add_argument("--figures", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--references", type=Path, metavar="FOLDER", help="tables of earlier runs, to be shown beside these"
    )
    _add_output(parser, "an .html file")


def _add_partial(commands: _Commands) -> None:
    parser = _add(
        commands,
        "partial",
        _partial,
        "Make tables, figures and page of whatever runs there are, with the gaps named.",
        "bilevel partial --config config.yaml --results results",
    )
    _add_config(parser)
    _add_results(parser)


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
        metavar="FILE",
        help="a .safetensors file for the state while the command runs: killed and started again, it goes on from "
        "there; removed at the end",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=_seconds,
        default=15.0,
        metavar="SECONDS",
        help="from one save to the next (default: 15); 0: at every step",
    )


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _data(arguments: argparse.Namespace) -> None:
    from bilevel import data

    directories = [Path(directory).expanduser() for directory in arguments.directories]
    data.prepare(arguments.name, arguments.output, directories, arguments.download)
    print(arguments.output.with_suffix(".origin.txt").read_text(encoding="utf-8").strip())


def _preload(arguments: argparse.Namespace) -> None:
    from bilevel import preloaded

    preloaded.serve(arguments.socket, arguments.until, main)


def _teacher(arguments: argparse.Namespace) -> None:
    from bilevel import jobs

    files = jobs.Files(arguments.output, arguments.data, (), arguments.checkpoint, arguments.checkpoint_seconds)
    jobs.teacher(arguments.name, arguments.seed, arguments.spec, files)


def _run(arguments: argparse.Namespace) -> None:
    from bilevel import jobs

    teachers = tuple(arguments.teachers)
    files = jobs.Files(arguments.output, arguments.data, teachers, arguments.checkpoint, arguments.checkpoint_seconds)
    jobs.run(arguments.study, arguments.method, arguments.seeds, arguments.spec, files)


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
    from bilevel.finished import current

    given = arguments.config or ["config.yaml"]
    chosen = _checked(given)
    finished = set(current(chosen, arguments.results / "runs"))
    beside = Path() if _is_json(given) else Path(given[0]).parent  # the working folder may be another
    reference = beside / plan.REFERENCE
    made = plan.make(chosen, arguments.results, finished, reference if reference.exists() else plan.REFERENCE)
    print(plan.text(made, arguments.cores or os.cpu_count() or 1))
    if arguments.save is not None:
        plan.write(plan.measured(arguments.results), arguments.save)


def _checked(given: list[str]) -> Config:
    """The configuration, with the settings of tasks and methods looked at too."""
    from bilevel import config

    chosen = config.read(_configuration(given), _source(given))
    config.check(chosen, _source(given))
    return chosen


def _watch(arguments: argparse.Namespace) -> None:
    from bilevel import config, watch

    kept = arguments.results / "config.json"
    if not arguments.config and not kept.exists():
        raise UserError(f"{kept}: no pipeline was started here; name its configuration: --config config.yaml")
    # JSON text: as YAML, 1e-13 would be text
    given = arguments.config or [kept.read_text(encoding="utf-8")]
    chosen = config.read(_configuration(given), _source(arguments.config or [str(kept)]))
    try:
        watch.watch(chosen, arguments.results, once=arguments.once, every=arguments.all, pause=arguments.seconds)
    except KeyboardInterrupt:
        return


def _configuration(given: list[str]) -> dict[str, Any]:
    """The configuration as --config has it: JSON text, or files laid over one another."""
    from bilevel import config

    if not _is_json(given):
        return config.layered(map(Path, given))
    try:
        found: dict[str, Any] = json.loads(given[0])
    except ValueError as error:
        raise UserError(f"--config: no JSON: {error}") from None
    return found


def _is_json(given: list[str]) -> bool:
    return given[0].lstrip().startswith("{")


def _source(given: list[str]) -> str:
    """What messages call the configuration."""
    return "--config" if _is_json(given) else " + ".join(given)


def _reference(arguments: argparse.Namespace) -> None:
    from bilevel import config, references

    references.keep(arguments.results / "tables", arguments.output / config.check_name(arguments.name))


def _tables(arguments: argparse.Namespace) -> None:
    from bilevel import config
    from bilevel.finished import finished

    configuration = _configuration(arguments.config)
    chosen = config.read(configuration, _source(arguments.config))
    folders = []
    for folder, outdated in finished(chosen, arguments.runs):
        if outdated:
            raise UserError(
                f"{folder / 'record.json'}: {outdated}; delete the folder {folder} and run again, or name the file "
                "after `snakemake --forcerun`"
            )
        folders.append(folder)
    _collect(configuration, chosen, folders, arguments.output)
    not_ahead_of_the_clock(*(folder / "record.json" for folder in folders))


def _collect(configuration: dict[str, Any], chosen: Config, folders: list[Path], output: Path) -> None:
    from bilevel import tables

    expected = [(run.study, run.method, seed) for run in chosen.runs() for seed in run.seeds]
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
    from bilevel import claims, config, plots, report
    from bilevel.finished import current

    # beside the workflow's own tables and page, which it would otherwise take for its own work
    results, decks = arguments.results / "partial", Path("report/decks.yaml")
    tables = results / "tables"
    configuration = _configuration(arguments.config)
    chosen = config.read(configuration, _source(arguments.config))
    _collect(configuration, chosen, current(chosen, arguments.results / "runs"), tables)
    claims.write(Path("report/claims.yaml"), tables / "scalars.csv", tables / "claims.csv")
    for deck in plots.FIGURES:
        plots.draw_all(deck, tables, results / "figures" / deck, decks)
    report.render(tables, results / "figures", decks, results / "report.html", Path("report/reference"))
    print(f"report with gaps: {results / 'report.html'}", file=sys.stderr)


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
