"""LeNet-5 and its learned L2 coefficients: the network, draws, exact hypergradients, metrics, what sees which data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_images import blobs
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel import data, metrics
from bilevel.columns import WHOLE_RUN
from bilevel.data import Dataset, Split
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Estimate
from bilevel.models import lenet
from bilevel.problem import Problem
from bilevel.results import Result
from bilevel.reversible_dynamics import ReversibleChain
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.lenet_l2 import LenetL2

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "mnist"
SIZE = 61_706
SMALL = {
    "train_size": 40,
    "validation_size": 30,
    "test_size": 30,
    "epochs": 2,
    "hyper_epochs": 3,
    "inner_steps": 5,
    "batch_size": 8,
    "outer_batch_size": 10,
}
TEST_METRICS = ("cross_entropy", "cross_entropy_softmax", "error", "one_minus_auc", "one_minus_auc_hard")
METRICS = {*TEST_METRICS, "validation_cross_entropy", "validation_error"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(100, 0)})


def build(dataset: Dataset, seeds: list[int] | None = None, device: torch.device = CPU, **settings: Any) -> LenetL2:
    cls = task_class("lenet_l2")
    task = cls("study", cls.read_settings({**SMALL, **settings}), dataset, seeds or [0], device)
    assert isinstance(task, LenetL2)
    return task


def run(task: LenetL2, method: str, **settings: Any) -> Result:
    return task.run(create_method("lenet_l2", method, settings), "run")


# --- the network


def plain() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5, padding=2),
        torch.nn.Tanh(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(6, 16, 5),
        torch.nn.Tanh(),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(400, 120),
        torch.nn.Tanh(),
        torch.nn.Linear(120, 84),
        torch.nn.Tanh(),
        torch.nn.Linear(84, 10),
    ).double()


def plain_forward(params: Tensor, images: Tensor) -> Tensor:
    """`torch.nn`, its tensors made of ours."""
    ours = list(lenet.LAYOUT.split(params).values())
    tensors = [
        ours[0].permute(3, 2, 0, 1),
        ours[1],
        ours[2].permute(3, 2, 0, 1),
        ours[3],
        ours[4].view(120, 25, 16).transpose(1, 2).reshape(120, 400),
        *ours[5:],
    ]
    module = plain()
    names = [name for name, _ in module.named_parameters()]
    logits: Tensor = torch.func.functional_call(module, dict(zip(names, tensors, strict=True)), (images,))
    return logits


def derivatives_of(forward: Callable[[Tensor, Tensor], Tensor], params: Tensor, images: Tensor) -> list[Tensor]:
    """Logits, and the gradient and a Hessian-vector product of a function of them."""
    draws = torch.Generator().manual_seed(2)
    weights = torch.randn(len(images), 10, generator=draws, dtype=torch.float64)
    vector = torch.randn(SIZE, generator=draws, dtype=torch.float64)
    at = params.clone().requires_grad_()
    logits = forward(at, images)
    (gradient,) = torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), at, create_graph=True)
    (product,) = torch.autograd.grad(gradient, at, vector)
    return [logits.detach(), gradient.detach(), product]


def drawn(count: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    params = lenet.initial(draws).double() + 0.05 * torch.randn(SIZE, generator=draws, dtype=torch.float64)
    return params, torch.randn(count, 1, 28, 28, generator=draws, dtype=torch.float64)


def test_lenet_is_that_of_torch() -> None:
    params, images = drawn(5)
    assert lenet.LAYOUT.size == SIZE == sum(part.numel() for part in plain().parameters())
    for ours, theirs in zip(
        derivatives_of(lenet.forward, params, images), derivatives_of(plain_forward, params, images), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * float(theirs.abs().max()))


def test_lenet_under_vmap_and_in_complex_numbers() -> None:
    params, images = drawn(3)
    several = torch.stack([params, -params, 2 * params])
    batched = torch.func.vmap(lenet.forward)(several, torch.stack([images, images + 1, images]))
    for index, shift in enumerate((0, 1, 0)):
        torch.testing.assert_close(batched[index], lenet.forward(several[index], images + shift), rtol=1e-12, atol=0)
    direction = torch.randn(SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = lenet.forward(torch.complex(params, 1e-30 * direction), images.to(torch.complex128))
    _, tangent = torch.func.jvp(lambda at: lenet.forward(at, images), (params,), (direction,))
    torch.testing.assert_close(step.imag / 1e-30, tangent, rtol=1e-11, atol=1e-12)


def test_first_parameters() -> None:
    p = lenet.LAYOUT.split(lenet.initial(torch.Generator().manual_seed(1)))
    for name, fans in (("conv2.weight", 25 * (6 + 16)), ("linear1.weight", 400 + 120), ("linear3.weight", 84 + 10)):
        bound = (6 / fans) ** 0.5
        assert p[name].abs().max() <= bound
        assert p[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(not p[name].any() for name in p if name.endswith("bias"))


# --- data and draws


def rows(images: Tensor) -> set[bytes]:
    """Images that can be compared however they are standardized: from their darkest pixel to their brightest."""
    low, high = images.flatten(1).min(-1).values, images.flatten(1).max(-1).values
    levels = ((images - low.view(-1, 1, 1, 1)) / (high - low).view(-1, 1, 1, 1) * 311.7).round().to(torch.int16)
    return {image.numpy().tobytes() for image in levels}


def test_sets_are_disjoint_and_change_with_the_seed(dataset: Dataset) -> None:
    task = build(dataset, [0, 1])
    for share in task.shares:
        assert [len(part.labels) for part in share] == [40, 30, 30]
        assert len(set().union(*(rows(part.images) for part in share))) == 100
    assert rows(task.shares[0].train.images) != rows(task.shares[1].train.images)


def test_images_are_standardized_by_those_trained_on(dataset: Dataset) -> None:
    darker = Dataset("darker", {"all": Split(dataset.splits["all"].images // 3, dataset.splits["all"].labels)})
    for made in (dataset, darker):
        share = build(made).shares[0]
        assert share.train.images.mean().item() == pytest.approx(0, abs=1e-4)
        assert share.train.images.std().item() == pytest.approx(1, abs=1e-4)
        assert share.test.images.mean().item() != pytest.approx(0, abs=1e-4)
        both = build(made, train_on="both", regularization="none").shares[0]
        assert torch.equal(both.test.images, share.test.images)
        assert torch.equal(both.train.images, torch.cat([share.train.images, share.validation.images]))


def test_studies_share_draws(dataset: Dataset) -> None:
    cls = task_class("lenet_l2")
    tasks = [cls(name, cls.read_settings(SMALL), dataset, [0], CPU) for name in ("lenet_l2", "lenet_l2_published")]
    assert all(isinstance(task, LenetL2) for task in tasks)
    first, second = (task.draw(1) for task in tasks if isinstance(task, LenetL2))
    assert torch.equal(first[0][0][0], second[0][0][0])
    assert torch.equal(first[1][0], second[1][0])


@pytest.mark.filterwarnings("ignore::bilevel.fixed_point.OutOfRangeWarning")
def test_a_seed_that_leaves_the_range_is_marked_and_the_others_go_on(dataset: Dataset) -> None:
    task = build(dataset, [0, 1])
    expected = run(task, "reversible")
    start = task.start

    def far() -> tuple[Tensor, Tensor]:
        state, hyper = start()
        state[1, 0] = 1e7  # fixed-point numbers of 44 bits end at 262,144
        return state, hyper

    task.start = far  # type: ignore[method-assign]
    result = run(task, "reversible")
    assert result.alive.tolist() == [True, False]
    assert torch.equal(result.summary["cross_entropy"][:1], expected.summary["cross_entropy"][:1])
    assert result.summary["cross_entropy"][1].isnan()


def test_official_test_set_stays_apart() -> None:
    official = Dataset("official", {"train": blobs(80, 0), "test": blobs(50, 1)})
    whole, part = build(official, test_size=None).shares[0], build(official, test_size=30).shares[0]
    made = build(
        Dataset("made", {"all": blobs(50, 1)}), train_size=40, validation_size=9, test_size=1, outer_batch_size=1
    )
    of_test = rows(torch.cat([part.images for part in made.shares[0]]))
    assert rows(whole.test.images) == of_test
    assert rows(part.test.images) < of_test
    assert len(part.test.labels) == 30
    assert not rows(whole.train.images) & of_test


def test_an_epoch_sees_every_image_once_and_the_stream_goes_on(dataset: Dataset) -> None:
    task = build(dataset, train_size=43, test_size=None)
    assert task.steps_per_epoch == 5  # the last three images of an epoch are left out
    epochs = [task._inner_batches(5 * epoch, 5) for epoch in range(5)]
    for batches in epochs:
        assert len(rows(torch.cat([batches[index][0][0] for index in range(5)]))) == 40
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    task = build(dataset, train_size=43, test_size=None, inner_steps=4)
    assert task.outer_steps == 3 * 5 // 4
    stream = [images for step in range(task.outer_steps) for images, _ in task.draw(step)[0]]
    expected = [images for batches in epochs[2:] for images, _ in batches]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(stream, expected[:12], strict=True))


def test_arms_and_company_share_draws(dataset: Dataset) -> None:
    arms = [build(dataset, [7], regularization=kind) for kind in ("none", "shared", "individual")]
    arms.append(build(dataset, [3, 7]))
    arms[-1].draw(0)
    drawn = [task.draw(1) for task in arms]
    for task, (batches, outer) in zip(arms, drawn, strict=True):
        for index in range(5):
            for ours, first in zip(batches[index], drawn[0][0][index], strict=True):
                assert torch.equal(ours[-1], first[-1])
        assert torch.equal(outer[0][-1], drawn[0][1][0][-1])
        assert torch.equal(task.shares[-1].test.images, arms[0].shares[-1].test.images)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_size": 80}, r"train_size 80, .* do not fit made"),
        ({"test_size": 31}, "test_size 31 do not fit made"),
        (
            {"outer_batch_size": 31},
            "outer_batch_size: batches of 31 are drawn from the 30 images of the validation set",
        ),
        ({"outer_set": "test", "test_size": 9}, "drawn from the 9 images of the test set"),
        ({"inner_steps": 16}, r"3 hyper_epochs of 5 steps .* leave no room for 16"),
        ({"batch_size": 41}, r"3 hyper_epochs of 0 steps \(40 images // batch_size 41\)"),
        ({"train_on": "both"}, "train_on: both: only with regularization: none"),
        ({"initial_level": 800.0}, "initial_level"),
    ],
)
def test_settings_that_do_not_fit_are_refused(dataset: Dataset, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(dataset, **changed)
    with pytest.raises(SettingsError, match="a data set is needed"):
        LenetL2.check_data(LenetL2.read_settings({}), None, {})


# --- hypergradients


STEPS = 12


@pytest.fixture(scope="module")
def exact() -> tuple[Problem, Any, Tensor, Tensor, list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Twelve inner steps of the task in double precision, after a first epoch."""
    task = build(
        Dataset("made", {"all": blobs(200, 0)}), train_size=100, epochs=1, inner_steps=STEPS, initial_level=-4.0
    )
    state, hyper = task.start()
    batches, (images, labels) = task.draw(0)
    wide = [(batch[0].double(), batch[1]) for batch in (batches[index] for index in range(STEPS))]
    return task.problem, task.optimizer, state.double(), hyper.double(), wide, (images.double(), labels)


