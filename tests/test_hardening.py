"""What comes from outside is data: configurations, names, files of tables and figures, packages."""

from __future__ import annotations

import ast
import copy
import datetime
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tree import ROOT, Tree, variables

from bilevel import cli, config, plain_yaml
from bilevel.report import render
from bilevel.settings import SettingsError

DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

# configurations

WRONG: list[Any] = [
    *(None, True, -1, 0, 10**30, -(10**30), 1.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x" * 10_000, "1e-3", "../../etc/passwd", "a/b", "a\0b", "a\nb", "\x1b[31m", "é", "\ud800", "None", "{0}"),
    *([], {}, [[]], [None], [0, 0], {"a": 1}, {1: 2}, {None: None}, ["a"] * 3, list(range(200)), [10**30]),
    *(datetime.date(2026, 1, 1), b"bytes", {1, 2}, {"__class__": "os.system"}),
]
NAMES = ["colour", "Méthode", "a b", "..", ".", "../x", "a/b", "x\0", "con", "n" * 300, "", "a\nb", "-", "__proto__"]

Path_ = tuple[str | int, ...]


def paths(value: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Every place in nested values."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def of_one_study(name: str) -> dict[str, Any]:
    """The configuration with one of its studies and the teacher it needs: small, so that checking it is quick."""
    study = copy.deepcopy(DEFAULT["studies"][name])
    teachers = {key: copy.deepcopy(DEFAULT["teachers"][key]) for key in [study.get("teacher")] if key}
    return {"data": {"directories": []}, "compute": {"threads": 1}, "teachers": teachers, "studies": {name: study}}


def mutate(values: dict[str, Any], path: Path_, how: str, value: Any, name: str) -> None:
    """Change a configuration in one place."""
    place: Any = values
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    if how == "delete":
        del place[last]
    elif how == "rename" and isinstance(place, dict):
        place[name] = place.pop(last)
    elif how == "add" and isinstance(place[last], dict):
        place[last][name] = value
    else:
        place[last] = value


@given(data=st.data())
@settings(max_examples=200, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_mutated_configuration_is_valid_or_refused_with_its_key(data: st.DataObject) -> None:
    values = of_one_study(data.draw(st.sampled_from(sorted(DEFAULT["studies"]))))
    path = data.draw(st.sampled_from(list(paths(values))))
    how = data.draw(st.sampled_from(["delete", "rename", "add", "replace", "replace", "replace"]))
    value, name = data.draw(st.sampled_from(WRONG)), data.draw(st.sampled_from(NAMES))
    mutate(values, path, how, value, name)
    note(f"{how} {path}: {value!r:.100}, {name!r:.100}")
    said = refusal(values)
    if said:
        heading, *lines = said.splitlines()
        assert heading == "config.yaml cannot be used:"
        assert lines
        assert all(re.match(r"  (data|compute|teachers|studies)\b|  [^:]{1,130}: unknown key$", line) for line in lines)
        assert all(len(line) < 3000 and line.isprintable() for line in lines)
        # the study or teacher, and the key itself where its value is wrong
        keys = [str(key) for key in path if isinstance(key, str)]
        known = [*keys[1:2], keys[-1]] if how == "replace" else keys[1:2] if len(path) > 2 else []
        assert [key for key in known if key not in said] == [], said
        return
    # what was taken can be carried out: every run has a folder of its own inside of results, and a specification
    chosen = config.read(values)
    folders = [run.folder for run in chosen.runs()]
    assert len(set(folders)) == len(folders)
    assert all(inside(folder) for folder in folders)
    run = next(chosen.runs())
    assert json.loads(chosen.spec(run.study, run.method))
    assert chosen.model_dump_json()


def refusal(values: dict[str, Any]) -> str:
    """Why a configuration is refused; empty where it is taken."""
    try:
        config.check(config.read(values))
    except SettingsError as error:
        return str(error)
    return ""


def inside(folder: str) -> bool:
    """Whether a folder is three levels below `results/runs`, with names that any file system takes."""
    parts = folder.split("/")
    return len(parts) == 3 and all(re.fullmatch(r"[a-z0-9][a-z0-9_.,-]{0,199}", part) for part in parts)


@pytest.mark.parametrize("name", ["..", ".", "a/..", "/etc", "a\\b", "a\0b", "a" * 81, "con", "nul.x", "a.", "", "A"])
@pytest.mark.parametrize("place", ["studies", "methods", "teachers"])
def test_names_cannot_leave_the_results_folder(place: str, name: str) -> None:
    values = of_one_study("distillation_published")
    study = values["studies"]["distillation_published"]
    if place == "studies":
        values["studies"][name] = study
    elif place == "methods":
        study["methods"][name] = {"method": "unrolled"}
    else:
        values["teachers"][name] = {"teacher": "logistic"}
    with pytest.raises(SettingsError, match=rf"(?s){place}\."):
        config.read(values)


def test_no_study_takes_the_place_of_the_teachers_files() -> None:
    values = of_one_study("bias_quadratic")
    values["studies"]["teachers"] = values["studies"].pop("bias_quadratic")
    with pytest.raises(SettingsError, match=r"studies: teachers: the files of teachers are called so"):
        config.read(values)


@pytest.mark.parametrize("name", ["../x", "a/b", "<b>x", "", "a\n", "x" * 81])
def test_a_kept_run_has_a_name_that_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reference", name, "--results", str(tmp_path), "--output", str(tmp_path / "kept")])
    assert not list(tmp_path.iterdir())


RUN = {"deck": "000", "task": "bias", "settings": {"problem": "quadratic"}, "method": "unrolled"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "cleaning_published", "settings": {}, "method": "drmad"}, "--data: a data set is needed"),
        ({"settings": 3}, "--spec: settings: expected keys and values, got 3"),
        ({"method_settings": [1]}, "--spec: method_settings: expected keys and values"),
        ({"settings": {"problem": "quadratic", "inner_steps": 10**26}}, "inner_steps: expected at most 2^53"),
        (
            {"task": "distillation_synthetic_corrected", "settings": {}, "method": "none"},
            "--teachers: distillation_synthetic_corrected needs some",
        ),
    ],
)
def test_a_job_asked_for_by_hand_is_refused_in_words(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {**RUN, "method_settings": {}, "device": "cpu", "threads": 1, **change}
    given = ["--study", "a", "--method", "b", "--seeds", "0", "--output", str(tmp_path / "o"), "--spec"]
    with pytest.raises(SystemExit):
        cli.main(["run", *given, json.dumps(spec)])
    assert f"error: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("study", "key", "value"),
    [
        ("data", "data", "../mnist_5k"),
        ("data", "task", "../../tests/cases"),
        ("data", "teacher", "../x"),
        ("method", "method", "../../cli"),
        ("method", "method", "cli"),
    ],
)
def test_tasks_methods_data_and_teachers_are_known_names(study: str, key: str, value: str) -> None:
    values = of_one_study("cleaning_corrected")
    chosen = values["studies"]["cleaning_corrected"]
    (chosen if study == "data" else chosen["methods"]["exact"])[key] = value
    with pytest.raises(SettingsError, match=rf"cleaning_corrected.*{key}: "):
        config.read(values)


def test_seeds_that_make_too_long_a_name_or_too_many_jobs_are_refused() -> None:
    values = of_one_study("bias_quadratic")
    study = values["studies"]["bias_quadratic"]
    study.update(seeds=[7 * seed for seed in range(100)], seeds_per_job=100)
    with pytest.raises(SettingsError, match=r"studies.bias_quadratic: .*seeds_per_job: .* use fewer seeds per job"):
        config.read(values)
    study.update(seeds=2_000_000_000, seeds_per_job=1)
    with pytest.raises(SettingsError, match=r"seeds: .*expected 100000 seeds at most"):
        config.read(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", "the key 'b' is there twice"),
        ("a: [", "expected the node content"),
        ("a: 2024-13-45", "'2024-13-45' cannot be read as timestamp; put text between quotes"),
        ("a: !!int zz", "'zz' cannot be read as int"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ("a: &a {b: *a}", r"\*a stands within what it stands for"),
        ("a: " + "[" * 3000 + "]" * 3000, "values are nested too deeply"),
    ],
)
def test_yaml_is_plain_values_with_every_key_once(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises(SettingsError, match=f"(?s)preset.yaml cannot be used:.*{message}"):
        config.check_files([tmp_path / "preset.yaml"])


def test_merged_keys_may_be_overridden() -> None:
    text = "base: &base {a: 1, b: 2}\nnext: &next {<<: *base, b: 3}\nlast: {<<: [*next, *base], a: 4}"
    assert plain_yaml.parse(text)["last"] == {"a": 4, "b": 3}
    config.check_files([ROOT / "config.yaml", *sorted((ROOT / "workflow/presets").glob("*.yaml"))])


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("__use_yte__: true\nx: ?1+1", "__use_yte__: code in a configuration is not allowed"),
        ("a: !!python/object/apply:os.mkdir ['made']", "not valid"),
        ("studies: {../../made: {deck: '000', task: bias, seeds: 1, methods: {a: {method: none}}}}", "small letters"),
        ("studies:\n  memory: {seeds: 1}\n  memory: {seeds: 2}", "the key 'memory' is there twice"),
        ("studies: []", "studies: expected keys and values"),
        ("studies: {bias_quadratic: {seeds: .nan}}", "seeds: .*expected a number of seeds"),
    ],
)
def test_a_hostile_preset_stops_snakemake_without_a_traceback(preset: str, message: str, tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "preset.yaml").write_text(preset)
    answer = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--configfile", "preset.yaml"],
        cwd=tree.folder,
        env=variables(tree.folder),
        capture_output=True,
        text=True,
        check=False,
    )
    said = answer.stderr + answer.stdout
    assert answer.returncode != 0
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "made").exists()
    assert not (tmp_path.parent / "made").exists()


