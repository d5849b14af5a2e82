"""Distillation of deck 004 on synthetic data: samples, losses, hypergradients, arms, facts of the published run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax, softmax

from bilevel.derivatives import Derivatives
from bilevel.hypergradients.none import NoHypergradient
from bilevel.hypergradients.truncated import Truncated
from bilevel.optimizers import Adam
from bilevel.outer import Adam as OuterAdam
from bilevel.randomness import generator
from bilevel.results import Result
from bilevel.runs import greedy
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.distillation import Distillation
from bilevel.tasks.distillation.search import TPE
from bilevel.tasks.distillation_synthetic_published.darts import PublishedDARTS
from bilevel.tasks.distillation_synthetic_published.slip import SlippedAdam
from bilevel.teachers import Trained, teacher_class
from bilevel.teachers.logistic import first_parameters
from bilevel.trajectory import LocallyLinear

CPU = torch.device("cpu")
PUBLISHED, CORRECTED = "distillation_synthetic_published", "distillation_synthetic_corrected"
LINE = {"length": 4, "every": 2}
Teachers = Mapping[str, list[Trained]]


def trained(draws: str, seed: int, **settings: Any) -> Trained:
    kind = teacher_class("logistic")
    return kind(f"logistic_{draws}", kind.read_settings({"draws": draws, **settings}), None, CPU).train(seed)


@pytest.fixture(scope="module")
def teachers() -> Teachers:
    """Three of each; those drawn anew are hardly trained, which is enough to learn from."""
    published = trained("published", 0)
    return {PUBLISHED: [published] * 3, CORRECTED: [trained("anew", seed, steps=300) for seed in range(3)]}


def build(name: str, teachers: Teachers, seeds: list[int], **settings: Any) -> Distillation:
    cls = task_class(name)
    task = cls("study", cls.read_settings({"iterations": 8, "evaluate_every": 3, **settings}), None, seeds, CPU)
    assert isinstance(task, Distillation)
    task.use_teachers([teachers[name][seed].tensors for seed in seeds])
    return task


def run(task: Distillation, name: str, method: str, **settings: Any) -> Result:
    kind = PUBLISHED if type(task).__name__.endswith("Published") else CORRECTED
    return task.run(create_method(kind, method, settings), name)  # type: ignore[arg-type]


class Plain:
    """The published student of one seed in torch's own terms, from weight and bias of each class."""

    def __init__(self, trained: Trained) -> None:
        points, self.labels = trained.tensors["student_points"], trained.tensors["student_labels"]
        self.features = torch.cat([points, points[:, :1] * points[:, 1:]], 1)
        rows = trained.tensors["parameters"].view(2, 4)
        quadrant = (points.sign().sum(1, keepdim=True) > 0.1).double()
        self.teacher = linear(torch.cat([points, quadrant], 1), rows[:, :3], rows[:, 3])
        self.tensors = trained.tensors

    @staticmethod
    def logits(params: Tensor, features: Tensor) -> Tensor:
        rows = params.view(2, 4)
        return linear(features, rows[:, :3], rows[:, 3])

    def loss(self, params: Tensor, r: Tensor, *, reversed_: bool) -> Tensor:
        logits, temperature = self.logits(params, self.features), 10 * torch.sigmoid(r[2])
        student, teacher = logits / temperature, self.teacher / temperature
        target, given = (student, teacher) if reversed_ else (teacher, student)
        distance = kl_div(log_softmax(given, 1), softmax(target, 1), reduction="batchmean")
        return torch.sigmoid(r[0]) * distance + torch.sigmoid(r[1]) * cross_entropy(logits, self.labels)

    def loss_on(self, params: Tensor, name: str) -> Tensor:
        points, labels = self.tensors[f"{name}_points"], self.tensors[f"{name}_labels"]
        return cross_entropy(self.logits(params, torch.cat([points, points[:, :1] * points[:, 1:]], 1)), labels)

    def gradient(self, params: Tensor, r: Tensor) -> Tensor:
        leaf = params.clone().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, r, reversed_=True), leaf)[0]

    def by_hyper(self, params: Tensor, r: Tensor) -> Tensor:
        leaf = r.clone().requires_grad_()
        return torch.autograd.grad(self.loss(params, leaf, reversed_=True), leaf)[0]


