"""What `bilevel watch` says of runs, from files alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bilevel import cli, config, watch
from bilevel.progress import ENDED

VALUES: dict[str, Any] = {
    "teachers": {"teacher": {"teacher": "logistic"}},
    "studies": {
        "one": {
            "deck": "000",
            "task": "bias",
            "seeds": 2,
            "settings": {"problem": "quadratic"},
            # a number that YAML would take for text
            "methods": {"a": {"method": "none"}, "b": {"method": "conjugate_gradient", "tolerance": 1e-13}},
        },
        "two": {
            "deck": "004",
            "task": "distillation_synthetic_corrected",
            "teacher": "teacher",
            "seeds": 1,
            "methods": {"c": {"method": "none"}},
        },
    },
}
LINE = "one a: outer step 3/25, 7.0 s, 51.3 s left, outer_loss 0.25\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def log(results: Path, run: str, text: str, age: float = 0.0) -> None:
    path = results / "logs" / "runs" / f"{run}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (time.time() - age,) * 2)


def record(results: Path, run: str, **changes: Any) -> None:
    study, method, _ = run.split("/")
    path = results / "runs" / run / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = json.loads(config.read(VALUES).spec(study, method))
    path.write_text(json.dumps({"spec": spec, "status": {"0": "ok"}, **changes}), encoding="utf-8")


def states(results: Path) -> dict[str, watch.Job]:
    return {job.name: job for job in watch.jobs(config.read(VALUES), results)}


def test_nothing_has_begun(results: Path) -> None:
    assert {name: job.state for name, job in states(results).items()} == {
        "teacher teacher/0": "waiting",
        "one/a/0": "waiting",
        "one/a/1": "waiting",
        "one/b/0": "waiting",
        "one/b/1": "waiting",
        "two/c/0": "waiting",
    }


def test_a_running_job_tells_its_step_and_last_metric(results: Path) -> None:
    log(results, "one/a/0", "a warning: not a step\n" + LINE + "another warning\n")
    job = states(results)["one/a/0"]
    assert (job.state, job.step, job.left, job.note) == ("running", "outer step 3/25", 51.3, "outer_loss 0.25")
    log(results, "one/a/0", "")
    assert states(results)["one/a/0"].state == "running"


def test_a_job_without_a_line_for_long_is_silent(results: Path) -> None:
    log(results, "one/a/0", LINE, age=watch.SILENT + 5)
    job = states(results)["one/a/0"]
    assert (job.state, job.note) == ("silent", "outer_loss 0.25")
    assert job.age == pytest.approx(watch.SILENT + 5, abs=30)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("error: the disk is full\nmore\n", "the disk is full"),
        ('Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n', "ValueError: no"),
    ],
)
def test_a_job_that_failed_says_why(results: Path, end: str, reason: str) -> None:
    log(results, "one/a/0", LINE + end)
    job = states(results)["one/a/0"]
    assert (job.state, job.step, job.note) == ("failed", "outer step 3/25", reason)
    log(results, "one/a/0", end + LINE)  # it went on
    assert states(results)["one/a/0"].state == "running"


def test_a_job_that_was_told_to_end_waits_to_go_on(results: Path) -> None:
    log(results, "one/a/0", LINE + f"results/checkpoints/one/a/0.safetensors: {ENDED}\n")
    job = states(results)["one/a/0"]
    assert (job.state, job.step, job.note) == ("waiting", "outer step 3/25", "goes on from its checkpoint")


def test_a_run_is_done_with_a_record_of_these_settings_only(results: Path) -> None:
    record(results, "one/a/0")
    log(results, "one/a/1", LINE)
    record(results, "one/a/1", status={"1": "diverged"})
    record(results, "one/b/0", spec={"task": "another"})
    log(results, "one/b/0", LINE)
    found = states(results)
    assert found["one/a/0"].state == "done"
    assert found["one/a/1"][2:6] == ("done", "outer step 3/25", None, "outer_loss 0.25; 1 seeds diverged")
    assert found["one/b/0"].state == "running"
    log(results, "one/b/0", LINE + "one b: 1 of 1 seeds ok, 9.1 s\n")  # and has ended
    assert states(results)["one/b/0"][2:6] == ("waiting", "", None, "was made with other settings")


def test_a_teacher_is_done_with_its_digest(results: Path) -> None:
    path = results / "teachers" / "teacher" / "0.json"
    path.parent.mkdir(parents=True)
    spec = json.loads(config.read(VALUES).teacher_spec("teacher"))
    path.write_text(json.dumps({"spec": {**spec, "data": {}}}), encoding="utf-8")
    assert states(results)["teacher teacher/0"].state == "done"
    path.write_text("{", encoding="utf-8")  # another process is at it
    assert states(results)["teacher teacher/0"].state == "waiting"


def test_the_table(results: Path) -> None:
    record(results, "one/a/0")
    log(results, "one/a/1", LINE)
    log(results, "one/b/0", "error: no room\n")
    said = watch.text(list(watch.jobs(config.read(VALUES), results)))
    lines = [line.split() for line in said.splitlines()]
    assert ["one", "1", "1", "1", "1"] in lines
    assert ["total", "1", "1", "3", "1"] in lines
    assert any(line[:5] == ["one/a/1", "running", "outer", "step", "3/25"] and line[-1] == "0.25" for line in lines)
    assert any(line[:2] == ["one/b/0", "failed"] and line[-2:] == ["no", "room"] for line in lines)
    assert "one/b/1" not in said
    assert "one/b/1" in watch.text(list(watch.jobs(config.read(VALUES), results)), every=True)


def test_the_command_prints_one_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.mkdir()
    with pytest.raises(SystemExit):
        cli.main(["watch", "--results", str(results), "--once"])
    assert "no pipeline was started here" in capsys.readouterr().err
    (results / "config.json").write_text(config.read(VALUES).model_dump_json(), encoding="utf-8")
    record(results, "one/b/0")
    cli.main(["watch", "--results", str(results), "--once"])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count("waiting") == 1
    assert ["one", "3", "1"] in [line.split() for line in said.splitlines()], "one is done"
    assert "total" in said


def test_it_goes_on_until_all_is_done(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (results / "runs").mkdir(parents=True)

    def finish(seconds: float) -> None:
        assert seconds == 7.0
        for run in ("one/a/0", "one/a/1", "one/b/0", "one/b/1", "two/c/0"):
            record(results, run)
        path = results / "teachers" / "teacher" / "0.json"
        path.parent.mkdir(parents=True)
        spec = json.loads(config.read(VALUES).teacher_spec("teacher"))
        path.write_text(json.dumps({"spec": spec}), encoding="utf-8")

    monkeypatch.setattr(time, "sleep", finish)
    watch.watch(config.read(VALUES), results, once=False, every=False, pause=7.0)
    assert capsys.readouterr().out.count("total") == 2
