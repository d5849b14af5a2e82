"""config.yaml: what is refused, and in which words; the schema; the jobs it asks for."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel import config
from bilevel.settings import SettingsError

ROOT = Path(__file__).parent.parent
DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def changed(path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(DEFAULT)
    place = result
    *parents, last = path.split("/")
    for key in parents:
        place = place[key]
    place[last] = value
    return result


@pytest.mark.parametrize("preset", ["smoke", "full"])
def test_presets_are_valid(preset: str) -> None:
    config.check(config.read(config.layered([ROOT / "config.yaml", ROOT / f"workflow/presets/{preset}.yaml"])))


def test_default_is_valid_and_names_every_run_once() -> None:
    settings = config.read(DEFAULT)
    config.check(settings)
    folders = [run.folder for run in settings.runs()]
    assert len(set(folders)) == len(folders) > 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, "colour: unknown key"),
        ("studies/cleaning_corrected/sedes", 3, "studies.cleaning_corrected.sedes: unknown key"),
        (
            "studies/cleaning_corrected/task",
            "cleanin",
            "task: unknown task; there are activations, algorithms",
        ),
        ("studies/cleaning_corrected/data", "mnits", "data: unknown data set; there are mnist_5k, mnist"),
        ("studies/cleaning_corrected/seeds", [0, -1], "seeds: .*a list of seeds from 0 to .*got .0, -1."),
        ("studies/cleaning_corrected/seeds", [1, 1], "every seed may be given once only"),
        ("studies/cleaning_corrected/seeds", 0, "seeds: .*expected a number of seeds from 1.*got 0"),
        ("studies/cleaning_corrected/seeds_per_job", "2", "seeds_per_job: input should be a valid integer, got '2'"),
        ("studies/cleaning_corrected/methods/exact", {"method": "newton"}, "unknown method; there are aggregated"),
        ("studies/cleaning_corrected/methods/a b", {"method": "drmad"}, "methods.a b: expected small letters, digits"),
        ("compute/device", "tpu", "compute.device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("data/download", "yes", "data.download: input should be a valid boolean, got 'yes'"),
    ],
)
def test_wrong_structure_is_refused_with_key_value_and_what_is_allowed(path: str, value: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config.read(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "studies/cleaning_corrected/settings",
            {"epochs": 3},
            "studies.cleaning_corrected.settings.epochs: unknown key",
        ),
        (
            "studies/cleaning_corrected/data",
            "home_assistant",
            "data: a data set of images is needed, and home_assistant is one of text",
        ),
        ("studies/cleaning_corrected/settings", {"noise": 1.5}, "settings.noise: .*less than or equal to 1, got 1.5"),
        (
            "studies/cleaning_corrected/settings",
            yaml.safe_load("learning_rate: 1e-3"),
            r"settings.learning_rate: .*got '1e-3' \(YAML reads 1e-3 as text: write 1.0e-03, with a point\)",
        ),
        (
            "studies/cleaning_corrected/methods/exact",
            {"method": "aggregated"},
            "studies.cleaning_corrected.methods.exact.gamma: this key is required",
        ),
        ("studies/cleaning_corrected/settings", {"weight_decay": float("inf")}, "weight_decay: .*finite"),
        (
            "studies/cleaning_corrected/settings",
            {"train_size": 100_000},
            "settings.train_size 100000.*do not fit mnist_5k",
        ),
        ("studies/cleaning_corrected/settings", {"validation_size": 10}, "outer batches of 64 are drawn from 10"),
        (
            "studies/cleaning_published/methods/drmad",
            {"method": "unrolled"},
            "cleaning_published has no method 'unrolled'; it has aggr",
        ),
        (
            "studies/cleaning_published/methods/drmad",
            {"method": "drmad", "steps": 2},
            "studies.cleaning_published.methods.drmad.steps: unknown key",
        ),
        ("data/directories", ["/no/such/place"], "data.directories.0: no such directory: /no/such/place"),
    ],
)
def test_wrong_settings_of_tasks_and_methods_are_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config.check(config.read(changed(path, value)))


def test_an_entry_may_change_settings_of_the_task_for_itself() -> None:
    entry = {"method": "unrolled", "task": {"noise": 0.25}}
    chosen = config.read(changed("studies/cleaning_corrected/methods/exact", entry))
    config.check(chosen)
    own, other = (json.loads(chosen.spec("cleaning_corrected", method)) for method in ("exact", "none"))
    assert own["settings"] == {**other["settings"], "noise": 0.25}
    assert own["method_settings"] == {}
    entry["task"] = {"noise": 2.0, "epochs": 3}
    with pytest.raises(SettingsError) as caught:
        config.check(config.read(changed("studies/cleaning_corrected/methods/exact", entry)))
    assert "studies.cleaning_corrected.methods.exact.task.noise: input should be less" in str(caught.value)
    assert "studies.cleaning_corrected.methods.exact.task.epochs: unknown key" in str(caught.value)


def test_everything_wrong_is_named_at_once() -> None:
    values = changed("studies/cleaning_corrected/settings", {"noise": 2.0, "epochs": 3})
    values["studies"]["cleaning_published"]["methods"]["drmad"]["steps"] = 2
    with pytest.raises(SettingsError) as caught:
        config.check(config.read(values))
    assert len(str(caught.value).splitlines()) == 4  # a heading and three lines


def test_seeds_are_shared_out_over_jobs() -> None:
    values = changed("studies/cleaning_corrected/seeds", [0, 1, 2, 5, 9])
    values["studies"]["cleaning_corrected"]["seeds_per_job"] = 3
    study = config.read(values).studies["cleaning_corrected"]
    assert [config.seeds_name(job) for job in study.jobs()] == ["0-2", "5,9"]


def test_schema_in_the_tree_is_that_of_the_models() -> None:
    stored = (ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == json.loads(json.dumps(config.schema())), "run `make schema`"


def test_reading_the_configuration_loads_no_torch() -> None:
    code = (
        "import sys, yaml\nfrom bilevel import config\nfrom bilevel.plots import FIGURES\n"
        "list(config.read(yaml.safe_load(open('config.yaml'))).runs())\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_results_that_cannot_be_written_are_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.check_writable(str(tmp_path / "results"))

    def refuse(*args: Any, **settings: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SettingsError, match="results cannot be written there: Read-only file system"):
        config.check_writable(str(tmp_path / "results"))
