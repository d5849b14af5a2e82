"""What `bilevel plan` says a configuration will take."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel import cli, config, plan, registry, work
from bilevel.plan import Measured
from bilevel.settings import SettingsError
from bilevel.tasks import task_class
from bilevel.teachers import teacher_class

ROOT = Path(__file__).parent.parent
NOWHERE = Path("there/is/no/such/file.csv")
VALUES: dict[str, Any] = {
    "teachers": {"teacher": {"teacher": "logistic", "settings": {"steps": 100}}},
    "studies": {
        "cleaning": {
            "deck": "000",
            "task": "cleaning_corrected",
            "data": "mnist_5k",
            "seeds": 4,
            "seeds_per_job": 2,
            "settings": {"outer_steps": 10},
            "methods": {"exact": {"method": "unrolled"}},
        },
        "distilled": {
            "deck": "004",
            "task": "distillation_synthetic_corrected",
            "teacher": "teacher",
            "seeds": 1,
            "methods": {"tpe": {"method": "tpe", "trials": 6}},
        },
    },
}


def changed(**changes: Any) -> config.Config:
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        place = values
        *parents, last = path.split("__")
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return config.read(values)


def record(results: Path, chosen: config.Config, number: int = 0, **changes: Any) -> Path:
    """A run of the configuration as it leaves its record; the folder."""
    run = list(chosen.runs())[number]
    data = chosen.studies[run.study].data
    folder = results / "runs" / run.folder
    folder.mkdir(parents=True)
    content = {
        "spec": json.loads(chosen.spec(run.study, run.method)),
        "data": {data: {}} if data else {},
        "seeds": run.seeds,
        "seconds": 102.0,
        "peak_memory_mb": 900.0,
        "device": "cpu (x86_64)",
        **changes,
    }
    (folder / "record.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def row(made: plan.Plan, name: str) -> plan.Row:
    return next(row for row in made.rows if row.name == name)


def test_nothing_is_known_without_a_run(tmp_path: Path) -> None:
    made = plan.make(changed(), tmp_path, set(), NOWHERE)
    assert [(row.name, row.runs, row.done, row.unknown) for row in made.rows] == [
        ("teachers", 1, 0, 1),
        ("cleaning", 2, 0, 2),
        ("distilled", 1, 0, 1),
    ]
    assert "4 jobs are in no sum" in plan.text(made, 2)


def test_what_is_done_is_not_to_come_and_the_rest_takes_as_long(tmp_path: Path) -> None:
    folder = record(tmp_path, changed())
    found = row(plan.make(changed(), tmp_path, {folder}, NOWHERE), "cleaning")
    assert (found.runs, found.done, found.scaled, found.unknown) == (2, 1, 0, 0)
    assert found.core_hours == pytest.approx((102 + plan.STARTUP) / 3600)
    assert found.memory_mb == 900
    assert found.gpu_hours == 0


def test_a_record_of_other_settings_is_scaled_by_the_work(tmp_path: Path) -> None:
    record(tmp_path, changed())
    larger = changed(
        studies__cleaning__settings={"outer_steps": 100}, studies__cleaning__seeds=8, studies__cleaning__seeds_per_job=4
    )
    found = row(plan.make(larger, tmp_path, set(), NOWHERE), "cleaning")
    assert (found.runs, found.scaled) == (2, 2)
    # ten times the steps, twice the seeds a job
    fixed = plan._FIXED
    assert found.core_hours == pytest.approx(2 * (fixed + (102 - fixed) * 10 * 2 + plan.STARTUP) / 3600)


def test_threads_count_as_cores(tmp_path: Path) -> None:
    record(tmp_path, changed(compute__threads=2))
    found = row(plan.make(changed(compute__threads=2), tmp_path, set(), NOWHERE), "cleaning")
    assert found.core_hours == pytest.approx(2 * 2 * (102 + plan.STARTUP) / 3600)


def test_hours_of_a_gpu_are_those_measured_on_one_if_any(tmp_path: Path) -> None:
    gpu = changed(compute__device="cuda")
    record(tmp_path, gpu, 0)
    found = row(plan.make(gpu, tmp_path, set(), NOWHERE), "cleaning")
    assert (found.on_cpu, found.gpu_hours) == (2, pytest.approx(2 * (102 + plan.STARTUP) / 3600))
    record(tmp_path, gpu, 1, device="cuda (NVIDIA H100)", seconds=12.0)
    found = row(plan.make(gpu, tmp_path, set(), NOWHERE), "cleaning")
    assert (found.on_cpu, found.gpu_hours) == (0, pytest.approx(2 * (12 + plan.STARTUP) / 3600))


def test_a_search_of_more_trials_takes_longer(tmp_path: Path) -> None:
    record(tmp_path, changed(), 2, seconds=32.0)
    more = changed(studies__distilled__methods={"tpe": {"method": "tpe", "trials": 12}})
    assert row(plan.make(more, tmp_path, set(), NOWHERE), "distilled").core_hours == pytest.approx(
        (plan._FIXED + (32 - plan._FIXED) * 2 + plan.STARTUP) / 3600
    )


def test_seeds_of_small_problems_take_no_longer_together() -> None:
    spec = {"task": "bias", "settings": {"problem": "quadratic"}, "method": "none", "method_settings": {}, "threads": 1}
    known = plan.Estimator([Measured(spec, "", 5, 12.0, 300.0, "cpu")], "cpu")
    assert known.guess(spec, "", 20) == plan.Guess(12.0, 300.0, "cpu", False)


def test_the_nearest_run_is_of_the_same_method_then_of_the_same_choices_then_of_the_same_size() -> None:
    def spec(method: str, **settings: Any) -> dict[str, Any]:
        return {"task": "lenet_l2", "settings": settings, "method": method, "method_settings": {}, "threads": 1}

    known = [
        Measured(spec("none", regularization="none"), "mnist_5k", 1, 10.0, 1.0, "cpu"),
        Measured(spec("reversible", regularization="shared"), "mnist_5k", 1, 20.0, 1.0, "cpu"),
        Measured(spec("reversible"), "mnist_5k", 1, 30.0, 1.0, "cpu"),
        Measured(spec("reversible", train_size=300), "mnist_5k", 1, 5.0, 1.0, "cpu"),
        Measured(spec("reversible", colour="red"), "mnist_5k", 1, 99.0, 1.0, "cpu"),  # of settings that are no longer
    ]
    found = plan.Estimator(known, "cpu").guess(spec("reversible", epochs=21), "mnist_5k", 1)
    assert found is not None
    assert 30 < found.seconds < 33
    assert plan.Estimator(known, "cpu").guess(spec("reversible", regularization="shared"), "mnist_5k", 1) == plan.Guess(
        20.0, 1.0, "cpu", True
    )


def test_teachers_are_measured_by_their_logs(tmp_path: Path) -> None:
    spec = json.loads(changed().teacher_spec("teacher"))
    digest = tmp_path / "teachers" / "other" / "0.json"
    digest.parent.mkdir(parents=True)
    digest.write_text(json.dumps({"spec": {**spec, "data": {}}}), encoding="utf-8")
    log = tmp_path / "logs" / "teachers" / "other" / "0.log"
    log.parent.mkdir(parents=True)
    log.write_text("teacher other, seed 0: train_accuracy 0.9; 7.5 s\n", encoding="utf-8")
    found = row(plan.make(changed(), tmp_path, set(), NOWHERE), "teachers")
    assert (found.runs, found.scaled, found.unknown) == (1, 0, 0)
    assert found.core_hours == pytest.approx((7.5 + plan.STARTUP) / 3600)


def test_measured_times_survive_a_file(tmp_path: Path) -> None:
    record(tmp_path, changed())
    record(tmp_path, changed(), 1, seconds=104.0, peak_memory_mb=950.0)
    found = plan.measured(tmp_path)
    assert [(each.seeds, each.seconds, each.memory_mb, each.device) for each in found] == [(2, 103.0, 950.0, "cpu")]
    plan.write(found, tmp_path / "kept.csv")
    assert plan.read(tmp_path / "kept.csv") == found
    assert row(plan.make(changed(), tmp_path / "empty", set(), tmp_path / "kept.csv"), "cleaning").scaled == 0


def test_claims_are_held_against_the_seeds_that_are_planned(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "claims.csv").write_text(
        "id,study,n,verdict,seeds_to_decide\n"
        "near,cleaning,3,undecided,4.0\nfar,cleaning,3,undecided,19\nnever,cleaning,3,undecided,\n"
        "clear,cleaning,3,supported,\nelsewhere,other,3,undecided,5\n",
        encoding="utf-8",
    )
    made = plan.make(changed(), tmp_path, set(), NOWHERE)
    assert [tuple(claim) for claim in made.claims] == [
        ("near", "cleaning", 3, 4, 4),
        ("far", "cleaning", 3, 19, 4),
        ("never", "cleaning", 3, None, 4),
    ]
    said = plan.text(made, 2)
    assert "1 of 3 claims will have enough" in said
    assert "more than 100000" in said


def test_every_task_and_every_teacher_has_a_measure_of_its_work() -> None:
    assert set(work._TASKS) == set(registry.task_names())
    assert set(work._TEACHERS) == set(registry.teacher_names())
    assert set(registry.task_names()) >= work.TOGETHER


@pytest.mark.parametrize("preset", ["", "smoke", "full"])
def test_estimates_of_what_comes_with_the_code_are_finite_and_grow_with_the_preset(preset: str) -> None:
    assert 0 < total("smoke") < total("") < total("full")
    made = plan.make(presets(preset), Path("nowhere"), set(), ROOT / plan.REFERENCE)
    assert all(row.unknown == 0 for row in made.rows), "measure it: bilevel plan --save report/reference/seconds.csv"


def presets(name: str) -> config.Config:
    files = [ROOT / "config.yaml", *([ROOT / f"workflow/presets/{name}.yaml"] if name else [])]
    return config.read(config.layered(files))


def total(preset: str) -> float:
    made = plan.make(presets(preset), Path("nowhere"), set(), ROOT / plan.REFERENCE)
    return sum(row.core_hours for row in made.rows)


@pytest.mark.parametrize("preset", ["smoke", "full"])
def test_files_are_laid_over_one_another_as_snakemake_does_it(preset: str) -> None:
    from snakemake.utils import update_config

    files = [ROOT / "config.yaml", ROOT / f"workflow/presets/{preset}.yaml"]
    expected: dict[str, Any] = {}
    for file in files:
        update_config(expected, yaml.safe_load(file.read_text(encoding="utf-8")))
    assert config.layered(files) == expected


def test_a_value_takes_the_place_of_a_mapping_and_the_other_way_round(tmp_path: Path) -> None:
    texts = ["a: {b: {c: 1, d: 2}}\ne: 3", "a: {b: {c: 9}}\ne: {f: 4}", "a: {b: 5}"]
    files = [tmp_path / f"{number}.yaml" for number in range(3)]
    for file, content in zip(files, texts, strict=True):
        file.write_text(content, encoding="utf-8")
    assert config.layered(files[:2]) == {"a": {"b": {"c": 9, "d": 2}}, "e": {"f": 4}}
    assert config.layered(files) == {"a": {"b": 5}, "e": {"f": 4}}
    files[1].write_text("- a", encoding="utf-8")
    with pytest.raises(SettingsError, match="expected keys and values, found list"):
        config.layered(files)
    files[1].write_text("", encoding="utf-8")
    assert config.layered(files) == {"a": {"b": 5}, "e": 3}
    files[1].write_text("a: 1\na: 2", encoding="utf-8")
    with pytest.raises(SettingsError, match="the key 'a' is there twice"):
        config.layered(files)


def test_the_command_takes_files_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, results = tmp_path / "config.yaml", tmp_path / "results"
    file.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    record(results, changed())
    said = []
    for given in ([str(file)], [json.dumps(VALUES)]):
        cli.main(["plan", "--config", *given, "--results", str(results), "--cores", "2"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "cleaning" in said[0]
    assert "On 2 cores: about" in said[0]
    cli.main(["plan", "--config", str(file), "--results", str(results), "--save", str(tmp_path / "kept.csv")])
    assert len(plan.read(tmp_path / "kept.csv")) == 1


def test_a_broken_record_is_left_out(tmp_path: Path) -> None:
    folder = record(tmp_path, changed())
    assert len(plan.measured(tmp_path)) == 1
    (folder / "record.json").write_text('{"spec', encoding="utf-8")
    assert plan.measured(tmp_path) == []


def test_short_runs_are_scaled_too(tmp_path: Path) -> None:
    record(tmp_path, changed(), seconds=1.1)
    larger = changed(studies__cleaning__settings={"outer_steps": 1000})
    found = row(plan.make(larger, tmp_path, set(), NOWHERE), "cleaning")
    assert found.core_hours > 90 * found.runs * 1.0 / 3600


def test_the_command_refuses_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    values = copy.deepcopy(VALUES)
    values["studies"]["cleaning"]["settings"] = {"outer_stepps": 3}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config", "{", "--results", str(tmp_path)])
    assert "error: --config: no JSON: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config", str(tmp_path / "absent.yaml"), "--results", str(tmp_path)])
    assert "absent.yaml: No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config", str(file), "--results", str(tmp_path)])
    assert "studies.cleaning.settings.outer_stepps: unknown key" in capsys.readouterr().err


def test_work_reads_the_settings_that_count() -> None:
    images = {"all": 5000}

    def of(task: str, **settings: Any) -> float:
        return work.of_task(task, task_class(task).read_settings(settings), images)

    assert of("cleaning_corrected", outer_steps=50) == 2 * of("cleaning_corrected", outer_steps=25)
    assert of("rotated_mnist_corrected", channels=32) > of("rotated_mnist_corrected")
    assert of("lenet_l2", train_size=2000) < of("lenet_l2")
    settings = teacher_class("convnet").read_settings({"epochs": 3})
    assert work.of_teacher("convnet", settings, images) == 9000
    assert work.of_task("another", settings, images) == 1