class PlainAdam:
    """Adam of the student, written out; `ahead` is the published virtual step."""

    def __init__(self, params: Tensor) -> None:
        self.params, self.mean, self.square, self.count = params, torch.zeros_like(params), torch.zeros_like(params), 0

    def step(self, gradient: Tensor) -> None:
        self.mean, self.square = 0.9 * self.mean + 0.1 * gradient, 0.999 * self.square + 0.001 * gradient**2
        self.count += 1
        self.params = self._moved(self.mean, self.square)

    def ahead(self, gradient: Tensor) -> Tensor:
        return self._moved(0.9 * self.mean + 0.1 * gradient, 0.999 * self.square + 0.001 * gradient**2)

    def _moved(self, mean: Tensor, square: Tensor) -> Tensor:
        first, second = 1 - 0.9**self.count, 1 - 0.999**self.count
        return self.params - 1e-3 * (mean / first) / ((square / second).sqrt() + 1e-8)


# --- samples and teachers


def test_published_samples_are_those_of_numpys_generator(teachers: Teachers) -> None:
    tensors = teachers[PUBLISHED][0].tensors
    np.random.seed(42)
    points = np.random.randn(430, 2)
    labels = (points[:, 0] * points[:, 1] + np.random.randn(430) * 0.5 > 0).astype(int)
    for name, part in (("teacher", slice(200)), ("student", slice(200, 215)), ("test", slice(230, 430))):
        np.testing.assert_array_equal(tensors[f"{name}_points"].numpy(), points[part])
        np.testing.assert_array_equal(tensors[f"{name}_labels"].numpy(), labels[part])


def test_published_teacher_and_student_without_distillation(teachers: Teachers) -> None:
    """0.690 and 0.755 in the published table; the student is there long before its 20,000 iterations are over."""
    assert teachers[PUBLISHED][0].metrics["test_accuracy"] == pytest.approx(0.690, abs=1e-9)
    task = build(PUBLISHED, teachers, [0, 1], start="none", iterations=5000, evaluate_every=5000)
    result = run(task, "none", "none")
    assert result.summary["test_accuracy"].tolist() == pytest.approx([0.755, 0.755], abs=1e-9)
    assert result.summary["teacher_accuracy"].tolist() == pytest.approx([0.690, 0.690], abs=1e-9)


def test_published_seeds_share_samples_and_others_do_not(teachers: Teachers) -> None:
    again = trained("published", 1, steps=1)
    assert torch.equal(again.tensors["test_points"], teachers[PUBLISHED][0].tensors["test_points"])
    new = [one.tensors for one in teachers[CORRECTED]]
    rows = torch.cat([tensors[f"{name}_points"] for tensors in new for name in ("teacher", "student", "validation")])
    assert len(torch.unique(rows, dim=0)) == 3 * 230
    shares = [tensors["teacher_labels"].double().mean().item() for tensors in new]
    assert all(0.35 < share < 0.65 for share in shares)


