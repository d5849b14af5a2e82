"""Reverse mode with few states in memory: from snapshots and from disk, against the one that keeps them all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, OPTIMIZERS, estimate

import bilevel
from bilevel.errors import FileError
from bilevel.hypergradients import Estimate, SettingsError
from bilevel.hypergradients.tape import DiskTape
from bilevel.schedules import Binomial, Segments, Tree, fewest_advances

CHECKPOINTED = [
    ("checkpointed", {"schedule": schedule, "snapshots": snapshots})
    for schedule in ("segments", "binomial", "tree")
    for snapshots in (1, 2, 3, None)
]
METHODS: list[tuple[str, dict[str, Any]]] = [*CHECKPOINTED, ("unrolled", {"store": "disk"})]
OPEN_FILES = Path("/proc/self/fd")
SAME = {"rtol": 1e-12, "atol": 1e-15}


def label(value: Any) -> str | None:
    if isinstance(value, tuple):
        return "-".join([value[0], *(f"{v}" for v in value[1].values())])
    return getattr(value, "__name__", None)


def assert_same(found: Estimate, expected: Estimate) -> None:
    torch.testing.assert_close(found.hypergradient, expected.hypergradient, **SAME)
    torch.testing.assert_close(found.state, expected.state, **SAME)
    torch.testing.assert_close(found.outer_loss, expected.outer_loss, **SAME)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", CASES, ids=label)
def test_same_numbers_as_unrolled(make: Any, optimizer: str) -> None:
    case, inner = make(7), OPTIMIZERS[optimizer]
    expected = estimate("unrolled", inner, case)
    for name, chosen in METHODS:
        found = estimate(name, inner, case, **chosen)
        assert_same(found, expected)
        assert found.cost.jvps == expected.cost.jvps
        if name == "unrolled":
            assert torch.equal(found.hypergradient, expected.hypergradient)
            assert torch.equal(found.state, expected.state)
            assert found.cost.gradients == expected.cost.gradients


@pytest.mark.parametrize("steps", [0, 1, 2, 17])
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_lengths_and_costs(method: tuple[str, dict[str, Any]], steps: int) -> None:
    name, chosen = method
    case, inner = CASES[1](steps), OPTIMIZERS["adam"]
    state, hyper = inner.init(case.params), case.hyper.clone()
    before = state.clone()
    found = bilevel.hypergradients.create(name, **chosen)(
        case.problem, inner, state, hyper, case.batches, case.outer_batch
    )
    assert_same(found, estimate("unrolled", inner, case))
    assert torch.equal(state, before)
    assert torch.equal(hyper, case.hyper)
    one_seed = case.seed(0)
    assert_same(estimate(name, inner, one_seed, **chosen), estimate("unrolled", inner, one_seed))
    if name == "unrolled":
        assert found.cost.peak_states == min(steps, 1)
        return
    kind = {"segments": Segments, "binomial": Binomial, "tree": Tree}[chosen["schedule"]]
    schedule = kind(steps, chosen["snapshots"])
    assert found.cost.peak_states == schedule.snapshots + (schedule.together if schedule.together > 1 else 0)
    if chosen["schedule"] == "binomial" and steps > 1:
        assert found.cost.gradients == fewest_advances(steps, schedule.snapshots) + steps + 1


def test_schedules_keep_their_limits_on_real_states() -> None:
    case, inner = CASES[1](100).seed(0), OPTIMIZERS["momentum"]
    assert estimate("checkpointed", inner, case, schedule="tree").cost.peak_states == 7
    binomial = {"schedule": "binomial"}
    assert estimate("checkpointed", inner, case, **binomial).cost.peak_states == 13
    assert estimate("checkpointed", inner, case, **binomial).cost.gradients <= 2 * 100 + 100 + 1
    assert estimate("checkpointed", inner, case, **binomial, snapshots=200).cost.gradients == 99 + 100 + 1
    # nine segments of ten steps run once on the way and, as the tenth does, once more to be reversed; each is
    # linearized; the graphs of an untraced problem are not kept
    segments = estimate("checkpointed", inner, case).cost
    assert (segments.peak_states, segments.gradients) == (9 + 10, 90 + 100 + 100 + 1)
    recorded = bilevel.hypergradients.create("checkpointed")(
        bilevel.traced(case.problem),
        inner,
        inner.init(case.params),
        case.hyper,
        case.batches,
        case.outer_batch,
    ).cost
    assert (recorded.peak_states, recorded.gradients) == (9 + 10, 90 + 100 + 1)


@pytest.mark.parametrize("method", [*CHECKPOINTED[3::4], METHODS[-1]], ids=label)
@pytest.mark.parametrize("seeds", [1, 3])
def test_batches_are_made_when_asked_for(method: tuple[str, dict[str, Any]], seeds: int) -> None:
    name, chosen = method
    case, inner = CASES[1](17), OPTIMIZERS["momentum"]
    case = case.seed(0) if seeds == 1 else case

    class Lazy(Sequence[Any]):
        def __len__(self) -> int:
            return 17

        def __getitem__(self, index: Any) -> Any:
            if not isinstance(index, int) or not 0 <= index < 17:
                raise IndexError(index)
            return case.batches[index].clone()

    assert_same(estimate(name, inner, replace(case, batches=Lazy()), **chosen), estimate("unrolled", inner, case))


def test_a_tape_on_disk_holds_any_type_and_leaves_no_file(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.complex128):
        values = torch.randn(5, 2, 3, 4).to(dtype)
        with DiskTape(5, values[0, :, :2], str(tmp_path)) as tape:  # not contiguous
            for index in range(5):
                tape[index] = values[index, :, :2]
            for index in (4, 0, 3):
                assert torch.equal(tape[index], values[index, :, :2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="open files are listed under /proc only")
def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    case, inner = CASES[1](5), OPTIMIZERS["momentum"]

    class Failing(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 3:
                assert open_files_in(tmp_path) == 1
                raise RuntimeError("no batch")
            return case.batches[index]

    with pytest.raises(RuntimeError, match="no batch"):
        estimate("unrolled", inner, replace(case, batches=Failing([None] * 5)), store="disk", folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert open_files_in(tmp_path) == 0


def open_files_in(folder: Path) -> int:
    links = [entry.readlink() for entry in OPEN_FILES.iterdir() if entry.is_symlink()]
    return sum(str(link).startswith(str(folder)) for link in links)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    case = CASES[1](3)
    with pytest.raises(
        FileError, match=r"absent: cannot hold a tape of [0-9.]+ (KiB|bytes): No such file or directory; name"
    ):
        estimate("unrolled", OPTIMIZERS["sgd"], case, store="disk", folder=str(tmp_path / "absent"))


def test_a_disk_with_too_little_room_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tempfile.gettempdir())._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(FileError, match=r"cannot hold a tape of [0-9.]+ (KiB|bytes): 100 bytes are free"):
        estimate("unrolled", OPTIMIZERS["sgd"], CASES[1](3), store="disk")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_on_the_way_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(FileError, match=os.strerror(errno.ENOSPC)):
            estimate("unrolled", OPTIMIZERS["sgd"], CASES[1](3), store="disk")


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        (
            "checkpointed",
            {"schedule": "revolve"},
            "schedule: input should be 'segments', 'binomial' or 'tree', got 'revolve'",
        ),
        ("checkpointed", {"snapshots": 0}, "snapshots: input should be greater than or equal to 1, got 0"),
        ("unrolled", {"store": "tape"}, "store: input should be 'memory' or 'disk', got 'tape'"),
        ("unrolled", {"folder": "/tmp"}, "folder: there is no file to put there unless store is disk, got '/tmp'"),
    ],
)
def test_wrong_settings(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        bilevel.hypergradients.create(name, **chosen)