def estimated(exact: Any, method: str, **settings: Any) -> Estimate:
    estimate: Estimate = create_method("lenet_l2", method, settings)(*exact)
    return estimate


def test_exact_methods_agree(exact: Any) -> None:
    """`reversible` to the resolution of its numbers: Adam divides by √v, known to 2^−26 = 1.5e-8 of a gradient of one,
    and relative to it worse where the average v is small; what is not exact by design would be off by a percent."""
    expected = estimated(exact, "unrolled")
    scale = float(expected.hypergradient.abs().max())
    tree = estimated(exact, "checkpointed", schedule="tree")
    torch.testing.assert_close(tree.hypergradient, expected.hypergradient, rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(tree.state, expected.state, rtol=1e-12, atol=1e-14)
    back = estimated(exact, "reversible")
    error = (back.hypergradient - expected.hypergradient).norm() / expected.hypergradient.norm()
    assert error < 1e-6
    torch.testing.assert_close(back.hypergradient, expected.hypergradient, rtol=0, atol=1e-5 * scale)
    one_step = estimated(exact, "truncated", steps=1)
    assert (one_step.hypergradient - expected.hypergradient).norm() / expected.hypergradient.norm() > 0.01


def test_hypergradient_is_that_of_the_loss(exact: Any) -> None:
    """Against a central difference along the hypergradient, through the steps themselves."""
    problem, optimizer, state, hyper, batches, outer_batch = exact
    estimate = estimated(exact, "unrolled")
    direction = estimate.hypergradient / estimate.hypergradient.norm()

    def outer_loss(width: float) -> float:
        derivatives, moved = Derivatives(problem, hyper + width * direction), state.clone()
        for batch in batches:
            optimizer.advance_(derivatives, moved, batch)
        return derivatives.outer_loss(optimizer.params(moved), outer_batch).item()

    width = 1e-2
    slope = (outer_loss(width) - outer_loss(-width)) / (2 * width)
    assert slope == pytest.approx(float(estimate.hypergradient.norm()), rel=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_chain_comes_back_to_the_same_bits(exact: Any, kind: torch.dtype) -> None:
    problem, optimizer, state, hyper, batches, _ = exact
    state, hyper = state.to(kind), hyper.to(kind)
    batches = [(images.to(kind), labels) for images, labels in batches]
    derivatives = Derivatives(problem, hyper)
    chain = ReversibleChain(optimizer, hyper, state)
    first = [integers.clone() for integers in chain.integers]
    for batch in batches:
        params = chain.params()
        chain.advance_(params, derivatives.linearize(params, batch).gradient)
    assert not chain.is_back_at(state)
    for batch in reversed(batches):
        chain.retreat_params_()
        params = chain.params()
        chain.retreat_averages_(params, derivatives.linearize(params, batch).gradient)
    assert all(torch.equal(now, before) for now, before in zip(chain.integers, first, strict=True))
    assert chain.is_back_at(state)
    assert chain.bits == 0


# --- runs


def test_metrics_of_a_run(dataset: Dataset) -> None:
    task = build(dataset)
    result = run(task, "unrolled")
    assert set(result.summary) >= METRICS | {f"{name}_start" for name in METRICS} | {"level_mean", "gradients"}
    assert set(result.trace[0]) >= METRICS
    assert set(result.trace[3]) >= METRICS
    state, _ = task.start()
    share = task.shares[0]
    logits = plain_forward(task.optimizer.params(state)[0].double(), share.test.images.double())
    probabilities = logits.softmax(-1)
    expected = {
        "cross_entropy": cross_entropy(logits, share.test.labels).item(),
        "cross_entropy_softmax": cross_entropy(probabilities, share.test.labels).item(),
        "error": (logits.argmax(-1) != share.test.labels).double().mean().item(),
        "one_minus_auc": 1 - metrics.macro_auc(probabilities, share.test.labels),
        "one_minus_auc_hard": 1 - metrics.hard_macro_auc(logits, share.test.labels),
    }
    for name, value in expected.items():
        assert result.summary[f"{name}_start"].item() == pytest.approx(value, rel=1e-5, abs=1e-7)
    times = result.measurements[WHOLE_RUN]
    ratio = times["seconds_per_hyper_epoch"] / times["seconds_per_epoch"]
    torch.testing.assert_close(times["hyper_epoch_to_epoch"], ratio)
    assert (ratio > 0).all()
    if "memory_epoch" in times:
        assert (times["memory_hyper_epoch"] > times["memory_epoch"]).all()
        assert (times["process_hyper_epoch_to_epoch"] < times["memory_hyper_epoch"] / times["memory_epoch"]).all()


def test_metrics_are_taken_about_every_second_epoch_and_at_the_end(dataset: Dataset) -> None:
    result = run(build(dataset, inner_steps=2), "none")
    assert [step for step, found in result.trace.items() if "error" in found] == [0, 5, 7]


def test_histograms_by_layer(dataset: Dataset) -> None:
    for kind, start in (("shared", -9.0), ("individual", -9.0), ("individual", -30.0)):
        result = run(build(dataset, regularization=kind, initial_level=start), "unrolled")
        counts: dict[str, int] = {}
        for row in result.histograms:
            assert row.quantity == "log_coefficient"
            assert start == -30.0 or row.count == 0 or abs(row.left + 9) < 0.6
            counts[row.group] = counts.get(row.group, 0) + row.count
        assert counts == {"conv1": 156, "conv2": 2416, "linear1": 48120, "linear2": 10164, "linear3": 850}
    assert not run(build(dataset, regularization="none"), "none").histograms


@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("none", "none", {}),
        ("shared", "reversible", {}),
        ("individual", "reversible", {}),
        ("individual", "checkpointed", {"schedule": "tree"}),
        ("individual", "unrolled", {}),
        ("individual", "truncated", {"steps": 1}),
        ("individual", "aggregated", {"gamma": 0.99}),
    ],
)
def test_every_arm_runs_and_moves_what_it_should(
    dataset: Dataset, kind: str, method: str, settings: dict[str, Any]
) -> None:
    task = build(dataset, regularization=kind)
    result = run(task, method, **settings)
    assert result.alive.all()
    assert ("level_mean" in result.summary) is (kind != "none")
    if kind == "none":
        return
    low, high = result.summary["level_min"], result.summary["level_max"]
    if kind == "shared":
        assert low == high != -9
    else:
        assert low < -9 < high
    # Adam moves by its rate at each of the three updates, at most
    assert (torch.stack([low, high]) + 9).abs().max() <= 3 * 0.05 * 1.05


