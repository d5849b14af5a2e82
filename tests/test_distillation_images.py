"""Distillation on images: networks, teachers, who sees which images, hypergradients, the box, arms."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import made_images
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, kl_div, linear, log_softmax, relu, softmax

from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.models import lenet, student
from bilevel.optimizers import SGD
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.distillation_images import ClippedDescent, DistillationImages
from bilevel.teachers import Trained, load, save, teacher_class

CPU = torch.device("cpu")
SIZES = {"train_size": 48, "validation_size": 30, "test_size": 22}
SMALL = {
    "iterations": 8,
    "student_size": 24,
    "batch_size": 8,
    "learning_rate": 0.05,
    "outer_batch_size": 10,
    "outer_learning_rate": 5.0,
    "evaluate_every": 3,
}
LINE = {"length": 2, "every": 2, "of": "values"}
METRICS = {f"{name}_{metric}" for name in ("test", "validation") for metric in ("accuracy", "cross_entropy")}


blobs = partial(made_images.blobs, random_labels=True)


def trained(dataset: Dataset, seed: int, **settings: Any) -> Trained:
    kind = teacher_class("convnet")
    chosen = kind.read_settings({**SIZES, "epochs": 2, "batch_size": 8, **settings})
    return kind("lenet", chosen, dataset, CPU).train(seed)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(100, 0)})


@pytest.fixture(scope="module")
def teachers(dataset: Dataset) -> list[Trained]:
    return [trained(dataset, seed) for seed in range(2)]


def build(dataset: Dataset, teachers: list[Trained], seeds: tuple[int, ...] = (0,), **settings: Any) -> Any:
    cls = task_class("distillation_images")
    task = cls("study", cls.read_settings({**SMALL, **settings}), dataset, seeds, CPU)
    assert isinstance(task, DistillationImages)
    task.use_teachers([teachers[seed].tensors for seed in seeds])
    return task


def run(task: DistillationImages, method: str, **settings: Any) -> Result:
    return task.run(create_method("distillation_images", method, settings), "run")


# --- the student's network


def plain_forward(params: Tensor, images: Tensor) -> Tensor:
    """Ordinary convolutions with our tensors."""
    channels, side = images.shape[1:3]
    p = student.layout(channels).split(params)
    values = images
    layers = {"conv1": (4, channels, (34 - side) // 2), "conv2": (2, 8, 0), "conv3": (2, 16, 0)}
    for layer, (size, inputs, padding) in layers.items():
        weight = p[f"{layer}.weight"]
        if layer == "conv1":
            kernel = weight.view(inputs, size, size, -1).permute(3, 0, 1, 2)
        else:
            kernel = weight.view(size, size, inputs, -1).permute(3, 2, 0, 1)
        values = relu(conv2d(values, kernel, p[f"{layer}.bias"], stride=2, padding=padding))
    values = avg_pool2d(values, 2).permute(0, 2, 3, 1).flatten(1)
    return linear(values, p["linear.weight"], p["linear.bias"])


SHAPES = pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])


@SHAPES
def test_student_is_the_plain_network(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(5, *shape, generator=draws, dtype=torch.float64)
    params = student.initial(draws, shape[0]).double()
    params += 0.1 * torch.randn(params.shape, generator=draws, dtype=torch.float64)
    found = student.forward(params, student.patches(images))
    torch.testing.assert_close(found, plain_forward(params, images), rtol=1e-12, atol=1e-12)
    leaves = [params.clone().requires_grad_() for _ in range(2)]
    for leaf, logits in zip(
        leaves, (student.forward(leaves[0], student.patches(images)), plain_forward(leaves[1], images)), strict=True
    ):
        (logits**2).sum().backward()
        assert leaf.grad is not None
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-10, atol=1e-10)


@SHAPES
def test_teachers_network_is_the_plain_one(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(4, *shape, generator=draws, dtype=torch.float64)
    params = lenet.initial(draws, shape[0]).double()
    params += 0.05 * torch.randn(params.shape, generator=draws, dtype=torch.float64)
    p = lenet.layout(shape[0]).split(params)
    values = images
    for layer, padding in (("conv1", (32 - shape[1]) // 2), ("conv2", 0)):
        values = conv2d(values, p[f"{layer}.weight"].permute(3, 2, 0, 1), p[f"{layer}.bias"], padding=padding)
        values = avg_pool2d(torch.tanh(values), 2)
    values = values.permute(0, 2, 3, 1).flatten(1)
    for layer in ("linear1", "linear2"):
        values = torch.tanh(linear(values, p[f"{layer}.weight"], p[f"{layer}.bias"]))
    values = linear(values, p["linear3.weight"], p["linear3.bias"])
    torch.testing.assert_close(lenet.forward(params, images), values, rtol=1e-11, atol=1e-12)
    assert lenet.layout(shape[0]).size == {1: 61706, 3: 62006}[shape[0]]


def test_images_in_color_are_distilled_too() -> None:
    """A data set of CIFAR-10's shape, through teacher and student."""
    splits = {"train": blobs(80, 0), "test": blobs(30, 1)}
    for name, split in splits.items():
        wide = torch.nn.functional.pad(split.images, (2, 2, 2, 2))
        splits[name] = Split(torch.cat([wide, 255 - wide, wide // 2], 1), split.labels)
    dataset = Dataset("made in color", splits)
    teacher = trained(dataset, 0, test_size=None)
    assert teacher.tensors["parameters"].shape == (62006,)
    pixels = splits["train"].images[teacher.tensors["train_ids"]].double() / 255
    torch.testing.assert_close(teacher.tensors["pixels"], torch.stack([pixels.mean(), pixels.std()]))
    result = run(build(dataset, [teacher]), "truncated", steps=1)
    assert result.alive.all()
    assert result.trace[8]["test_cross_entropy"] < result.trace[0]["test_cross_entropy"]


def test_first_parameters_of_the_student() -> None:
    params = student.initial(torch.Generator().manual_seed(1))
    assert params.shape == (4034,)
    for name, part in student.layout(1).split(params).items():
        if name.endswith("bias"):
            assert not part.any()
        else:
            variance = 1 / 128 if name == "linear.weight" else 2 / part.shape[0]
            assert part.std().item() == pytest.approx(math.sqrt(variance), rel=0.2)


# --- teachers and the division of the data


def test_sets_are_disjoint_and_change_with_the_seed(teachers: list[Trained]) -> None:
    for one in teachers:
        parts = [one.tensors[f"{name}_ids"] for name in ("train", "validation", "test")]
        assert [len(part) for part in parts] == [48, 30, 22]
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert not torch.equal(teachers[0].tensors["test_ids"], teachers[1].tensors["test_ids"])


def test_official_test_images_are_the_only_ones_tested_on() -> None:
    dataset = Dataset("official", {"train": blobs(80, 0), "test": blobs(50, 1)})
    whole, part = (trained(dataset, 0, test_size=size, epochs=1) for size in (None, 30))
    assert torch.equal(whole.tensors["test_ids"].sort().values, torch.arange(50))
    assert len(part.tensors["test_ids"].unique()) == 30
    task = build(dataset, [whole], seeds=(0,))
    images, labels = task._images(task._teachers[0], "test")
    assert torch.equal(labels.sort().values, dataset.splits["test"].labels.sort().values)
    mean, deviation = whole.tensors["pixels"].tolist()
    expected = (dataset.splits["test"].images[whole.tensors["test_ids"]].double() / 255 - mean) / deviation
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_learns_from_its_training_images_alone(dataset: Dataset, teachers: list[Trained]) -> None:
    """The others are replaced: the same teacher, to the bit."""
    ids = teachers[0].tensors["train_ids"]
    images = 255 - dataset.splits["all"].images
    images[ids] = dataset.splits["all"].images[ids]
    other = trained(Dataset("made", {"all": Split(images, dataset.splits["all"].labels)}), 0)
    for name in ("parameters", "pixels", "test_ids"):
        assert torch.equal(other.tensors[name], teachers[0].tensors[name])
    assert other.metrics["train_accuracy"] == teachers[0].metrics["train_accuracy"]
    assert other.metrics["test_accuracy"] != teachers[0].metrics["test_accuracy"]


def test_a_teacher_learns(dataset: Dataset) -> None:
    metrics = trained(dataset, 0, epochs=15, learning_rate=3e-3).metrics
    assert metrics["train_accuracy"] > 0.95
    assert metrics["test_accuracy"] > 0.6


def test_students_share_the_file_of_a_teacher(dataset: Dataset, teachers: list[Trained], tmp_path: Path) -> None:
    save(teachers[0], tmp_path, name="lenet", seed=0, spec={})
    tensors, digest = load(tmp_path / "0.json")
    assert digest.metrics == teachers[0].metrics
    task = build(dataset, [Trained(tensors, {})], student_size=48)
    assert torch.equal(task._train.labels[0], teachers[0].tensors["train_labels"])
    assert torch.equal(task._validation.labels[0], teachers[0].tensors["validation_labels"])
    accuracy = run(task, "none").summary["teacher_accuracy"].item()
    assert accuracy == pytest.approx(teachers[0].metrics["test_accuracy"])


def test_what_a_student_learns_from(dataset: Dataset, teachers: list[Trained]) -> None:
    """Each image with its own label and the teacher's logits for it."""
    task = build(dataset, teachers, (0, 1))
    seen = []
    for step in range(3):  # an epoch
        (batch,), outer = task.draw(step)
        assert outer.labels.shape == (2, 10)
        for index, one in enumerate(teachers):
            pixels = dataset.splits["all"].images[one.tensors["train_ids"][:24]].double() / 255
            images = ((pixels - one.tensors["pixels"][0]) / one.tensors["pixels"][1]).float()
            rows = student.patches(images)
            found = [int((rows - image).abs().flatten(1).amax(1).argmin()) for image in batch.images[index]]
            torch.testing.assert_close(batch.images[index], rows[found], rtol=1e-5, atol=1e-5)
            assert torch.equal(batch.labels[index], one.tensors["train_labels"][found])
            logits = lenet.forward(one.tensors["parameters"], images[found])
            torch.testing.assert_close(batch.teacher[index], logits, rtol=1e-4, atol=1e-5)
            if index == 0:
                seen += found
    assert sorted(seen) == list(range(24))


# --- loss and hypergradients


def plain_loss(params: Tensor, hyper: Tensor, batch: Any) -> Tensor:
    logits = student.forward(params, batch.images)
    divergence = kl_div(log_softmax(logits / hyper[1], 1), softmax(batch.teacher / hyper[1], 1), reduction="batchmean")
    return (1 - hyper[0]) * cross_entropy(logits, batch.labels) + hyper[0] * divergence


def wide(batch: Any, index: int | None = None) -> Any:
    """In double precision, of one seed where it is named."""
    parts = [part.double() if part.is_floating_point() else part for part in batch]
    return type(batch)(*parts) if index is None else type(batch)(*[part[index] for part in parts])


def test_loss_is_that_of_the_paper(dataset: Dataset, teachers: list[Trained]) -> None:
    task = build(dataset, teachers, (0, 1))
    state, hyper = task.start()
    params, hyper, batch = task.optimizer.params(state).double(), hyper.double(), wide(task.draw(0)[0][0])
    found = Derivatives(task.problem, hyper).inner_loss(params, batch)
    expected = [plain_loss(params[index], hyper[index], wide(batch, index)) for index in range(2)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("method", "settings", "close"), [("truncated", {"steps": 1}, 1e-6), ("darts", {}, 1e-2)])
def test_hypergradient_is_that_of_the_greedy_step(
    dataset: Dataset, teachers: list[Trained], method: str, settings: dict[str, Any], close: float
) -> None:
    """Against a central difference, through the step itself."""
    task = build(dataset, teachers, (0, 1), learning_rate=0.1)
    state, hyper = task.start()
    state, hyper = state.double(), hyper.double()
    (batch,), outer = task.draw(0)
    batch, outer = wide(batch), wide(outer)
    found = create_method("distillation_images", method, settings)(
        task.problem, task.optimizer, state, hyper, [batch], outer
    )

    def outer_loss(shift: Tensor) -> Tensor:
        derivatives, moved = Derivatives(task.problem, hyper + shift), state.clone()
        SGD(learning_rate=0.1).advance_(derivatives, moved, batch)
        return derivatives.outer_loss(moved[:, 0], outer)

    width = 1e-6  # narrow, since ReLU has kinks
    for index in range(2):
        shift = width * torch.eye(2, dtype=torch.float64)[index]
        slope = (outer_loss(shift) - outer_loss(-shift)) / (2 * width)
        torch.testing.assert_close(found.hypergradient[:, index], slope, rtol=close, atol=close * 1e-3)
    torch.testing.assert_close(found.outer_loss, outer_loss(torch.zeros(2)), rtol=1e-9, atol=0)


# --- the outer loop


def test_gradients_are_clipped_by_value() -> None:
    hyper = torch.tensor([[0.5, 1.0]])
    moved = ClippedDescent(0.1, 0.01).step(hyper, torch.tensor([[-3.0, 0.002]]))
    torch.testing.assert_close(moved, torch.tensor([[0.501, 0.9998]]))
    assert hyper.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize("prediction", [None, LINE])
def test_metaparameters_stay_in_their_box(
    dataset: Dataset, teachers: list[Trained], prediction: dict[str, Any] | None
) -> None:
    """With steps of up to 2 in λ₁ and in T they would leave it at once."""
    task = build(
        dataset, teachers, (0, 1), outer_learning_rate=200.0, iterations=12, evaluate_every=1, prediction=prediction
    )
    result = run(task, "truncated", steps=1)
    weights = torch.stack([row["beta_distillation"] for row in result.trace.values()])
    temperatures = torch.stack([row["temperature"] for row in result.trace.values()])
    assert weights.min() == 0 or weights.max() == 1
    assert ((weights >= 0) & (weights <= 1)).all()
    assert ((temperatures >= 0.1 - 1e-6) & (temperatures <= 10)).all()
    task = build(dataset, teachers)
    outside = torch.tensor([[-1.0, 0.0], [2.0, 11.0], [0.3, 4.0]])
    torch.testing.assert_close(task.project(outside), torch.tensor([[0.0, 0.1], [1.0, 10.0], [0.3, 4.0]]))


def test_first_metaparameters(dataset: Dataset, teachers: list[Trained]) -> None:
    starts = {kind: build(dataset, teachers, (0, 1), start=kind).start() for kind in ("none", "naive", "random")}
    assert starts["none"][1].tolist() == [[0, 1]] * 2
    assert starts["naive"][1].tolist() == [[0.5, 1]] * 2
    for state, _ in starts.values():
        assert torch.equal(state, starts["random"][0])
    cls = task_class("distillation_images")
    many = cls("study", cls.read_settings(SMALL), dataset, range(400), CPU)
    assert isinstance(many, DistillationImages)
    weights, powers = torch.stack([many._first_hyper(seed) for seed in range(400)]).unbind(1)
    for uniform in (weights, (powers.log10() + 1) / 2):
        assert uniform.min() >= 0
        assert uniform.max() <= 1
        assert uniform.mean().item() == pytest.approx(0.5, abs=0.05)
        assert uniform.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.03)


def test_arms_that_do_not_learn_keep_their_metaparameters(dataset: Dataset, teachers: list[Trained]) -> None:
    for kind in ("none", "naive", "random"):
        task = build(dataset, teachers, (0, 1), start=kind)
        summary = run(task, "none").summary
        torch.testing.assert_close(summary["beta_distillation"], task.start()[1][:, 0].double())
        torch.testing.assert_close(summary["temperature"], task.start()[1][:, 1].double())
        assert summary["hypergradients"].tolist() == [0, 0]


def test_metrics_of_a_run(dataset: Dataset, teachers: list[Trained]) -> None:
    task = build(dataset, teachers, (0, 1))
    result = run(task, "truncated", steps=1)
    assert list(result.trace) == [0, 3, 6, 8]
    assert set(result.summary) >= METRICS | {"beta_distillation", "temperature", "teacher_accuracy", "hypergradients"}
    assert result.summary["hypergradients"].tolist() == [8, 8]
    params = task.optimizer.params(task.start()[0])
    for index, one in enumerate(teachers):
        images = dataset.splits["all"].images[one.tensors["test_ids"]].double() / 255
        images = (images - one.tensors["pixels"][0]) / one.tensors["pixels"][1]
        logits = plain_forward(params[index].double(), images)
        labels = one.tensors["test_labels"]
        loss = result.trace[0]["test_cross_entropy"][index].item()
        assert loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-4)
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        assert result.trace[0]["test_accuracy"][index].item() == pytest.approx(accuracy)


def test_predicted_values_take_the_place_of_updates(dataset: Dataset, teachers: list[Trained]) -> None:
    """Two optimized steps, two on the line through them: value 2 is 2 y₁ − y₀, value 3 is 3 y₁ − 2 y₀."""
    task = build(dataset, teachers, (0, 1), start="naive", evaluate_every=1, prediction=LINE, outer_learning_rate=0.5)
    result = run(task, "truncated", steps=1)
    assert [row["predicted"][0].item() for row in list(result.trace.values())[1:]] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert result.summary["hypergradients"].tolist() == [4, 4]
    for name in ("beta_distillation", "temperature"):
        first, second, third, fourth = (result.trace[step][name] for step in (1, 2, 3, 4))
        assert (first != second).all()
        torch.testing.assert_close(third, 2 * second - first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fourth, 3 * second - 2 * first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["truncated", "tpe"])
def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset, teachers: list[Trained], method: str) -> None:
    settings: dict[str, Any] = {"steps": 1} if method == "truncated" else {"trials": 3}
    together = run(build(dataset, teachers, (0, 1)), method, **settings)
    for seed in (0, 1):
        alone = run(build(dataset, teachers, (seed,)), method, **settings)
        for name in (*METRICS, "beta_distillation", "temperature"):
            torch.testing.assert_close(together.summary[name][seed], alone.summary[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["truncated", "tpe"])
def test_test_images_are_in_no_loss(dataset: Dataset, teachers: list[Trained], method: str) -> None:
    """They are replaced: the same student and metaparameters, and other metrics on the test images only."""
    settings: dict[str, Any] = {"steps": 1} if method == "truncated" else {"trials": 3}
    images = dataset.splits["all"].images.clone()
    ids = teachers[0].tensors["test_ids"]
    images[ids] = 255 - images[ids]
    changed = Dataset("made", {"all": Split(images, dataset.splits["all"].labels)})
    ours, others = (run(build(data, teachers), method, **settings).summary for data in (dataset, changed))
    for name in ("validation_cross_entropy", "beta_distillation", "temperature"):
        assert torch.equal(ours[name], others[name])
    assert (ours["test_cross_entropy"] != others["test_cross_entropy"]).all()


def test_search_keeps_the_best_trial_on_validation_images(dataset: Dataset, teachers: list[Trained]) -> None:
    task = build(dataset, teachers, (0, 1), iterations=12)
    found = run(task, "tpe", trials=4)
    assert found.summary["gradients"].tolist() == [4.0, 4.0]
    assert found.summary["hypergradients"].tolist() == [0.0, 0.0]
    fewer = [run(task, "tpe", trials=count).summary["validation_cross_entropy"] for count in (1, 2)]
    assert (fewer[1] <= fewer[0]).all()
    assert (found.summary["validation_cross_entropy"] <= fewer[1]).all()
    hyper = torch.stack([found.summary[name] for name in ("beta_distillation", "temperature")], 1).float()
    (state, _), derivatives = task.start(), Derivatives(task.problem, hyper)
    for step in range(12):
        task.optimizer.advance_(derivatives, state, task.draw(step)[0][0])
    loss = task.evaluate(state, hyper)["validation_cross_entropy"]
    torch.testing.assert_close(found.summary["validation_cross_entropy"], loss, rtol=1e-5, atol=0)


def test_a_search_whose_trainings_all_diverge_is_marked(dataset: Dataset, teachers: list[Trained]) -> None:
    task = build(dataset, teachers, (0, 1), iterations=2)
    start = task.start

    def poisoned() -> tuple[Tensor, Tensor]:
        state, hyper = start()
        state[1, 0, 0] = math.nan
        return state, hyper

    task.start = poisoned
    result = run(task, "tpe", trials=2)
    assert result.alive.tolist() == [True, False]
    assert torch.isnan(result.summary["test_accuracy"]).tolist() == [False, True]


# --- refusals


def test_settings_that_make_no_sense_are_refused(dataset: Dataset, teachers: list[Trained]) -> None:
    cls = task_class("distillation_images")
    with pytest.raises(SettingsError, match=r"start: .*'none', 'naive' or 'random', got 'learned'"):
        cls.read_settings({"start": "learned"})
    with pytest.raises(SettingsError, match=r"data: a data set is needed, the teacher's"):
        cls.check_data(cls.read_settings({}), None, {})
    with pytest.raises(SettingsError, match=r"batches of 25 are drawn from the student's 24 images"):
        build(dataset, teachers, batch_size=25)
    with pytest.raises(SettingsError, match=r"student_size: 49 of the teacher's train images .* it has 48"):
        build(dataset, teachers, student_size=49)
    with pytest.raises(SettingsError, match=r"outer_batch_size: 31 of the teacher's validation images .* it has 30"):
        build(dataset, teachers, outer_batch_size=31)
    for method, settings in (("none", {}), ("tpe", {"trials": 1})):
        with pytest.raises(SettingsError, match="no gradients to predict"):
            run(build(dataset, teachers, prediction=LINE), method, **settings)


def test_teachers_that_do_not_fit_are_refused(dataset: Dataset, teachers: list[Trained]) -> None:
    task = build(dataset, teachers)
    with pytest.raises(SettingsError, match=r"of the kind 'convnet', .* that of seed 0 has weight"):
        task.use_teachers([{"weight": torch.zeros(1)}])
    for count, seed in ((100, 5), (60, 0)):
        with pytest.raises(SettingsError, match="that of seed 0 was trained on other data than other; name one"):
            build(Dataset("other", {"all": blobs(count, seed)}), teachers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 71}, r"train_size 71, .* do not fit made"),
        ({"test_size": 23}, "test_size 23 do not fit made"),
        ({"batch_size": 49}, "batch_size: batches of 49 are drawn from the 48 training images"),
    ],
)
def test_settings_of_a_teacher_that_do_not_fit_are_refused(
    dataset: Dataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        trained(dataset, 0, **settings)
    kind = teacher_class("convnet")
    with pytest.raises(SettingsError, match="a data set is needed"):
        kind.check_data(kind.read_settings({}), None, {})
