"""Files of checkpoints: what they hold, when they are written, and which of them are not used."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilevel import checkpoint
from bilevel.checkpoint import NOWHERE, Checkpoint, CheckpointFile, decoded, encoded
from bilevel.outer import Adam
from bilevel.progress import Progress
from bilevel.results import Histogram, Point, Result, Structure, joined, save
from bilevel.trajectory import LocallyLinear, Prediction

IDENTITY = {"settings": {"steps": 3, "rates": (0.1, 0.2)}, "code": "abc", "data": {}, "seeds": [0, 1]}


def opened(path: Path, interval: float = 0.0, **other: Any) -> CheckpointFile:
    return CheckpointFile(path, {**IDENTITY, **other}, interval)


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, with types and layouts of tensors; tuples count as lists."""
    if isinstance(left, Tensor):
        bits = [part.contiguous().flatten().view(torch.uint8) if part.numel() else part for part in (left, right)]
        return left.dtype == right.dtype and left.stride() == right.stride() and torch.equal(*bits)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return type(left) is type(right) and (left == right or (left != left and right != right))


shapes = st.lists(st.integers(0, 4), max_size=3)
tensors = st.builds(
    lambda shape, kind, seed: (
        torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(kind).t()
        if len(shape) == 2
        else torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(kind)
    ),
    shapes,
    st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool, torch.uint8]),
    st.integers(0, 99),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors
states = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(-9, 9) | st.text(max_size=3), inner),
    max_leaves=8,
)


@given(state=states)
def test_a_state_comes_back_as_it_was(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    path.write_bytes(encoded(state, {"about": "that"}))
    found, about = decoded(path)
    assert same(found, state)
    assert about == {"about": "that"}


def test_numbers_that_are_none_and_strange_layouts_come_back(tmp_path: Path) -> None:
    state = {
        "nan": torch.tensor([math.nan, math.inf, -0.0, 5e-324], dtype=torch.float64),
        "expanded": torch.ones(1, 3).expand(2, 3),
        "gaps": torch.arange(24.0).view(2, 3, 4)[:, 1],
        "numbers": [math.nan, -math.inf, 0.1 + 0.2, 2**80],
    }
    (tmp_path / "file").write_bytes(encoded(state, {}))
    found, _ = decoded(tmp_path / "file")
    assert same(found["nan"], state["nan"])
    assert torch.equal(found["expanded"], state["expanded"])
    assert same(found["gaps"], state["gaps"])
    assert same(found["numbers"], state["numbers"])


def test_tensors_that_come_back_have_memory_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(encoded([torch.ones(3), torch.ones(3)], {}))
    (first, second), _ = decoded(tmp_path / "file")
    first.zero_()
    assert second.tolist() == [1, 1, 1]
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0, "sums depend on where a tensor begins"


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(TypeError, match="a checkpoint cannot hold set"):
        encoded({"a": {1, 2}}, {})


def test_work_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.safetensors"
    file = opened(path)
    assert file.root.found is None
    file.root.part("loop").keep({"step": 3, "params": torch.ones(2)})
    again = opened(path)
    assert same(again.root.part("loop").found, {"step": 3, "params": torch.ones(2)})
    assert again.resumed == 1
    assert again.earlier > 0
    again.root.part("loop").keep({"step": 4, "params": torch.zeros(2)})
    third = opened(path)
    assert third.root.part("loop").found["step"] == 4
    assert third.resumed == 2
    assert third.earlier > again.earlier
    third.remove()
    assert not path.exists()
    assert opened(path).root.part("loop").found is None


def test_parts_that_were_not_come_to_yet_stay(tmp_path: Path) -> None:
    file = opened(tmp_path / "file")
    file.root.part("first").part("inner").keep(1)
    file.root.part("second").keep(2)
    again = opened(tmp_path / "file")
    again.root.part("third").keep(3)
    last = opened(tmp_path / "file").root
    assert [last.part("first").part("inner").found, last.part("second").found, last.part("third").found] == [1, 2, 3]


def test_a_stage_is_computed_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def stage(name: str, part: Checkpoint) -> dict[str, float]:
        calls.append(name)
        part.keep({"half": name})
        return {name: 1.0}

    file = opened(tmp_path / "file")
    assert file.root.kept("one", lambda part: stage("one", part)) == {"one": 1.0}
    again = opened(tmp_path / "file")
    assert again.root.kept("one", lambda part: stage("one", part)) == {"one": 1.0}
    assert again.root.kept("two", lambda part: stage("two", part)) == {"two": 1.0}
    assert calls == ["one", "two"]
    content, _ = decoded(tmp_path / "file")
    assert content == {"parts": {"one": {"value": {"one": 1.0}}, "two": {"value": {"two": 1.0}}}}


def test_a_stage_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    def stage(part: Checkpoint) -> int:
        done: int = part.found or 0
        for step in range(done, 4):
            part.keep(step + 1)
            if step == 1:
                raise KeyboardInterrupt
        return done

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "file").root.kept("stage", stage)
    assert opened(tmp_path / "file").root.kept("stage", stage) == 2