def test_exact_methods_take_the_same_way(dataset: Dataset) -> None:
    """In single precision, from the same parameters: three updates later the outer losses still agree."""
    losses = [
        run(build(dataset), method, **settings).trace[3]["outer_loss"]
        for method, settings in (("unrolled", {}), ("checkpointed", {"schedule": "tree"}), ("reversible", {}))
    ]
    for found in losses[1:]:
        torch.testing.assert_close(found, losses[0], rtol=1e-4, atol=0)


def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset) -> None:
    together = run(build(dataset, [0, 1]), "unrolled")
    for index, seed in enumerate((0, 1)):
        alone = run(build(dataset, [seed]), "unrolled")
        for name in ("cross_entropy", "validation_cross_entropy", "level_mean"):
            torch.testing.assert_close(together.summary[name][index], alone.summary[name][0], rtol=1e-4, atol=0)


def final(task: LenetL2) -> tuple[Tensor, Tensor, Result]:
    """Hyperparameters and state at the end of a run."""
    seen: list[tuple[Tensor, Tensor]] = []
    summarize = task.summarize

    def watched(state: Tensor, hyper: Tensor, trace: Any) -> dict[str, Tensor]:
        seen.append((state.clone(), hyper.clone()))
        return summarize(state, hyper, trace)

    task.summarize = watched  # type: ignore[method-assign]
    result = run(task, "unrolled")
    return *seen[0], result


