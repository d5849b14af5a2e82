"""Tables of runs: the same bytes whatever the order, and refusals that say what is wrong."""

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.errors import FileError, UserError
from bilevel.files import replacing, write_together
from bilevel.statistics import mean_interval
from bilevel.tables import TableError, collect, csv_text, read_table

TABLES = [
    "scalars.csv",
    "trace.csv",
    "histograms.csv",
    "points.csv",
    "structures.csv",
    "measurements.csv",
    "cells.csv",
    "measured.csv",
    "timing.csv",
    "provenance.json",
]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes the folder of one job, as a run does."""

    def write(study: str, method: str, seeds: list[int], *, folder: str = "", **changes: Any) -> Path:
        diverged = changes.pop("diverged", [])
        status = {seed: "diverged" if seed in diverged else "ok" for seed in seeds}
        path = tmp_path / "runs" / (folder or f"{study}/{method}/{'_'.join(map(str, seeds))}")
        path.mkdir(parents=True)
        scalars, trace, histograms, points, structures, measurements = [], [], [], [], [], []
        for seed in seeds:
            draw = random.Random(f"{study} {method} {seed}")
            value = None if seed in diverged else draw.random()
            cost = None if seed in diverged else 50.0
            scalars += [
                (study, method, seed, status[seed], "test_accuracy_max", value),
                (study, method, seed, status[seed], "jvps", cost),
            ]
            trace += [(study, method, seed, step, "loss", draw.gauss(0, 1)) for step in (10, 0, 2)]
            measurements += [(study, method, seed, step, "seconds", 2.0) for step in (-1, 5)]
            points += [(study, method, seed, "decision", x, 0.25, draw.random()) for x in (0.5, -0.1)]
            structures += [(study, method, seed, "en", 0, target, "tanh", draw.random(), 1) for target in (10, 2)]
            histograms += [(study, method, seed, "weight", "wrong", left, left + 0.5, 3) for left in (0.5, 0.0)]
        for name, rows, columns in [
            ("scalars", scalars, "study method seed status metric value"),
            ("trace", trace, "study method seed step metric value"),
            ("histograms", histograms, "study method seed quantity group left right count"),
            ("points", points, "study method seed quantity x y value"),
            ("structures", structures, "study method seed domain source target operation weight chosen"),
            ("measurements", measurements, "study method seed step metric value"),
        ]:
            pd.DataFrame(rows, columns=columns.split()).to_csv(path / f"{name}.csv", index=False)
        record = {
            "study": study,
            "method": method,
            "task": "cleaning",
            "deck": "000",
            "seeds": seeds,
            "status": {str(seed): word for seed, word in status.items()},
            "settings": {"steps": 50},
            "code_hash": "aaaa",
            "data": {"mnist_5k": {"images": "12ab"}},
            "versions": {"torch": "2.14.0"},
            "device": "cpu",
            "threads": 1,
            "seconds": 6.0,
            "peak_memory_mb": 300.5,
            "started": "2025-01-01T00:00:00",
        }
        (path / "record.json").write_text(json.dumps(record | changes), encoding="utf-8")
        return path

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def test_order_of_folders_changes_no_byte(make: Make, tmp_path: Path) -> None:
    folders = [make(study, method, seeds) for study in "ba" for method in "yxz" for seeds in ([2, 10], [1, 0])]
    collect(folders, tmp_path / "first")
    for seed in range(4):
        random.Random(seed).shuffle(folders)
        collect(folders, tmp_path / "second")
        assert contents(tmp_path / "second") == contents(tmp_path / "first")
    assert sorted(contents(tmp_path / "first")) == sorted(TABLES)


def test_rows_are_all_there_sorted_with_numeric_seeds(make: Make, tmp_path: Path) -> None:
    collect([make("s", "m", [10, 2]), make("s", "m", [1]), make("s", "l", [1])], tmp_path / "out")
    scalars = read_table(tmp_path / "out" / "scalars.csv", "scalars")
    keys = list(scalars[["method", "seed", "metric"]].itertuples(index=False, name=None))
    assert keys == [
        (method, seed, metric)
        for method, seeds in (("l", [1]), ("m", [1, 2, 10]))
        for seed in seeds
        for metric in ("jvps", "test_accuracy_max")
    ]
    trace = read_table(tmp_path / "out" / "trace.csv", "trace")
    assert list(trace["step"]) == [0, 2, 10] * 4
    histograms = read_table(tmp_path / "out" / "histograms.csv", "histograms")
    assert list(histograms["left"]) == [0.0, 0.5] * 4
    assert histograms["count"].sum() == 24
    points = read_table(tmp_path / "out" / "points.csv", "points")
    assert list(points["x"]) == [-0.1, 0.5] * 4
    structures = read_table(tmp_path / "out" / "structures.csv", "structures")
    assert list(structures["target"]) == [2, 10] * 4


def test_every_run_value_survives_unchanged(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0])
    collect([folder], tmp_path / "out")
    before, after = (
        read_table(folder / "scalars.csv", "scalars"),
        read_table(tmp_path / "out/scalars.csv", "scalars"),
    )
    assert set(before.itertuples(index=False, name=None)) == set(after.itertuples(index=False, name=None))
    assert b"\r" not in (tmp_path / "out/scalars.csv").read_bytes()


@given(st.lists(st.floats(), min_size=1, max_size=10))
def test_floats_are_short_and_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    path = tmp_path_factory.mktemp("floats") / "scalars.csv"
    table = pd.DataFrame({"study": "s", "method": "None", "seed": range(len(numbers)), "status": "ok"})
    table = table.assign(metric="NA", value=numbers)
    path.write_text(csv_text(table), encoding="utf-8")
    found = read_table(path, "scalars")
    np.testing.assert_array_equal(found["value"], numbers)
    assert set(found["method"]) == {"None"}
    assert set(found["metric"]) == {"NA"}
    written = [line.rsplit(",", 1)[1] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert written == ["" if number != number else repr(number) for number in numbers]


def test_cells_are_means_with_t_intervals(make: Make, tmp_path: Path) -> None:
    collect([make("s", "m", [0, 1]), make("s", "m", [2, 3], diverged=[3])], tmp_path / "out")
    scalars = read_table(tmp_path / "out/scalars.csv", "scalars")
    cells = pd.read_csv(tmp_path / "out/cells.csv").set_index("metric")
    assert list(cells.columns) == ["study", "method", "n", "diverged", "mean", "low", "high", "sd"]
    accuracy, jvps = cells.loc["test_accuracy_max"], cells.loc["jvps"]
    expected = mean_interval(scalars["value"][(scalars["metric"] == "test_accuracy_max") & (scalars["seed"] < 3)])
    assert (accuracy["n"], accuracy["diverged"]) == (3, 1)
    assert list(accuracy[["mean", "low", "high", "sd"]]) == [
        expected.mean,
        expected.low,
        expected.high,
        expected.sd,
    ]
    assert list(jvps[["n", "mean", "low", "high", "sd"]]) == [3, 50, 50, 50, 0]


def test_values_of_a_diverged_seed_do_not_count(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0, 1], diverged=[1])
    scalars = pd.read_csv(folder / "scalars.csv").fillna({"value": 1e9})  # a cost that was counted up to there
    scalars.to_csv(folder / "scalars.csv", index=False)
    collect([folder], tmp_path / "out")
    cells = pd.read_csv(tmp_path / "out/cells.csv").set_index("metric")
    assert cells.loc["jvps", "mean"] == 50
    assert list(cells["n"]) == [1, 1]
    assert cells["low"].isna().all()


def test_a_method_that_always_diverged_keeps_its_cells(make: Make, tmp_path: Path) -> None:
    collect([make("s", "m", [0, 1], diverged=[0, 1])], tmp_path / "out")
    lines = (tmp_path / "out/cells.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["s,m,jvps,0,2,,,,", "s,m,test_accuracy_max,0,2,,,,"]
    assert "s,m,0,diverged,jvps,\n" in (tmp_path / "out/scalars.csv").read_text(encoding="utf-8")


def test_an_undefined_value_of_a_good_seed_does_not_count(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0, 1, 2])
    path = folder / "scalars.csv"
    path.write_text(path.read_text().replace("s,m,1,ok,jvps,50.0", "s,m,1,ok,jvps,"))
    collect([folder], tmp_path / "out")
    cells = pd.read_csv(tmp_path / "out/cells.csv").set_index("metric")
    assert list(cells["n"]) == [2, 3]
    assert list(cells["diverged"]) == [0, 0]


def test_provenance_lists_what_is_missing_and_what_diverged(make: Make, tmp_path: Path) -> None:
    unfinished = make("s", "z", [0])
    (unfinished / "record.json").unlink()
    folders = [make("s", "m", [0, 1], diverged=[1]), unfinished, tmp_path / "never_started"]
    expected = [("s", "z", 0), ("s", "m", 10), ("s", "m", 2), ("s", "m", 1), ("s", "m", 0)]
    collect(folders, tmp_path / "out", expected=expected, configuration={"b": 1, "a": [2]}, commit="c0ffee")
    text = (tmp_path / "out/provenance.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["missing"] == [
        {"method": "m", "seed": 2, "study": "s"},
        {"method": "m", "seed": 10, "study": "s"},
        {"method": "z", "seed": 0, "study": "s"},
    ]
    assert found["diverged"] == [{"method": "m", "seed": 1, "study": "s"}]
    assert found["commit"] == "c0ffee"
    assert found["configuration"] == {"a": [2], "b": 1}
    assert found["code_hashes"] == {"s": {"m": "aaaa"}}
    assert found["data"] == {"mnist_5k": [{"images": "12ab"}]}
    assert text == json.dumps(found, indent=2, sort_keys=True) + "\n"
    assert set(read_table(tmp_path / "out/scalars.csv", "scalars")["method"]) == {"m"}


def test_differing_versions_and_devices_are_all_listed(make: Make, tmp_path: Path) -> None:
    newer = make("s", "m", [1], versions={"torch": "2.15.0", "numpy": "2.4.6"}, device="cuda")
    collect([newer, make("s", "m", [0])], tmp_path / "out")
    assert provenance(tmp_path / "out")["versions"] == {"numpy": ["2.4.6"], "torch": ["2.14.0", "2.15.0"]}
    assert provenance(tmp_path / "out")["devices"] == ["cpu", "cuda"]


def test_wall_time_changes_the_timing_alone(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [3, 1, 10])
    collect([folder], tmp_path / "out")
    before = contents(tmp_path / "out")
    record = json.loads((folder / "record.json").read_text())
    record |= {"seconds": 9.0, "started": "2031-12-31T23:59:59", "peak_memory_mb": 1.5}
    (folder / "record.json").write_text(json.dumps(record))
    collect([folder], tmp_path / "out")
    after = contents(tmp_path / "out")
    assert {name for name in TABLES if before[name] != after[name]} == {"timing.csv"}
    assert after["timing.csv"].decode() == (
        "study,method,seeds,seconds,seconds_per_seed,peak_memory_mb,device,threads\ns,m,1 3 10,9.0,3.0,1.5,cpu,1\n"
    )


def test_no_runs_at_all_leave_tables_with_headers(tmp_path: Path) -> None:
    collect([], tmp_path / "out", expected=[("s", "m", 0)])
    assert (tmp_path / "out/scalars.csv").read_text() == "study,method,seed,status,metric,value\n"
    assert read_table(tmp_path / "out/histograms.csv", "histograms").empty
    assert (tmp_path / "out/cells.csv").read_text() == "study,method,metric,n,diverged,mean,low,high,sd\n"
    assert len(provenance(tmp_path / "out")["missing"]) == 1


def test_mixed_code_is_refused_by_name(make: Make, tmp_path: Path) -> None:
    folders = [
        make("s", "m", [1], code_hash="bbbb"),
        make("s", "m", [0]),
        make("s", "other", [0], code_hash="cccc"),
    ]
    with pytest.raises(TableError) as caught:
        collect(folders, tmp_path / "out")
    for part in ("study s", "method m", str(folders[0] / "record.json"), str(folders[1] / "record.json")):
        assert part in str(caught.value)
    assert "aaaa" in str(caught.value)
    assert "bbbb" in str(caught.value)
    assert "delete" in str(caught.value)
    assert "cccc" not in str(caught.value)
    with pytest.raises(TableError) as again:
        collect(folders[::-1], tmp_path / "out")
    assert str(again.value) == str(caught.value)
    assert isinstance(caught.value, UserError)  # commands print the message and nothing else


def test_different_methods_may_have_different_code(make: Make, tmp_path: Path) -> None:
    collect([make("s", "m", [0]), make("s", "other", [0], code_hash="bbbb")], tmp_path / "out")
    assert provenance(tmp_path / "out")["code_hashes"] == {"s": {"m": "aaaa", "other": "bbbb"}}


def test_a_run_that_is_there_twice_is_refused(make: Make, tmp_path: Path) -> None:
    folders = [make("s", "m", [0, 1]), make("s", "m", [1, 2])]
    with pytest.raises(TableError, match="study s, method m, seed 1 is there twice") as caught:
        collect(folders, tmp_path / "out")
    assert all(str(folder) in str(caught.value) for folder in folders)


def test_an_unfinished_run_that_nobody_expects_is_an_error(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0])
    (folder / "record.json").unlink()
    with pytest.raises(TableError, match=r"record\.json: cannot be read .* run this job again"):
        collect([folder], tmp_path / "out")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scalars.csv", "s,m,0,ok,jvps", "s,m,7,ok,jvps", "study s, method m, seed 7, which is not a run of"),
        ("trace.csv", "s,m,0", "s,other,0", "method other, seed 0, which is not a run of"),
        (
            "scalars.csv",
            "s,m,0,ok,jvps",
            "s,m,0,ok,test_accuracy_max",
            "two rows for .*metric test_accuracy_max",
        ),
        ("trace.csv", "s,m,1,10", "s,m,1,0", "two rows for .*seed 1, step 0, metric loss"),
        (
            "scalars.csv",
            "s,m,0,ok",
            "s,m,0,diverged",
            "status of seed 0 is ok in record.json, here: diverged, ok",
        ),
        (
            "scalars.csv",
            "metric,value",
            "metric,result",
            "cannot be read|columns are .*result; expected .*value",
        ),
        ("scalars.csv", "50.0", "fifty", "cannot be read as a table of scalars"),
        ("trace.csv", "s,m,0,10", "s,m,0,", "cannot be read as a table of trace"),
        ("record.json", '"0": "ok"', '"0": "fine"', "status.0: Input should be 'ok' or 'diverged'"),
        ("record.json", '"0": "ok"', '"5": "ok"', "seeds are .0, 1., but status is given for .1, 5."),
        ("record.json", '"threads": 1,', "", "threads: Field required"),
        ("record.json", "{", "", "Invalid JSON"),
    ],
)
def test_malformed_runs_are_refused(make: Make, tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    folder = make("s", "m", [0, 1])
    edit(folder / name, old, new)
    with pytest.raises(TableError, match=message) as caught:
        collect([folder], tmp_path / "out")
    assert str(folder / name) in str(caught.value)


def test_a_missing_table_is_refused(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0])
    (folder / "histograms.csv").unlink()
    with pytest.raises(TableError, match=r"histograms\.csv: cannot be read"):
        collect([folder], tmp_path / "out", expected=[("s", "m", 0)])


def test_a_good_seed_without_rows_is_refused(make: Make, tmp_path: Path) -> None:
    folder = make("s", "m", [0, 1])
    lines = (folder / "scalars.csv").read_text().splitlines(keepends=True)
    (folder / "scalars.csv").write_text("".join(line for line in lines if not line.startswith("s,m,1")))
    with pytest.raises(TableError, match=r"status of seed 1 is ok in record\.json, here: has no row"):
        collect([folder], tmp_path / "out")


def test_a_failure_leaves_the_old_tables(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make("s", "m", [0])]
    collect(folders, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(TableError):
        collect([*folders, make("s", "m", [1], code_hash="bbbb")], tmp_path / "out")
    assert contents(tmp_path / "out") == before

    @contextmanager
    def full_disk(path: Path) -> Iterator[BinaryIO]:
        with replacing(path) as file:
            if path.name == "provenance.json":
                raise OSError(28, "No space left on device")
            yield file

    monkeypatch.setattr("bilevel.files.replacing", full_disk)
    with pytest.raises(FileError, match=r"provenance\.json: cannot be written: No space"):
        collect([*folders, make("s", "n", [1])], tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_files_are_replaced_not_rewritten(tmp_path: Path) -> None:
    write_together(tmp_path, {"a.csv": "old\n"})
    (tmp_path / "link").hardlink_to(tmp_path / "a.csv")
    write_together(tmp_path, {"a.csv": "né\n"})
    assert (tmp_path / "link").read_bytes() == b"old\n"  # whoever has the old file open reads it to its end
    assert (tmp_path / "a.csv").read_bytes() == "né\n".encode()


def test_what_a_run_writes_can_be_collected(tmp_path: Path) -> None:
    import torch

    from bilevel import peak_memory
    from bilevel.columns import WHOLE_RUN
    from bilevel.results import Histogram, Result, save, surroundings

    values = {"test_accuracy_max": torch.tensor([0.1, math.nan], dtype=torch.float64)}
    bins = [Histogram(seed, "weight", "wrong", 0.0, 0.5, 3) for seed in (0, 1)]
    measured = {WHOLE_RUN: {"seconds": torch.tensor([2.5, 3.5])}, 10: {"seconds": torch.tensor([1.0, 1.0])}}
    result = Result(torch.tensor([True, False]), {0: values, 1: values}, values, bins, measured)
    record = {
        "code_hash": "aaaa",
        "data": {},
        "seconds": 1.0,
        "settings": {},
        "task": "cleaning",
        "deck": "000",
    }
    record |= {"started": "2025-01-01T00:00:00", "peak_memory_mb": peak_memory.of_process() / 1e6}
    record |= surroundings(torch.device("cpu"))
    save(result, tmp_path / "run", study="s", method="m", seeds=[0, 1], record=record)
    collect([tmp_path / "run"], tmp_path / "out")
    cells = pd.read_csv(tmp_path / "out/cells.csv").set_index("metric")
    assert list(cells.loc["test_accuracy_max", ["n", "diverged", "mean"]]) == [1, 1, 0.1]
    assert len(read_table(tmp_path / "out/trace.csv", "trace")) == 4
    assert WHOLE_RUN == -1  # as it stands in files that are there already
    whole = pd.read_csv(tmp_path / "out/measured.csv").set_index("metric")
    assert list(whole.loc["seconds", ["n", "mean"]]) == [2, 3.0]
    assert len(read_table(tmp_path / "out/measurements.csv", "measurements")) == 4
    assert len(read_table(tmp_path / "out/histograms.csv", "histograms")) == 1