def test_a_teacher_is_what_torch_trains() -> None:
    """`Linear(3, 2)` and `torch.optim.Adam` from the same first parameters."""
    found = trained("anew", 0, steps=25)
    points, labels = found.tensors["teacher_points"], found.tensors["teacher_labels"]
    features = torch.cat([points, ((points > 0).all(1, keepdim=True)).double()], 1)
    leaf = first_parameters(generator("logistic_anew", "initialization", 0)).requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(Plain.logits(leaf, features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(found.tensors["parameters"], leaf.detach(), rtol=1e-9, atol=0)
    right = (Plain.logits(leaf, features).argmax(1) == labels).double().mean().item()
    assert found.metrics["train_accuracy"] == pytest.approx(right, abs=1e-12)


# --- losses and derivatives


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_loss_is_that_of_two_logits(teachers: Teachers, direction: str) -> None:
    """`kl_div` and `cross_entropy` on logits; no factor T². Teachers of all seeds, at several temperatures."""
    task = build(CORRECTED, teachers, [0, 1, 2], divergence=direction)
    state, _ = task.start()
    params = 3 * task.optimizer.params(state)
    hyper = torch.tensor([[0.3, -1.0, -4.0], [2.0, 0.1, 0.0], [-1.0, 1.0, 5.0]], dtype=torch.float64)
    batches, outer_batch = task.draw(0)
    derivatives = Derivatives(task.problem, hyper)
    plain = [Plain(one) for one in teachers[CORRECTED]]
    flipped = direction == "student_teacher"
    expected = torch.stack([p.loss(params[i], hyper[i], reversed_=flipped) for i, p in enumerate(plain)])
    torch.testing.assert_close(derivatives.inner_loss(params, batches[0]), expected, rtol=1e-11, atol=0)
    outer = torch.stack([p.loss_on(params[i], "validation") for i, p in enumerate(plain)])
    torch.testing.assert_close(derivatives.outer_loss(params, outer_batch), outer, rtol=1e-11, atol=0)


def test_the_slides_loss_has_the_same_derivatives(teachers: Teachers) -> None:
    """Cross-entropy with softened labels in the place of KL(teacher ‖ student): ∂/∂w and ∂²/∂λ∂w do not change."""
    plain = Plain(teachers[CORRECTED][0])
    r = torch.tensor([0.3, -1.0, -1.0], dtype=torch.float64)
    params = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def slide(params: Tensor, r: Tensor) -> Tensor:
        logits, temperature = plain.logits(params, plain.features), 10 * torch.sigmoid(r[2])
        soft = softmax(plain.teacher / temperature, 1)
        distance = -(soft * log_softmax(logits / temperature, 1)).sum(1).mean()
        return torch.sigmoid(r[0]) * distance + torch.sigmoid(r[1]) * cross_entropy(logits, plain.labels)

    def ours(params: Tensor, r: Tensor) -> Tensor:
        return plain.loss(params, r, reversed_=False)

    for derivative in (torch.func.grad(slide), torch.func.jacrev(torch.func.grad(slide), 1)):
        other = (
            torch.func.grad(ours) if derivative(params, r).dim() == 1 else torch.func.jacrev(torch.func.grad(ours), 1)
        )
        torch.testing.assert_close(derivative(params, r), other(params, r), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_greedy_hypergradient_is_exact(teachers: Teachers, direction: str) -> None:
    """A central difference through one real step of Adam, some steps into the run."""
    task = build(CORRECTED, teachers, [0, 1, 2], divergence=direction)
    state, hyper = task.start()
    batches, outer_batch = task.draw(0)
    for _ in range(5):
        state = Truncated(steps=1)(task.problem, task.optimizer, state, hyper, batches, outer_batch).state
    found = Truncated(steps=1)(task.problem, task.optimizer, state, hyper, batches, outer_batch).hypergradient

    def after(hyper: Tensor) -> Tensor:
        return Truncated(steps=1)(task.problem, task.optimizer, state, hyper, batches, outer_batch).outer_loss

    for index in range(3):
        shift = torch.zeros_like(hyper)
        shift[:, index] = 1e-4
        difference = (after(hyper + shift) - after(hyper - shift)) / 2e-4
        torch.testing.assert_close(found[:, index], difference, rtol=1e-5, atol=1e-12)


def test_published_hypergradient_follows_its_formula(teachers: Teachers) -> None:
    """Seed by seed with torch's losses and Adam written out: a virtual step, two gradients over r, and ε in place of
    1/ε."""
    task = build(PUBLISHED, teachers, [0, 1, 2])
    state, hyper = task.start()
    batches, outer_batch = task.draw(0)
    first = task.optimizer.params(state).clone()
    for _ in range(3):
        estimate = PublishedDARTS()(task.problem, task.optimizer, state, hyper, batches, outer_batch)
        state = estimate.state
    assert estimate.cost.gradients == 5
    for seed in range(3):
        plain, adam, r = Plain(teachers[PUBLISHED][seed]), PlainAdam(first[seed]), hyper[seed]
        for _ in range(3):
            adam.step(plain.gradient(adam.params, r))
        torch.testing.assert_close(task.optimizer.params(state)[seed], adam.params, rtol=1e-11, atol=0)
        leaf = adam.ahead(plain.gradient(adam.params, r)).requires_grad_()
        loss = plain.loss_on(leaf, "test")
        (v,) = torch.autograd.grad(loss, leaf)
        epsilon = 0.01 / v.norm()
        above = plain.by_hyper(adam.params + epsilon * v, r)
        below = plain.by_hyper(adam.params - epsilon * v, r)
        expected = -1e-3 * (above - below) / 2 * epsilon
        torch.testing.assert_close(estimate.hypergradient[seed], expected, rtol=1e-7, atol=0)
        torch.testing.assert_close(estimate.outer_loss[seed], loss.detach(), rtol=1e-11, atol=0)


def test_published_updates_alternate(teachers: Teachers) -> None:
    """w with the metaparameters of before, these at the new w; outer Adam with decay rates 0.5 and 0.999."""
    task = build(PUBLISHED, teachers, [0], iterations=4, evaluate_every=4)
    result = run(task, "darts", "darts")
    (params, r), adam = task.start(), torch.optim.Adam
    plain, student = Plain(teachers[PUBLISHED][0]), PlainAdam(task.optimizer.params(params)[0])
    leaf = r[0].clone().requires_grad_()
    outer = adam([leaf], lr=1e-3, betas=(0.5, 0.999))
    for _ in range(4):
        student.step(plain.gradient(student.params, leaf.detach()))
        point = student.ahead(plain.gradient(student.params, leaf.detach())).requires_grad_()
        (v,) = torch.autograd.grad(plain.loss_on(point, "test"), point)
        epsilon = 0.01 / v.norm()
        ends = [plain.by_hyper(student.params + sign * epsilon * v, leaf.detach()) for sign in (1, -1)]
        leaf.grad = -1e-3 * (ends[0] - ends[1]) * epsilon / 2
        outer.step()
    assert result.summary["test_cross_entropy"].item() == pytest.approx(plain.loss_on(student.params, "test").item())
    expected = [torch.sigmoid(leaf[0]).item(), torch.sigmoid(leaf[1]).item(), 10 * torch.sigmoid(leaf[2]).item()]
    found = [result.summary[name].item() for name in ("beta_distillation", "beta_student", "temperature")]
    assert found == pytest.approx(expected, rel=1e-9)


# --- arms


def test_first_metaparameters_of_every_arm(teachers: Teachers) -> None:
    def first(start: str) -> list[list[float]]:
        trace = run(build(PUBLISHED, teachers, [0, 1, 2], start=start), start, "none").trace
        rows = [trace[step][name] for step in (0, 8) for name in ("beta_distillation", "beta_student", "temperature")]
        assert torch.equal(torch.stack(rows[:3]), torch.stack(rows[3:]))  # nothing moves them
        return torch.stack(rows[:3]).T.tolist()

    for start, expected in (("none", [0.0, 1.0, 1.0]), ("naive", [0.5, 0.5, 1.0])):
        assert all(row == pytest.approx(expected, rel=1e-12, abs=0) for row in first(start))
    for start, low, high in (("random", 0.1, 10.0), ("learned", 10 / (1 + math.e**2), 5.0)):
        rows = first(start)
        assert len({tuple(row) for row in rows}) == 3
        for beta_distillation, beta_student, temperature in rows:
            assert 0.01 <= min(beta_distillation, beta_student) <= max(beta_distillation, beta_student) <= 0.99
            assert low <= temperature <= high


@pytest.mark.parametrize("start", ["none", "random"])
def test_fixed_metaparameters_are_trained_with_as_by_the_outer_loop(teachers: Teachers, start: str) -> None:
    """The same numbers as from `greedy`, which does more work for them."""
    task = build(CORRECTED, teachers, [0, 1], start=start)
    ours, greedily = run(task, start, "none"), greedy(task, NoHypergradient(), start)
    assert list(ours.trace) == list(greedily.trace) == [0, 3, 6, 8]
    for step, row in ours.trace.items():
        for metric in ("test_accuracy", "test_cross_entropy", "beta_distillation", "temperature"):
            torch.testing.assert_close(row[metric], greedily.trace[step][metric], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.trace[8]["outer_loss"], greedily.trace[8]["outer_loss"], rtol=1e-9, atol=0)
    assert ours.summary["gradients"].tolist() == [1.0, 1.0]
    assert ours.summary["hypergradients"].tolist() == greedily.summary["hypergradients"].tolist() == [0.0, 0.0]
    assert set(greedily.summary) == set(ours.summary)


def test_a_fixed_training_that_diverges_is_marked(teachers: Teachers) -> None:
    task = build(CORRECTED, teachers, [0, 1], start="naive")
    state, hyper = task.start()
    state[1, 0, 0] = math.nan
    task.start = lambda: (state.clone(), hyper)  # type: ignore[method-assign]
    result = run(task, "naive", "none")
    assert result.alive.tolist() == [True, False]
    assert torch.isnan(result.summary["test_accuracy"]).tolist() == [False, True]


def test_arms_have_the_same_students(teachers: Teachers) -> None:
    states = [build(PUBLISHED, teachers, [0, 1], start=start).start()[0] for start in ("none", "random", "learned")]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_without_distillation_only_labels_count(teachers: Teachers) -> None:
    task = build(PUBLISHED, teachers, [0], start="none")
    state, hyper = task.start()
    batches, _ = task.draw(0)
    gradient = Derivatives(task.problem, hyper).inner_gradient(task.optimizer.params(state), batches[0])
    leaf = task.optimizer.params(state)[0].clone().requires_grad_()
    plain = Plain(teachers[PUBLISHED][0])
    (expected,) = torch.autograd.grad(cross_entropy(plain.logits(leaf, plain.features), plain.labels), leaf)
    torch.testing.assert_close(gradient[0], expected, rtol=1e-11, atol=1e-14)


def test_predicted_steps_evaluate_no_hypergradient(teachers: Teachers) -> None:
    result = run(build(PUBLISHED, teachers, [0, 1], iterations=16, prediction=LINE), "line", "darts")
    assert result.summary["hypergradients"].tolist() == [8.0, 8.0]
    assert result.summary["gradients"].tolist() == pytest.approx([(8 * 5 + 8) / 16] * 2)
    assert result.trace[6]["predicted"].tolist() == pytest.approx([2 / 3] * 2)  # steps 4 and 5 of 3, 4, 5


def test_accuracies_are_also_looked_at_where_the_log_has_figures(
    teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bilevel.tasks.distillation_synthetic_published.LOGGED", (3, 4, 6, 9))
    result = run(build(PUBLISHED, teachers, [0, 1]), "optimized", "darts")
    found = {metric: values for metric, values in result.summary.items() if metric.startswith("test_accuracy_")}
    assert set(found) == {"test_accuracy_3", "test_accuracy_6"}  # every third of eight iterations is evaluated
    for step in (3, 6):
        assert torch.equal(found[f"test_accuracy_{step}"], result.trace[step]["test_accuracy"])


def test_the_slip_gives_the_temperature_another_line() -> None:
    """In predicted steps, and in these only, r₃ moves as with the gradient of r₂."""
    slipped = SlippedAdam(OuterAdam(0.1, betas=(0.5, 0.999)), LocallyLinear(length=2, every=2))
    plain = OuterAdam(0.1, betas=(0.5, 0.999))
    draws = torch.Generator().manual_seed(0)
    hyper = other = torch.zeros(2, 3, dtype=torch.float64)
    for step in range(9):
        gradient = torch.randn(2, 3, generator=draws, dtype=torch.float64)
        seen = gradient if step % 4 < 2 else torch.stack([gradient[:, 0], gradient[:, 1], gradient[:, 1]], 1)
        hyper, other = slipped.step(hyper, gradient), plain.step(other, seen)
        torch.testing.assert_close(hyper, other, rtol=0, atol=0)


def test_the_slip_is_made_in_predicted_steps_only(teachers: Teachers) -> None:
    def trace(**settings: Any) -> Mapping[int, Any]:
        task = build(PUBLISHED, teachers, [0, 1], iterations=6, evaluate_every=1, prediction=LINE, **settings)
        return run(task, "slip", "darts").trace

    own, slipped = trace(), trace(temperature_line="beta_student")
    assert torch.equal(own[4]["temperature"], slipped[4]["temperature"])
    assert (own[5]["temperature"] != slipped[5]["temperature"]).all()
    assert torch.equal(own[5]["beta_distillation"], slipped[5]["beta_distillation"])


def test_cells_differ_in_one_fact_each(teachers: Teachers) -> None:
    def losses(**settings: Any) -> tuple[Tensor, Tensor]:
        task = build(CORRECTED, teachers, [0, 1], **settings)
        state, hyper = task.start()
        batches, outer_batch = task.draw(0)
        derivatives, params = Derivatives(task.problem, hyper), task.optimizer.params(state)
        return derivatives.inner_loss(params, batches[0]), derivatives.outer_loss(params, outer_batch)

    base, leak = losses(), losses(tuned_on="test")
    flipped, both = losses(divergence="student_teacher"), losses(tuned_on="test", divergence="student_teacher")
    for same, other in ((base[0], leak[0]), (flipped[0], both[0]), (base[1], flipped[1]), (leak[1], both[1])):
        assert torch.equal(same, other)
    for one, other in ((base[0], flipped[0]), (base[1], leak[1])):
        assert (one != other).all()


@pytest.mark.parametrize(("name", "method", "settings"), [(PUBLISHED, "darts", {}), (CORRECTED, "truncated", {})])
def test_a_seed_gives_the_same_numbers_in_company(
    teachers: Teachers, name: str, method: str, settings: dict[str, Any]
) -> None:
    together = run(build(name, teachers, [0, 1, 2], prediction=LINE), "together", method, **settings)
    for seed in range(3):
        alone = run(build(name, teachers, [seed], prediction=LINE), "alone", method, **settings)
        for metric, values in alone.trace[8].items():
            torch.testing.assert_close(together.trace[8][metric][seed], values[0], rtol=1e-9, atol=1e-12)


def test_search_reports_the_best_trial_of_each_seed(teachers: Teachers) -> None:
    task = build(CORRECTED, teachers, [0, 1, 2], learning_rate=0.1, iterations=30, evaluate_every=15)
    found = run(task, "tpe", "tpe", trials=4)
    again = run(task, "tpe", "tpe", trials=4)
    assert torch.equal(found.summary["temperature"], again.summary["temperature"])
    assert found.summary["gradients"].tolist() == [4.0] * 3
    assert found.summary["hypergradients"].tolist() == [0.0] * 3
    ones = [run(task, "tpe", "tpe", trials=count).trace[30]["outer_loss"] for count in (1, 2, 3, 4)]
    for fewer, more in pairwise(ones):
        assert (more <= fewer).all()
    assert (ones[3] < ones[0]).any()
    # the same training with these metaparameters gives the same student
    best = [found.summary[name] for name in ("beta_distillation", "beta_student", "temperature")]
    hyper = torch.logit(torch.stack([best[0], best[1], best[2] / 10])).T
    optimizer, (state, _) = Adam(learning_rate=0.1), task.start()
    derivatives, (batches, outer_batch) = Derivatives(task.problem, hyper), task.draw(0)
    for _ in range(30):
        optimizer.advance_(derivatives, state, batches[0])
    loss = derivatives.outer_loss(optimizer.params(state), outer_batch)
    torch.testing.assert_close(found.trace[30]["outer_loss"], loss, rtol=1e-9, atol=0)
    alone = run(build(CORRECTED, teachers, [2], learning_rate=0.1, iterations=30), "alone", "tpe", trials=4)
    torch.testing.assert_close(alone.summary["temperature"][0], found.summary["temperature"][2], rtol=1e-9, atol=0)


def test_a_search_whose_trainings_all_diverge_is_marked(teachers: Teachers) -> None:
    task = build(CORRECTED, teachers, [0, 1], iterations=2)
    start = task.start

    def poisoned() -> tuple[Tensor, Tensor]:
        state, hyper = start()
        state[1, 0, 0] = math.nan
        return state, hyper

    task.start = poisoned  # type: ignore[method-assign]
    result = run(task, "tpe", "tpe", trials=2)
    assert result.alive.tolist() == [True, False]
    assert torch.isnan(result.summary["test_accuracy"]).tolist() == [False, True]


def test_points_of_seed_0(teachers: Teachers) -> None:
    task = build(PUBLISHED, teachers, [0, 1])
    state, hyper = task.start()
    rows = task.points(state, hyper)
    counts = {quantity: sum(row.quantity == quantity for row in rows) for quantity in {row.quantity for row in rows}}
    assert counts == {"train": 15, "test": 200, "decision_student": 42**2, "decision_teacher": 42**2}
    assert {row.seed for row in rows} == {0}
    plain = Plain(teachers[PUBLISHED][0])
    teacher = {(row.x, row.y): row.value for row in rows if row.quantity == "decision_teacher"}
    assert abs(teacher[1e-6, 3.0] - teacher[-1e-6, 3.0]) > 0.05  # the jump is between neighbors
    assert abs(teacher[-1e-6, -3.0] - teacher[1e-6, -3.0]) < 1e-4
    row = next(row for row in rows if row.quantity == "decision_student" and row.x != row.y)
    features = torch.tensor([[row.x, row.y, row.x * row.y]], dtype=torch.float64)
    expected = softmax(plain.logits(task.optimizer.params(state)[0], features), 1)[0, 1]
    assert row.value == pytest.approx(expected.item(), rel=1e-9)
    assert build(PUBLISHED, teachers, [1, 2]).points(*build(PUBLISHED, teachers, [1, 2]).start()) == []


# --- refusals


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (PUBLISHED, {"temperature_line": "beta_student"}, "no line without a prediction of gradients"),
        (PUBLISHED, {"temperature_line": "beta_student", "prediction": {**LINE, "of": "values"}}, "no line without"),
        (PUBLISHED, {"tuned_on": "validation"}, "tuned_on: unknown key"),
        (CORRECTED, {"temperature_line": "own"}, "temperature_line: unknown key"),
        (
            CORRECTED,
            {"prediction": {"length": 1, "every": 2}},
            r"prediction.length: .* equal to 2, got 1",
        ),
        (
            CORRECTED,
            {"prediction": {"length": 8, "every": 2}, "iterations": 8},
            "its 8 iterations are the whole run of 8",
        ),
        (CORRECTED, {"start": "zero"}, "start: .*'none', 'naive', 'random' or 'learned', got 'zero'"),
        (CORRECTED, {"divergence": "jeffreys"}, "divergence: .*'teacher_student' or 'student_teacher'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        task_class(name).read_settings(settings)


def test_teachers_that_do_not_fit_are_refused(teachers: Teachers) -> None:
    task = build(CORRECTED, teachers, [0])
    with pytest.raises(SettingsError, match=r"of the kind 'logistic', .* that of seed 0 has weight"):
        task.use_teachers([{"weight": torch.zeros(1)}])
    for other in (
        teachers[CORRECTED][0],
        trained("published", 0, steps=1, student_size=10, validation_size=20),
        Trained({**teachers[PUBLISHED][0].tensors, "test_labels": torch.ones(200, dtype=torch.int64)}, {}),
    ):
        with pytest.raises(SettingsError, match="draws: published and without sizes of its own"):
            build(PUBLISHED, {PUBLISHED: [other]}, [0])


@pytest.mark.parametrize(("method", "settings"), [("none", {}), ("tpe", {"trials": 1})])
def test_a_prediction_without_gradients_is_refused(teachers: Teachers, method: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="no gradients to predict"):
        run(build(CORRECTED, teachers, [0], prediction=LINE), method, method, **settings)


@pytest.mark.parametrize(("name", "method", "settings"), [(PUBLISHED, "darts", {}), (CORRECTED, "truncated", {})])
def test_metaparameters_at_infinity_are_not_to_be_moved(
    teachers: Teachers, name: str, method: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="r = −∞, and gradients cannot move it; give another start"):
        run(build(name, teachers, [0], start="none"), "none", method, **settings)


def test_a_search_is_random_in_its_first_trials_only(teachers: Teachers) -> None:
    task = build(CORRECTED, teachers, [0, 1], learning_rate=0.1, iterations=20)
    first, second, whole = (
        run(task, "tpe", "tpe", trials=6, random_trials=count).summary["temperature"] for count in (1, 2, 6)
    )
    assert not torch.equal(torch.stack([first, second]), torch.stack([whole, whole]))
    assert create_method(CORRECTED, "tpe", {}).random_trials < create_method(CORRECTED, "tpe", {}).trials  # type: ignore[attr-defined]


def test_trials_are_counted_from_one() -> None:
    with pytest.raises(SettingsError, match=r"trials: .* got 0"):
        TPE.create({"trials": 0})