def test_steps_go_on_from_the_last_one_that_was_made(tmp_path: Path) -> None:
    def steps(breaks_at: int) -> tuple[list[int], list[float]]:
        state, made = torch.ones(2), list[int]()
        for step in opened(tmp_path / "file").root.steps(state, 4):
            if step == breaks_at:
                break
            state.mul_(3).add_(step)
            made.append(step)
        return made, state.tolist()

    assert steps(breaks_at=3) == ([0, 1, 2], [32, 32])
    assert steps(breaks_at=9) == ([3], [99, 99])
    assert steps(breaks_at=9) == ([], [99, 99])


def test_nothing_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (NOWHERE, CheckpointFile(None, IDENTITY, 0.0).root):
        place.keep(1)
        place.part("a").keep(2)
        assert place.kept("b", lambda part: part.found) is None
        assert place.found is place.part("a").found is None
    CheckpointFile(None, IDENTITY, 0.0).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    file, path = opened(tmp_path / "file", interval=15.0), tmp_path / "file"
    for second, expected in ((100.0, None), (114.9, None), (115.0, 3), (129.0, 3), (130.0, 5)):
        now[0] = second
        file.root.keep([None, None, 3, 4, 5][[100.0, 114.9, 115.0, 129.0, 130.0].index(second)])
        assert (decoded(path)[0]["state"] if path.exists() else None) == expected


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def monotonic() -> float:
        now[0] += 2.0
        return now[0]

    monkeypatch.setattr(checkpoint.time, "monotonic", monotonic)
    file = opened(tmp_path / "file", interval=1.0)
    file.root.keep(1)
    saved = now[0]
    while decoded(tmp_path / "file")[0]["state"] == 1:
        file.root.keep(2)
    assert now[0] - saved >= 20 * 2


@pytest.mark.parametrize("name", ["settings", "code", "data", "seeds"])
def test_a_checkpoint_of_something_else_is_refused_with_its_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tmp_path / "file").root.keep(1)
    file = opened(tmp_path / "file", **{name: "other"})
    assert file.root.found is None
    assert file.resumed == 0
    assert capsys.readouterr().err == (
        f"{tmp_path / 'file'}: is a checkpoint of other {name}; it is not used, and the run starts anew\n"
    )
    file.root.keep(5)
    assert opened(tmp_path / "file", **{name: "other"}).root.found == 5


