"""`bilevel list` and `bilevel explain`: everything is there, and every class says what has to be said of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from bilevel import catalogue, cli, data, docstrings, hypergradients, registry
from bilevel.errors import UserError
from bilevel.tasks import task_class
from bilevel.teachers import teacher_class

OWN = [(task, name) for task in registry.task_names() for name in registry.own_method_names(task)]
EVERY_METHOD = [
    *(f"bilevel.hypergradients.{name}" for name in registry.method_names()),
    *(registry.method_module(task, name) for task, name in OWN),
]


def labelled(module: str) -> dict[str, str]:
    cls = import_module(module).METHOD
    return docstrings.read(cls.__doc__, [setting.name for setting in catalogue.settings_of(cls)]).labelled


@pytest.mark.parametrize("module", EVERY_METHOD)
def test_every_hypergradient_says_what_it_costs_and_where_it_is_from(module: str) -> None:
    cls = import_module(module).METHOD
    if not issubclass(cls, hypergradients.Hypergradient):
        pytest.skip("no hypergradient: a search, or another way to be measured")
    found = labelled(module)
    assert set(found) == {"Cost", "Memory", "Source"}
    assert all(text.endswith((".", ")")) or label == "Source" for label, text in found.items())


def classes() -> list[tuple[str, type]]:
    return [
        *((module, import_module(module).METHOD) for module in EVERY_METHOD),
        *((name, task_class(name).settings_class) for name in registry.task_names()),
        *((name, teacher_class(name).settings_class) for name in registry.teacher_names()),
    ]


@pytest.mark.parametrize(("name", "cls"), classes())
def test_every_setting_is_described(name: str, cls: type) -> None:
    assert {setting.name: bool(setting.text) for setting in catalogue.settings_of(cls)} == {
        setting.name: True for setting in catalogue.settings_of(cls)
    }


def test_settings_have_types_and_defaults() -> None:
    found = {setting.name: setting for setting in catalogue.settings_of(import_module(EVERY_METHOD[0]).METHOD)}
    assert found["gamma"] == catalogue.Setting("gamma", "number ≥ 0, ≤ 1", None, "γ in [0, 1]; 0 is T1–T2.")
    checkpointed = catalogue.settings_of(import_module("bilevel.hypergradients.checkpointed").METHOD)
    assert [(s.name, s.type, s.default) for s in checkpointed] == [
        ("schedule", "segments or binomial or tree", "segments"),
        ("snapshots", "integer ≥ 1 or none", "none"),
    ]


def test_explain_prints_formula_settings_cost_memory_and_source() -> None:
    said = catalogue.explain("aggregated")
    for words in (
        "aggregated: hypergradient method",
        "∂L₂(w_T, λ)/∂λ + Σ_t γ^{T−t} B_t ∂L₂(w_t, λ)/∂w_t.",
        "gamma (number ≥ 0, ≤ 1; required)",
        "Cost:         T mixed products",
        "Memory:       no stored state",
        "Source:       Yakovlev, Bakhteev, Strijov 2023 (deck 000).",
        "Own versions: cleaning_published/aggregated",
    ):
        assert words in said
    assert max(map(len, catalogue.explain("reversible", 72).splitlines())) <= 72


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_everything_listed_can_be_explained(kind: str) -> None:
    names = [name for name, text in catalogue.listing(kind) if text]
    assert len(names) == len(catalogue.listing(kind)) > 0
    for name in names:
        assert name.rpartition("/")[2] in catalogue.explain(name)


def test_lists_are_those_of_the_tree() -> None:
    def names(kind: str) -> list[str]:
        return [name for name, _ in catalogue.listing(kind)]

    assert names("tasks") == list(registry.task_names())
    assert names("data") == list(data.names())
    assert names("methods") == [*registry.method_names(), *(f"{task}/{name}" for task, name in OWN)]
    assert set(names("optimizers")) >= {"SGD", "Momentum", "Adam", "LBFGS"}


def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="newton: nothing is called that; `bilevel list` shows what there is"):
        catalogue.explain("newton")


def test_a_method_that_several_tasks_have_is_explained_for_each() -> None:
    assert catalogue.explain("grid").count(": method of a task") == 3
    assert catalogue.explain("rmad/grid").count(": method of a task") == 1


def test_docstrings_are_read_in_parts() -> None:
    text = """A formula.

    Text over
    two lines.

    gamma: γ; what: ever. theta: θ, and
        more.
    rank, size: k.

    Cost: much: a lot.

    Raises ValueError at times.
    """
    found = docstrings.read(text, ["gamma", "theta", "rank", "size"])
    assert found.paragraphs == ["A formula.", "Text over\ntwo lines."]
    assert found.entries == {"gamma": "γ; what: ever.", "theta": "θ, and more.", "rank": "k.", "size": "k."}
    assert found.labelled == {"Cost": "much: a lot."}
    assert found.raises == "Raises ValueError at times."


@pytest.mark.parametrize("kind", [[], ["data"]])
def test_the_command_lists(kind: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", *kind])
    said = capsys.readouterr().out
    assert "mnist_5k" in said
    assert ("cleaning_corrected" in said) == (not kind)


def helps() -> list[list[str]]:
    parser = cli._parser()
    commands: Any = next(action for action in parser._actions if action.dest == "command" or action.choices)
    return [[], *([name] for name in commands.choices)]


@pytest.mark.parametrize("command", helps())
def test_every_help_has_a_sentence_and_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "example" in said
    assert "bilevel " + "".join(command) in said
