"""Hyper-cleaning: draws and splits, metrics, the quirks of the published run, divergence, batched seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import results, runs
from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import none
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.cleaning import Cleaning
from bilevel.tasks.cleaning_published.products import HALF_WIDTH, PlainProducts, credit

CPU = torch.device("cpu")
SMALL = {
    "train_size": 40,
    "validation_size": 30,
    "outer_steps": 2,
    "inner_steps": 4,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    draws = torch.Generator().manual_seed(0)
    return Dataset(
        "made",
        {
            "all": Split(
                torch.randint(256, (120, 1, 28, 28), generator=draws, dtype=torch.uint8), torch.arange(120) // 12
            )
        },
    )


def build(name: str, dataset: Dataset, seeds: list[int], **settings: Any) -> Cleaning:
    cls = task_class(name)
    task = cls("study", cls.read_settings({**SMALL, **settings}), dataset, seeds, CPU)
    assert isinstance(task, Cleaning)
    return task


def double(task: Cleaning) -> tuple[Tensor, Tensor, Any, Any]:
    """Start and draws of a task in double precision."""
    state, hyper = task.start()
    batches, (images, labels) = task.draw(0)
    wide = [(batch[0].double(), batch[1], batch[2]) for batch in map(batches.__getitem__, range(len(batches)))]
    return state.double(), hyper.double(), wide, (images.double(), labels)


def test_corrected_sets_are_disjoint_and_change_with_the_seed(dataset: Dataset) -> None:
    task = build("cleaning_corrected", dataset, [0, 1], noise=0.0)
    for share in task.shares:
        rows = torch.cat([share.train.images, share.validation.images, share.test.images]).flatten(1)
        assert len(rows) == 120
        assert len(torch.unique(rows, dim=0)) == 120
        assert share.right.all()
    assert not torch.equal(task.shares[0].train.images, task.shares[1].train.images)


def test_published_seeds_share_data_and_start_but_not_batches(dataset: Dataset) -> None:
    task = build("cleaning_published", dataset, [0, 1])
    assert torch.equal(task.shares[0].train.images, task.shares[1].train.images)
    assert torch.equal(task.shares[0].train.labels, task.shares[1].train.labels)
    state, _ = task.start()
    assert torch.equal(state[0], state[1])
    batches, _ = task.draw(0)
    assert not torch.equal(batches[0][2][0], batches[0][2][1])


def test_published_outer_batches_come_from_the_test_set(dataset: Dataset) -> None:
    for name, same in (("cleaning_published", True), ("cleaning_corrected", False)):
        task = build(name, dataset, [0])
        _, (images, _) = task.draw(1)
        test = {tuple(row) for row in task.shares[0].test.images.flatten(1).tolist()}
        assert ({tuple(row) for row in images[0].flatten(1).tolist()} <= test) is same


def test_about_nine_tenths_of_the_noise_is_wrong() -> None:
    big = Dataset("made", {"all": Split(torch.zeros(5000, 1, 28, 28, dtype=torch.uint8), torch.arange(5000) % 10)})
    task = build("cleaning_corrected", big, [0], train_size=4000)
    assert 1 - task.shares[0].right.double().mean().item() == pytest.approx(0.45, abs=0.03)


def test_draws_do_not_depend_on_the_method_the_company_or_earlier_draws(dataset: Dataset) -> None:
    together, alone = build("cleaning_corrected", dataset, [3, 7]), build("cleaning_corrected", dataset, [7])
    together.draw(0)
    for a, b in zip(together.draw(1)[0][2], alone.draw(1)[0][2], strict=True):
        assert torch.equal(a[1], b[0])


def test_sizes_that_do_not_fit_are_refused(dataset: Dataset) -> None:
    with pytest.raises(SettingsError, match=r"train_size 100, .* do not fit made"):
        build("cleaning_corrected", dataset, [0], train_size=100)
    official = Dataset("official", {"train": dataset.splits["all"], "test": dataset.splits["all"]})
    with pytest.raises(SettingsError, match="test_size 121 do not fit official"):
        build("cleaning_corrected", official, [0], test_size=121)


def test_quirk_4_only_the_last_place_of_a_sample_counts() -> None:
    total = torch.ones(2, 5)
    credit(total, torch.tensor([[1, 3, 1], [0, 0, 0]]), torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]))
    assert torch.equal(total, torch.tensor([[1.0, 5.0, 1.0, 3.0, 1.0], [5.0, 1.0, 1.0, 1.0, 1.0]]))


def test_quirk_3_products_are_those_of_plain_descent(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wider difference and double precision they are the exact ones, with ω and μ left out."""
    assert HALF_WIDTH == 1e-7
    monkeypatch.setattr("bilevel.tasks.cleaning_published.products.HALF_WIDTH", 1e-8)
    task = build("cleaning_published", dataset, [0, 1])
    state, hyper, batches, _ = double(task)
    derivatives = Derivatives(task.problem, hyper + 0.3)
    params = task.optimizer.params(state)
    vector = torch.randn(params.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    products = PlainProducts(derivatives, 0.025)
    exact = derivatives.linearize(params, batches[0])
    hessian, mixed = torch.zeros_like(params), torch.zeros_like(hyper)
    exact.add_products(vector, hessian, mixed)
    torch.testing.assert_close(products.a(params, batches[0], vector), vector - 0.025 * hessian, rtol=1e-5, atol=1e-6)
    by_place = products.b(params, batches[0], vector)
    summed = torch.zeros_like(hyper).scatter_add_(1, batches[0][2], by_place)
    torch.testing.assert_close(summed, -0.025 * mixed, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("aggregated", {"gamma": 0.9}), ("drmad", {}), ("neumann", {"terms": 2, "last_steps": 2})],
)
def test_published_methods_follow_their_description(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any]
) -> None:
    """The hypergradient put together anew from the products, with each quirk spelled out."""
    monkeypatch.setattr("bilevel.tasks.cleaning_published.products.HALF_WIDTH", 1e-5)
    task = build("cleaning_published", dataset, [0])
    state, hyper, batches, outer_batch = double(task)
    result = create_method("cleaning_published", method, settings)(
        task.problem, task.optimizer, state, hyper, batches, outer_batch
    )
    derivatives = Derivatives(task.problem, hyper)
    products = PlainProducts(derivatives, 0.025)
    points = [task.optimizer.params(state)]
    for count in range(1, 5):
        estimate = none.METHOD()(task.problem, task.optimizer, state, hyper, batches[:count], outer_batch)
        points.append(task.optimizer.params(estimate.state))
    outer = [derivatives.outer_gradient(point, outer_batch).params for point in points]
    expected = torch.zeros_like(hyper)
    if method == "aggregated":
        for t in range(4):
            credit(expected, batches[t][2], 0.9 ** (3 - t) * products.b(points[t], batches[t], outer[t + 1]))
    elif method == "drmad":
        line = [points[0] + t / 4 * (points[4] - points[0]) for t in range(4)]
        listed, vector = [], outer[4]
        for t in (3, 2, 1, 0):
            listed.append(products.b(line[t], batches[t], vector))
            vector = products.a(line[t], batches[t], vector)
        for t in range(4):  # read from the first step on
            credit(expected, batches[t][2], listed[t])
    else:
        listed = []
        for t in (2, 3):
            first = products.a(points[t + 1], batches[3], outer[t + 1])
            series = outer[t + 1] + first + products.a(points[t + 1], batches[3], first)
            listed.append(products.b(points[t + 1], batches[3], series))
        for t in range(4):  # repeated T/K times
            credit(expected, batches[t][2], (listed * 2)[t])
    torch.testing.assert_close(result.hypergradient, expected, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(task.optimizer.params(result.state), points[4])


def test_metrics_of_a_run(dataset: Dataset) -> None:
    task = build("cleaning_corrected", dataset, [0, 1])
    result = runs.greedy(task, create_method("cleaning_corrected", "unrolled", {}))
    assert result.alive.all()
    assert len(result.trace) == 3
    maximum = torch.maximum(result.trace[0]["test_accuracy"], result.trace[1]["test_accuracy"])
    assert torch.equal(result.summary["test_accuracy_max"], maximum)  # the last evaluation is not among them
    assert torch.equal(result.summary["test_accuracy_final"], result.trace[2]["test_accuracy"])
    assert result.trace[2]["jvps_total"].tolist() == [14.0, 14.0]  # 2 (2 T − 1)
    counts = {(row.seed, row.group): 0 for row in result.histograms}
    for row in result.histograms:
        counts[row.seed, row.group] += row.count
    assert counts[0, "clean"] + counts[0, "corrupted"] == 40


def test_a_seed_gives_the_same_numbers_in_company(dataset: Dataset) -> None:
    method = create_method("cleaning_corrected", "aggregated", {"gamma": 0.9})
    together = runs.greedy(build("cleaning_corrected", dataset, [0, 1, 2]), method)
    for index in range(3):
        alone = runs.greedy(build("cleaning_corrected", dataset, [index]), method)
        torch.testing.assert_close(
            together.trace[2]["outer_loss"][index], alone.trace[2]["outer_loss"][0], rtol=1e-5, atol=0
        )


def test_a_diverging_seed_is_a_row_and_leaves_the_others_alone(dataset: Dataset, tmp_path: Path) -> None:
    task = build("cleaning_corrected", dataset, [0, 1])
    start = task.start

    def poisoned() -> tuple[Tensor, Tensor]:
        state, hyper = start()
        state[1, 0, 0] = float("inf")
        return state, hyper

    task.start = poisoned  # type: ignore[method-assign]
    method = create_method("cleaning_corrected", "unrolled", {})
    result = runs.greedy(task, method)
    undisturbed = runs.greedy(build("cleaning_corrected", dataset, [0, 1]), method)
    results.save(result, tmp_path, study="study", method="exact", seeds=[0, 1], record={"code_hash": "x"})
    with (tmp_path / "scalars.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows if row["seed"] == "1"} == {"diverged"}
    assert {row["value"] for row in rows if row["seed"] == "1" and row["metric"].startswith("test")} == {""}
    assert all(row["value"] for row in rows if row["seed"] == "0")
    assert result.summary["test_accuracy_final"][0] == undisturbed.summary["test_accuracy_final"][0]
    assert json.loads((tmp_path / "record.json").read_text())["status"] == {"0": "ok", "1": "diverged"}
    assert not any("1," in line.split(",", 2)[2][:2] for line in (tmp_path / "histograms.csv").read_text().splitlines())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_a_gpu(dataset: Dataset) -> None:
    cls = task_class("cleaning_corrected")
    task = cls("study", cls.read_settings(SMALL), dataset, [0, 1], torch.device("cuda"))
    on_gpu = runs.greedy(task, create_method("cleaning_corrected", "unrolled", {}))
    on_cpu = runs.greedy(
        build("cleaning_corrected", dataset, [0, 1]), create_method("cleaning_corrected", "unrolled", {})
    )
    torch.testing.assert_close(on_gpu.trace[1]["outer_loss"], on_cpu.trace[1]["outer_loss"], rtol=1e-3, atol=0)