# code

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("os.system", "os.popen", "torch.save", "torch.hub.load", "read_pickle", "to_pickle"),
    *("yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all", "yaml.unsafe_load_all"),
}
ALLOWED = {
    # a recorded derivative as Python text: variables and operators that this module numbered, no text from elsewhere
    ("src/bilevel/tracing.py", "exec"),
    ("src/bilevel/tracing.py", "compile"),
    # the example of the README, which is in this repository
    ("tests/test_readme.py", "exec"),
}
PYTHON = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
SNAKEMAKE = [ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression; empty where it is something else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '?'}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What may carry out what a file says: its name, as in `ALLOWED`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in ("read_pickle", "to_pickle"):
            yield name
        if name == "torch.load" and not is_true(given.get("weights_only")):
            yield "torch.load"
        if name == "yaml.load" and dotted(given.get("Loader", ast.Constant(0))) not in ("_Loader", "yaml.SafeLoader"):
            yield "yaml.load"
        if "allow_pickle" in given or ("shell" in given and name.startswith("subprocess.")):
            yield f"{name} with allow_pickle or shell"
        if name.rpartition(".")[2] in ("extractall", "extract") and "filter" not in given:
            yield name


def is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_nothing_carries_out_what_a_file_says() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in PYTHON
        for name in unsafe(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "frame.to_pickle(path)",
        "eval(text)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


def test_every_rule_is_a_command_of_the_package() -> None:
    for path in SNAKEMAKE:
        text = path.read_text(encoding="utf-8")
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
        assert not names & (FORBIDDEN_MODULES | {"eval", "exec", "__import__", "system", "popen"}), path
        assert not re.search(r"^\s+(run|script|notebook|wrapper):", text, flags=re.MULTILINE), path
        assert all(command.startswith("python -m bilevel ") for command in re.findall(r'shell:\n\s+"([^"]+)', text))


# names in the page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def test_names_and_captions_are_text_in_the_page(tmp_path: Path) -> None:
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    tables.mkdir()
    (figures / "000").mkdir(parents=True)
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    (tables / "cells.csv").write_text(
        f"study,method,metric,n,diverged,mean,low,high,sd\n{quoted},{quoted},{quoted},2,0,1.0,0.5,1.5,0.1\n"
        f"known,{quoted},accuracy,2,1,1.0,0.5,1.5,0.1\n"
    )
    (tables / "timing.csv").write_text(
        "study,method,seeds,seconds,seconds_per_seed,peak_memory_mb,device,threads\n"
        f"{quoted},{quoted},{quoted},1,1,1,{quoted},{quoted}\n"
    )
    hostile = {HOSTILE: HOSTILE}
    (tables / "provenance.json").write_text(
        json.dumps(
            {
                "commit": HOSTILE,
                "versions": {HOSTILE: [HOSTILE]},
                "data": hostile,
                "code_hashes": {HOSTILE: hostile},
                "devices": [HOSTILE],
                "configuration": {"studies": {HOSTILE: {"data": HOSTILE}}},
                "missing": [{"study": HOSTILE, "method": HOSTILE, "seed": HOSTILE}],
                "diverged": [],
            }
        )
    )
    (figures / "000" / "drawn.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" onload="alert(3)"><script>alert(4)</script>'
        '<a href="javascript:alert(5)"><text onclick="alert(6)">here</text></a>'
        '<image href="http://example.com/a.png"/><use href="http://example.com/b.svg#c"/>'
        '<rect style="fill: url(http://example.com/d.svg#e)"/>'
        "<foreignObject><iframe src='http://example.com'/></foreignObject></svg>"
    )
    blocks = [
        {"kind": "text", "title": HOSTILE, "text": HOSTILE, "items": [{"lead": HOSTILE, "text": HOSTILE}]},
        {"kind": "figure", "figure": "drawn", "title": HOSTILE, "caption": HOSTILE},
        {"kind": "metrics", "title": HOSTILE, "caption": HOSTILE, "studies": ["known"], "metrics": ["accuracy"]},
    ]
    decks = {
        "title": HOSTILE,
        "about": HOSTILE,
        "metrics": {"accuracy": {"name": HOSTILE, "unit": HOSTILE, "about": HOSTILE}},
        "methods": {HOSTILE: {"name": HOSTILE}},
        "studies": {"known": {"name": HOSTILE, "about": HOSTILE}},
        "decks": [{"id": "000", "title": HOSTILE, "original": HOSTILE, "authors": HOSTILE, "blocks": blocks}],
    }
    (tmp_path / "decks.yaml").write_text(yaml.safe_dump(decks))
    render(tables, figures, tmp_path / "decks.yaml", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in text
    for sign in ("<img", "onload=", "onclick=", "javascript:", "example.com", "<iframe", "foreignObject"):
        assert sign not in text.replace("&lt;img", ""), sign
    assert "here" in text


def test_the_page_forbids_other_scripts_and_requests(tmp_path: Path) -> None:
    (tmp_path / "decks.yaml").write_text("{title: t, about: a, metrics: {}, methods: {}, studies: {}}")
    render(tmp_path, tmp_path, tmp_path / "decks.yaml", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert text.index(policy[0]) < text.index("<style") < text.index("<script")


# packages


class Pin(NamedTuple):
    """An entry of a lock. One package may be there in several versions, for different Pythons, as its markers say."""

    name: str
    version: str
    marker: str
    hashes: int


PIN = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)(?: *; *(.*?))?((?: +--hash=sha256:[0-9a-f]{64})*) *")


def pins(lock: Path) -> list[Pin]:
    found = []
    for entry in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.lstrip().startswith("#"):
            match = PIN.fullmatch(entry)
            assert match, f"{lock.name}: not pinned: {entry[:80]}"
            found.append(Pin(normal(match[1]), match[2], (match[3] or "").strip(), match[4].count("--hash")))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(lines: list[str]) -> set[str]:
    return {normal(re.split(r"[\s=<>!~;\[]", line)[0]) for line in lines if line.strip() and not line.startswith("#")}


LOCKS = sorted((ROOT / "envs").glob("*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_pinned_once_and_by_hash(lock: Path) -> None:
    found = pins(lock)
    assert found
    assert [pin.name for pin in found if not pin.hashes] == []
    for name in {pin.name for pin in found}:
        markers = [pin.marker for pin in found if pin.name == name]
        assert len(set(markers)) == len(markers), name
        assert len(markers) == 1 or all(markers), name
    assert "://" not in lock.read_text(encoding="utf-8")  # what an index is called is not part of what is needed


@pytest.mark.parametrize(
    "lock", [path for path in LOCKS if path.with_suffix(".in").exists()], ids=lambda path: path.stem
)
def test_what_is_asked_for_is_in_the_lock(lock: Path) -> None:
    asked = wanted(lock.with_suffix(".in").read_text(encoding="utf-8").splitlines())
    assert asked <= {pin.name for pin in pins(lock)}


def test_what_the_package_imports_is_declared_and_locked() -> None:
    imported = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").split(".")[0])
    where = packages_distributions()
    outside = imported - set(sys.stdlib_module_names) - {"bilevel"}
    used = {normal(where[module][0]) for module in outside}
    declared = wanted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    locked = {pin.name for pin in pins(ROOT / "envs/requirements.lock")}
    assert declared <= locked
    # the text type of jinja2 and the core of pydantic come with these
    assert used - {"markupsafe", "pydantic-core"} <= declared
    assert used <= locked