@pytest.mark.parametrize(("outer_set", "unseen"), [("validation", "test"), ("test", "validation")])
def test_nothing_is_tuned_on_the_other_set(dataset: Dataset, outer_set: str, unseen: str) -> None:
    """Its images are replaced: the same parameters and hyperparameters, to the bit, and other metrics."""
    state, hyper, result = final(build(dataset, outer_set=outer_set))
    changed = build(dataset, outer_set=outer_set)
    getattr(changed.shares[0], unseen).images.neg_()
    other_state, other_hyper, other = final(changed)
    assert torch.equal(state, other_state)
    assert torch.equal(hyper, other_hyper)
    metric = "cross_entropy" if unseen == "test" else "validation_cross_entropy"
    assert other.summary[metric] != result.summary[metric]
    tuned = build(dataset, outer_set=outer_set)
    getattr(tuned.shares[0], outer_set).images.neg_()
    assert not torch.equal(final(tuned)[1], hyper)


def test_individual_coefficients_lower_the_validation_loss() -> None:
    """On few images, with a rate that lets three updates do something."""
    made = Dataset("made", {"all": blobs(200, 0)})
    chosen = {"train_size": 40, "hyper_epochs": 12, "outer_learning_rate": 0.5, "outer_batch_size": 30}
    tuned = run(build(made, **chosen), "reversible").summary["validation_cross_entropy"]
    fixed = run(build(made, **chosen), "none").summary["validation_cross_entropy"]
    assert tuned < fixed


def test_mnist_from_a_folder(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"needs the files of MNIST in {SHARED}")
    file = tmp_path / "mnist.safetensors"
    data.prepare("mnist", file, [SHARED.parent])
    chosen = {"train_size": 320, "validation_size": 100, "test_size": 2000, "batch_size": 32, "epochs": 3}
    task = build(data.load(file), **chosen, hyper_epochs=1, inner_steps=10)
    result = run(task, "reversible")
    assert len(task.shares[0].test.labels) == 2000
    assert result.summary["error"].item() < 0.6
    assert result.alive.all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_a_gpu(dataset: Dataset) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        on_gpu = run(build(dataset, device=torch.device("cuda")), "reversible")
    finally:
        torch.use_deterministic_algorithms(False)
    on_cpu = run(build(dataset), "reversible")
    torch.testing.assert_close(on_gpu.trace[2]["outer_loss"], on_cpu.trace[2]["outer_loss"], rtol=1e-3, atol=0)