def test_all_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path / "file").root.keep(1)
    assert opened(tmp_path / "file", code="new", seeds=[2], threads=2).root.found is None
    assert "of other code, seeds, threads;" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_said_and_ignored(share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    opened(path).root.keep({"params": torch.rand(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    file = opened(path)
    assert file.root.found is None
    assert "cannot be read" in capsys.readouterr().err
    file.root.keep(7)
    assert opened(path).root.found == 7


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "file")
    assert opened(tmp_path / "file").root.found is None
    assert "cannot be read" in capsys.readouterr().err


def test_a_run_goes_on_where_its_checkpoint_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").write_text("a file, not a folder")
    file = opened(tmp_path / "folder" / "run.safetensors")
    file.root.keep(1)
    assert "cannot be written" in (error := capsys.readouterr().err)
    assert "the run goes on without a new checkpoint" in error


def test_a_signal_to_end_is_obeyed_after_a_save(tmp_path: Path) -> None:
    file = opened(tmp_path / "file", interval=1000.0)
    file.root.keep(1)
    assert not (tmp_path / "file").exists()
    file.end(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        file.root.keep(2)
    assert ended.value.code == 143
    assert opened(tmp_path / "file").root.found == 2


# --- what objects keep


def through_a_file(state: Any, folder: Path) -> Any:
    (folder / "state").write_bytes(encoded(state, {}))
    return decoded(folder / "state")[0]


def test_adam_goes_on_from_its_state(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 3, generator=draws) for _ in range(6)]
    hyper, adam = torch.zeros(2, 3), Adam(0.1)
    for gradient in gradients[:3]:
        hyper = adam.step(hyper, gradient)
    other = Adam(0.1)
    other.restore(through_a_file(adam.state(), tmp_path))
    first = Adam(0.1)
    first.restore(through_a_file(Adam(0.1).state(), tmp_path))
    left, right = hyper, hyper
    for gradient in gradients[3:]:
        left, right = adam.step(left, gradient.clone()), other.step(right, gradient.clone())
    assert torch.equal(left, right)
    assert not torch.equal(left, hyper)
    assert torch.equal(first.step(hyper, gradients[0]), Adam(0.1).step(hyper, gradients[0]))


@pytest.mark.parametrize("recorded", [0, 1, 2, 3])
def test_a_prediction_goes_on_from_its_state(recorded: int, tmp_path: Path) -> None:
    settings = LocallyLinear(length=3, every=2)
    whole, half = Prediction(settings), Prediction(settings)
    values = [torch.tensor([[1.0, 2.0]]) * step**2 for step in range(3)]
    for step in range(recorded):
        half.record(step, values[step])
    other = Prediction(settings)
    other.restore(through_a_file(half.state(), tmp_path))
    for step in range(3):
        whole.record(step, values[step])
        if step >= recorded:
            other.record(step, values[step])
    assert same(other.predict(4), whole.predict(4))
    assert other.predict(4).dtype == torch.float32


def test_progress_of_a_run_that_goes_on_counts_what_it_does_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("bilevel.progress.time.perf_counter", lambda: now[0])
    progress = Progress("run", "step", first=90)
    now[0] = 5.0
    progress.report(95, 100)
    assert capsys.readouterr().err == "run: step 95/100, 5.0 s, 5.0 s left\n"


# --- results


def result(seed: int, *, steps: int = 3, alive: bool = True) -> Result:
    number = torch.tensor([seed + 0.5], dtype=torch.float64)
    return Result(
        torch.tensor([alive]),
        {step: {"loss": number + step} for step in range(steps)},
        {"loss": number, "count": torch.tensor([seed])},
        [Histogram(seed, "weight", "all", 0.0, 0.5, 3)],
        {-1: {"seconds": number}},
        [Point(seed, "sample", 0.1, 0.2, 1.0)],
        [Structure(seed, "0", 0, 1, "none", 0.3, 1)],
    )


FILES = ("scalars", "trace", "histograms", "points", "structures", "measurements")


def rows(found: Result, seeds: list[int], folder: Path) -> dict[str, list[bytes]]:
    save(found, folder, study="study", method="method", seeds=seeds, record={})
    return {name: (folder / f"{name}.csv").read_bytes().splitlines() for name in FILES}


def test_a_result_comes_back_from_its_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(encoded(result(3).state(), {}))
    again = Result.restored(decoded(tmp_path / "file")[0])
    assert rows(again, [3], tmp_path / "again") == rows(result(3), [3], tmp_path / "first")


def test_joined_results_have_the_rows_of_separate_jobs(tmp_path: Path) -> None:
    parts = [rows(result(seed), [seed], tmp_path / str(seed)) for seed in (0, 1, 7)]
    whole = rows(joined([result(seed) for seed in (0, 1, 7)]), [0, 1, 7], tmp_path / "joined")
    for name in FILES:
        assert whole[name] == [parts[0][name][0], *(row for part in parts for row in part[name][1:])]


def test_a_seed_that_diverged_has_empty_rows_among_joined_results(tmp_path: Path) -> None:
    whole = rows(joined([result(0, steps=1, alive=False), result(1)]), [0, 1], tmp_path)
    assert whole["trace"][1:4] == [
        b"study,method,0,0,loss,0.5",
        b"study,method,0,1,loss,",
        b"study,method,0,2,loss,",
    ]
    assert whole["histograms"][1:] == [b"study,method,1,weight,all,0.0,0.5,3"]
