"""Rotated MNIST: who sees which images, losses, the published quirks, arms, retraining, what settings reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_images import blobs
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from bilevel.architecture import Choice, Mixture, centroid_divergence, contrastive, pairwise_divergence
from bilevel.data import Dataset
from bilevel.derivatives import Derivatives
from bilevel.hypergradients import Estimate
from bilevel.models.supernet import Discrete, Statistics, Supernet
from bilevel.parameters import functional
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.rotated_mnist import RotatedMnist
from bilevel.tasks.rotated_mnist.images import ANGLES, Batch, Domains, Stream
from bilevel.tasks.rotated_mnist.retraining import nominal_parameters

CPU = torch.device("cpu")
SMALL = {
    "channels": 1,
    "stem_channels": 4,
    "image_size": 14,
    "domain_size": 16,
    "test_size": 12,
    "epochs": 2,
    "retrain_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.1,
    "outer_learning_rate": 0.05,
}
TASKS = ("rotated_mnist_corrected", "rotated_mnist_published")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made", {"all": blobs(100, 0)})


def build(dataset: Dataset, task: str = TASKS[0], seeds: tuple[int, ...] = (0,), **settings: Any) -> RotatedMnist:
    cls = task_class(task)
    found = cls("study", cls.read_settings({**SMALL, **settings}), dataset, seeds, CPU)
    assert isinstance(found, RotatedMnist)
    return found


def run(task: RotatedMnist, method: str = "first_order", **settings: Any) -> Result:
    name = TASKS["Published" in type(task).__name__]
    return task.run(create_method(name, method, settings), "run")


# --- data


def prepared(dataset: Dataset, size: int) -> Tensor:
    """Every image in every rotation, (N, 4, size, size)."""
    pixels = ((next(iter(dataset.splits.values())).images.double() / 255 - 0.1307) / 0.3081).float()
    pixels = avg_pool2d(pixels, 2) if size == 14 else pixels
    turned = np.stack([np.rot90(pixels[:, 0].numpy(), angle // 90, (1, 2)) for angle in ANGLES], 1)
    return torch.from_numpy(turned.copy())


def places(images: Tensor, known: Tensor) -> list[int]:
    """Which of the known images (N, h, w) these are."""
    distances = (images.flatten(1).unsqueeze(1) - known.flatten(1)).abs().amax(-1)
    assert (distances.amin(1) < 1e-5).all()
    return distances.argmin(1).tolist()


@pytest.mark.parametrize("size", [14, 28])
def test_domains_are_rotations_of_different_images(dataset: Dataset, size: int) -> None:
    task = build(dataset, seeds=(0, 1), domains=4, image_size=size)
    known, seen = prepared(dataset, size), []
    for share in task.shares:
        ids = []
        for domain in range(4):
            for part in (share.train, share.validation):
                found = places(part.images[domain, :, 0], known[:, domain])
                assert part.labels[domain].tolist() == [place % 10 for place in found]
                assert len(found) == 8
                ids += found
        ids += places(share.test.images[:, 0], known[:, 0])
        assert len(ids) == len(set(ids)) == 4 * 16 + 12
        seen.append(ids)
    assert seen[0] != seen[1]


def test_subsets_of_the_published_run(dataset: Dataset) -> None:
    """As numpy draws them, whatever the number of domains; tests see none of them."""
    known = prepared(dataset, 14)
    tests = []
    for domains in (2, 3):
        share = build(dataset, TASKS[1], (13,), domains=domains).shares[0]
        for domain in range(domains):
            expected = np.random.RandomState(13 + domain).choice(100, 16, replace=False).tolist()
            found = [places(part.images[domain, :, 0], known[:, domain]) for part in (share.train, share.validation)]
            assert found[0] + found[1] == expected
        tests.append(places(share.test.images[:, 0], known[:, 0]))
        drawn = {place for d in range(4) for place in np.random.RandomState(13 + d).choice(100, 16, replace=False)}
        assert len(tests[-1]) == 12
        assert not drawn & set(tests[-1])
    assert tests[0] == tests[1]


@pytest.mark.parametrize("task", TASKS)
def test_official_test_set_stays_apart(task: str) -> None:
    official = Dataset("official", {"train": blobs(80, 0), "test": blobs(30, 1)})
    pool, held = prepared(official, 14), prepared(Dataset("held", {"all": blobs(30, 1)}), 14)
    whole, part = (build(official, task, test_size=size).shares[0] for size in (None, 12))
    assert sorted(places(whole.test.images[:, 0], held[:, 0])) == list(range(30))
    assert len(set(places(part.test.images[:, 0], held[:, 0]))) == 12
    places(part.train.images[0, :, 0], pool[:, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"domain_size": 26}, r"domain_size 26, four times, and test_size 12 do not fit made"),
        ({"test_size": 37}, "test_size 37 do not fit made"),
        ({"domain_size": 15}, "expected an even number, and batches of 4"),
        ({"batch_size": 9}, r"batches of 9 \(batch_size\) to fit one half"),
        ({"arm": "union", "beta_struct": 1.0}, "arm: a union is one domain"),
        ({"arm": "union", "beta_contr": 1.0}, "arm: a union is one domain"),
    ],
)
def test_settings_that_do_not_fit_are_refused(dataset: Dataset, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(dataset, **changed)
    with pytest.raises(SettingsError, match="a data set is needed"):
        RotatedMnist.check_data(RotatedMnist.read_settings({}), None, {})
    with pytest.raises(SettingsError, match="domains"):
        build(dataset, domains=5)
    with pytest.raises(SettingsError, match="has no method 'darts_unmoved'"):
        create_method(TASKS[0], "darts_unmoved", {})


def test_an_epoch_sees_every_image_once_and_domains_take_turns() -> None:
    images = torch.arange(3 * 9.0).view(3, 9, 1, 1, 1)
    source = Domains(images, torch.arange(27).view(3, 9))
    stream = Stream(source, 4, "study", "batches", 0)
    assert stream.per_epoch == 6  # the last image of an order is left out
    for epoch in range(2):
        drawn = [stream[epoch * 6 + place] for place in range(6)]
        assert [domain for *_, domain in drawn] == [0, 1, 2, 0, 1, 2]
        for found, labels, domain in drawn:
            assert torch.equal(found.flatten().long(), labels)
            assert set(labels.tolist()) <= set(range(9 * domain, 9 * domain + 9))
        assert len({label for _, labels, _ in drawn for label in labels.tolist()}) == 24
    assert not torch.equal(stream[0][1], stream[6][1])
    others = [stream.elsewhere(number) for number in range(40)]
    assert {domain for *_, domain in others} == {0, 1, 2}
    assert all(len(set(labels.tolist())) == 4 for _, labels, _ in others)


def test_arms_and_company_share_draws(dataset: Dataset) -> None:
    tasks = [
        build(dataset, seeds=(7,)),
        build(dataset, seeds=(7,), beta_struct=1.0),
        build(dataset, seeds=(3, 7)),
    ]
    for task in tasks:
        for ours, first in zip(task.start(), tasks[0].start(), strict=True):
            assert torch.equal(ours[-1], first[-1])
        batches, outer = task.draw(1)
        expected, expected_outer = tasks[0].draw(1)
        assert len(batches) == 2
        for index in range(2):
            assert all(
                torch.equal(*pair)
                for pair in zip((p[-1] for p in batches[index]), (p[-1] for p in expected[index]), strict=True)
            )
        assert all(
            torch.equal(*pair) for pair in zip((p[-1] for p in outer), (p[-1] for p in expected_outer), strict=True)
        )
    union = build(dataset, seeds=(7,), arm="union")
    assert torch.equal(union.shares[0].test.images, tasks[0].shares[0].test.images)
    assert torch.equal(
        union.layout.split(union.start()[0][0, 0])["entry"], tasks[0].layout.split(tasks[0].start()[0][0, 0])["entry"]
    )


# --- losses


def outputs(task: RotatedMnist, params: Tensor, hyper: Tensor, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
    """Logits and hidden representations of a batch, by the module itself."""
    network = Supernet(task.space, 2, 4, len(task.structure_names), torch.Generator()).to(params.dtype)
    domain = batch.domains[0, index]
    mixture = task.space.mixture(hyper.view(len(task.structure_names), -1)[domain])
    logits, hidden = torch.func.functional_call(
        network, task.layout.split(params), (batch.images[0, index], domain, mixture)
    )
    return logits, hidden.flatten(0, 1).t()


@pytest.mark.parametrize(("task", "divergence"), [(TASKS[0], pairwise_divergence), (TASKS[1], centroid_divergence)])
@pytest.mark.parametrize("betas", [(0.0, 0.0), (3.0, 0.0), (0.0, 0.7), (3.0, 0.7)])
def test_losses(dataset: Dataset, task: str, divergence: Any, betas: tuple[float, float]) -> None:
    """Written out, with their derivatives over weights and structures."""
    found = build(dataset, task, domains=3, beta_struct=betas[0], beta_contr=betas[1], margin=0.3)
    state, hyper = (part.double() for part in found.start())
    hyper = hyper + torch.randn(hyper.shape, generator=torch.Generator().manual_seed(0))
    params = found.optimizer.params(state)
    batches, outer = found.draw(1)
    inner = batches[0]._replace(images=batches[0].images.double())
    outer = outer._replace(images=outer.images.double())

    def entropy(batch: Batch, w: Tensor, h: Tensor, index: int) -> Tensor:
        return cross_entropy(outputs(found, w, h, batch, index)[0], batch.labels[0, index])

    def between(batch: Batch, w: Tensor, h: Tensor, a: int, b: int) -> Tensor:
        (_, left), (_, right) = (outputs(found, w, h, batch, index) for index in (a, b))
        return contrastive(left, batch.labels[0, a], right, batch.labels[0, b], 0.3)

    def one(batch: Batch, w: Tensor, h: Tensor) -> Tensor:
        return entropy(batch, w, h, 0) + (betas[1] * between(batch, w, h, 0, 1) if betas[1] else 0)

    def every(batch: Batch, w: Tensor, h: Tensor) -> Tensor:
        total = sum((entropy(batch, w, h, index) for index in range(3)), torch.zeros(())) / 3
        pairs = sum((between(batch, w, h, a, b) for a in range(3) for b in range(3)), torch.zeros(())) / 9
        return total + betas[1] * pairs

    def outer_loss(w: Tensor, h: Tensor) -> Tensor:
        loss = every(outer, w, h) if task == TASKS[0] else one(outer, w, h)
        return loss + betas[0] * divergence(found.space, h.view(3, -1))

    leaves = [params[0].clone().requires_grad_(), hyper[0].clone().requires_grad_()]
    derivatives = Derivatives(found.problem, hyper)
    (expected,) = torch.autograd.grad(one(inner, *leaves), leaves[:1])
    torch.testing.assert_close(derivatives.inner_gradient(params, inner)[0], expected, rtol=1e-9, atol=1e-11)
    loss = outer_loss(*leaves)
    ours = derivatives.outer_gradient(params, outer)
    torch.testing.assert_close(ours.loss[0], loss.detach(), rtol=1e-10, atol=0)
    for part, expected in zip((ours.params, ours.hyper), torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(part[0], expected, rtol=1e-9, atol=1e-11)
    assert inner.domains.shape == (1, 1 + (betas[1] > 0))
    assert outer.domains[0].tolist()[:1] == [0 if task == TASKS[0] else 1]


@pytest.mark.parametrize("task", TASKS)
def test_union_is_a_single_domain_of_all_images(dataset: Dataset, task: str) -> None:
    """One structure, one normalization; as many images and steps as the multimodel."""
    union, multimodel = build(dataset, task, arm="union", domains=3), build(dataset, task, domains=3)
    assert union.outer_steps == multimodel.outer_steps
    assert union.start()[1].shape == (1, union.space.size)
    assert multimodel.start()[1].shape == (1, 3 * union.space.size)
    union_parts, parts = ([sum(len(t.draw(s)[0]) for s in range(t.outer_steps))] for t in (union, multimodel))
    assert union_parts == parts == [3 * 2 * 2]
    share, seen = union.shares[0], set()
    for step in range(6 // union.group):  # an epoch
        batches, outer = union.draw(step)
        for batch in (batches[index] for index in range(len(batches))):
            assert not batch.domains.any()
            seen |= {image.numpy().tobytes() for image in batch.images[0, 0]}
        assert not outer.domains.any()
    assert seen == {image.numpy().tobytes() for image in share.train.images.flatten(0, 1)}
    # the same derivatives as those of one domain that has all of these images
    alone = build(dataset, task, domains=1)
    state, hyper = alone.start()
    batches, outer = union.draw(0)
    ours, theirs = (Derivatives(t.problem, hyper) for t in (union, alone))
    params = alone.optimizer.params(state)
    assert torch.equal(union.start()[0], state)
    assert torch.equal(ours.inner_gradient(params, batches[0]), theirs.inner_gradient(params, batches[0]))
    for part, other in zip(ours.outer_gradient(params, outer), theirs.outer_gradient(params, outer), strict=True):
        assert torch.equal(part, other)


# --- hypergradients


def wide(task: RotatedMnist, step: int) -> tuple[Any, ...]:
    """What a method takes, in double precision, away from the start, where nothing has moved yet."""
    state, hyper = (part.double() for part in task.start())
    for row, seed in zip(state, task.seeds, strict=True):
        row.add_(0.01 * torch.randn(row.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    state[..., -1, :] = 0
    state[..., -1, 0] = 4  # steps done
    batches, outer = task.draw(step)
    inner = [batch._replace(images=batch.images.double()) for batch in (batches[i] for i in range(len(batches)))]
    return task.problem, task.optimizer, state, hyper, inner, outer._replace(images=outer.images.double())


def estimated(task: RotatedMnist, method: str, given: tuple[Any, ...], **settings: Any) -> Estimate:
    name = TASKS["Published" in type(task).__name__]
    found: Estimate = create_method(name, method, settings)(*given)
    return found


def test_exact_one_step_is_the_limit_of_darts(dataset: Dataset) -> None:
    task = build(dataset)
    given = wide(task, 0)
    exact = estimated(task, "truncated", given, steps=1)
    close = estimated(task, "darts", given, epsilon=1e-5)
    first = estimated(task, "first_order", given)
    scale = float((exact.hypergradient - first.hypergradient).norm())
    assert scale > 0
    assert float((close.hypergradient - exact.hypergradient).norm()) < 1e-3 * scale
    # all steps, differentiated by autograd through the optimizer written out
    unrolled = estimated(task, "unrolled", given)
    problem, optimizer, state, hyper, batches, outer = given
    leaf = hyper[0].clone().requires_grad_()
    w, velocity = state[0, 0].clone().requires_grad_(), state[0, 1]
    for batch in batches:
        single = Batch(*(part[0] for part in batch))
        (gradient,) = torch.autograd.grad(problem.inner_loss(w, leaf, single), w, create_graph=True)
        gradient = gradient * (optimizer.norm / gradient.norm()).clamp(max=1)
        velocity = 0.9 * velocity + gradient
        rate = 0.001 + (0.1 - 0.001) * (1 + np.cos(np.pi / 2)) / 2  # in the second of two epochs of four steps
        w = w - rate * velocity
    loss = problem.outer_loss(w, leaf, Batch(*(part[0] for part in outer)))
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(unrolled.hypergradient[0], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("beta_contr", [0.0, 0.5])
def test_published_step_is_taken_at_unmoved_weights(dataset: Dataset, beta_contr: float) -> None:
    task = build(dataset, TASKS[1], beta_contr=beta_contr, beta_struct=2.0)
    given = wide(task, 1)
    problem, _, state, hyper, batches, outer = given
    found = estimated(task, "darts_unmoved", given)
    leaves = [state[0, 0].clone().requires_grad_(), hyper[0].clone().requires_grad_()]
    train, validation = (Batch(*(part[0] for part in batch)) for batch in (batches[0], outer))
    loss = problem.outer_loss(*leaves, validation)
    by_params, by_hyper = torch.autograd.grad(loss, leaves)
    length = 0.01 / by_params.norm()

    def slope(sign: int) -> Tensor:
        moved = leaves[0].detach() + sign * length * by_params
        (gradient,) = torch.autograd.grad(problem.inner_loss(moved, leaves[1], train), leaves[1])
        return gradient

    rate = 0.001 + (0.1 - 0.001) * (1 + np.cos(np.pi / 2)) / 2
    expected = by_hyper - rate * (slope(1) - slope(-1)) / (2 * length)
    torch.testing.assert_close(found.hypergradient[0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.outer_loss[0], loss.detach())
    plain = estimated(task, "none", given)
    assert torch.equal(found.state, plain.state)
    assert not torch.equal(found.state, state)


def test_published_step_needs_the_published_optimizer(dataset: Dataset) -> None:
    task = build(dataset, TASKS[1])
    problem, optimizer, state, hyper, batches, outer = wide(task, 0)
    with pytest.raises(ValueError, match=r"expected Clipped\(Momentum\), got Momentum"):
        estimated(task, "darts_unmoved", (problem, optimizer.optimizer, state, hyper, batches, outer))


# --- runs

FITS = {f"search_{metric}_{split}" for metric in ("loss", "accuracy") for split in ("train", "validation")}
COUNTS = {"parameters_nominal", "parameters", "edges", "edges_shared"}


@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_a_run(dataset: Dataset, task: str) -> None:
    result = run(build(dataset, task, domains=2, evaluate_every=2))
    tested = {f"{kind}_accuracy{of}" for kind in ("search", "retrained") for of in ("", "_0", "_180")}
    assert FITS | COUNTS | tested <= set(result.summary)
    steps = 4 if task == TASKS[0] else 8  # two epochs of two batches of each domain
    assert [step for step, found in result.trace.items() if "weight_skip_180" in found] == [0, steps]
    last = result.trace[steps]
    assert set(last) >= FITS
    for domain in ("0", "180"):
        weights = [
            last[f"weight_{operation}_{domain}"]
            for operation in (
                "max_pool_3",
                "avg_pool_3",
                "skip",
                "sep_conv_3",
                "sep_conv_5",
                "dil_conv_3",
                "dil_conv_5",
            )
        ]
        torch.testing.assert_close(torch.stack(weights).sum(0), torch.ones(1, dtype=torch.float64))
    for name in FITS:
        torch.testing.assert_close(last[name], result.summary[name])
    for kind in ("search", "retrained"):
        mean = (result.summary[f"{kind}_accuracy_0"] + result.summary[f"{kind}_accuracy_180"]) / 2
        torch.testing.assert_close(result.summary[f"{kind}_accuracy"], mean)
        assert (
            (12 * result.summary[f"{kind}_accuracy_0"]).round().div(12).allclose(result.summary[f"{kind}_accuracy_0"])
        )


def final(task: RotatedMnist, method: str = "first_order") -> tuple[Tensor, Tensor, Result]:
    """State and hyperparameters at the end of a run."""
    seen: list[tuple[Tensor, Tensor]] = []
    summarize = task.summarize

    def watched(state: Tensor, hyper: Tensor, trace: Any) -> dict[str, Tensor]:
        seen.append((state.clone(), hyper.clone()))
        return summarize(state, hyper, trace)

    task.summarize = watched  # type: ignore[method-assign]
    result = run(task, method)
    return *seen[0], result


def test_structures_and_counts_are_those_of_the_last_hyperparameters(dataset: Dataset) -> None:
    task = build(dataset, domains=3)
    _, hyper, result = final(task)
    genotypes = [task.space.discretize(structure) for structure in hyper.view(3, -1)]
    chosen = [[row for row in result.structures if row.domain == name and row.chosen] for name in ("0", "180", "90")]
    for rows, genotype in zip(chosen, genotypes, strict=True):
        assert tuple(Choice(row.source, row.target, row.operation) for row in rows) == genotype
        assert len(genotype) == 8
    mixture = task.space.mixture(hyper.view(3, -1))
    weights = torch.tensor([row.weight for row in result.structures])
    expected = mixture.operations * mixture.inputs.unsqueeze(-1)
    torch.testing.assert_close(weights, expected.flatten(), rtol=1e-6, atol=0)
    union, common = set().union(*genotypes), set(genotypes[0]).intersection(*genotypes[1:])
    assert result.summary["edges"].item() == len(union)
    assert result.summary["edges_shared"].item() == len(common)
    assert result.summary["parameters_nominal"].item() == nominal_parameters(genotypes)
    layout, _ = functional(Discrete(task.space, genotypes, 2, 4, torch.Generator()))
    assert result.summary["parameters"].item() == layout.size


def test_nominal_parameters_of_the_slide() -> None:
    first = (Choice(0, 2, "sep_conv_3"), Choice(1, 2, "dil_conv_3"), Choice(0, 3, "max_pool_3"))
    second = (Choice(0, 2, "sep_conv_3"), Choice(1, 2, "dil_conv_5"), Choice(0, 3, "sep_conv_5"), Choice(1, 3, "skip"))
    assert nominal_parameters([first]) == 800 + 400
    assert nominal_parameters([first, second]) == 800 + 400 + 656 + 1312


def test_accuracy_is_that_of_the_module(dataset: Dataset) -> None:
    """With statistics of the training images of the domain, each test image by itself."""
    for arm, domains in (("multimodel", 2), ("union", 2)):
        task = build(dataset, domains=domains, arm=arm)
        state, hyper, result = final(task)
        share, models = task.shares[0], len(task.structure_names)
        network = Supernet(task.space, 2, 4, models, torch.Generator())
        weights = task.layout.split(task.optimizer.params(state)[0])
        for domain, angle in enumerate((0, 180)):
            model = domain if arm == "multimodel" else 0
            train = share.train.images[domain] if arm == "multimodel" else share.train.images.flatten(0, 1)
            mixture = Mixture(*task.space.mixture(hyper.view(models, -1)[model]))
            statistics, where = Statistics(), torch.tensor(model)
            torch.func.functional_call(network, weights, (train, where, mixture, statistics.collect))
            right = 0
            for image, label in zip(
                torch.rot90(share.test.images, angle // 90, (-2, -1)), share.test.labels, strict=True
            ):
                given = (image.unsqueeze(0), where, mixture, statistics.fixed())
                logits, _ = torch.func.functional_call(network, weights, given)
                right += int(logits.argmax() == label)
            assert result.summary[f"search_accuracy_{angle}"].item() == pytest.approx(right / 12)


def test_nothing_is_tuned_on_test_images(dataset: Dataset) -> None:
    """They are replaced: the same weights and structures, to the bit, and the same losses."""
    task = build(dataset)
    state, hyper, result = final(task)
    other = build(dataset)
    other.shares[0] = other.shares[0]._replace(
        test=other.shares[0].test._replace(images=torch.zeros_like(other.shares[0].test.images))
    )
    again, structures, changed = final(other)
    assert torch.equal(again, state)
    assert torch.equal(structures, hyper)
    for name in FITS | COUNTS:
        assert torch.equal(changed.summary[name], result.summary[name])


def test_a_run_can_be_repeated(dataset: Dataset) -> None:
    for name in TASKS:
        first, second = (run(build(dataset, name, epochs=1, beta_contr=0.1)) for _ in range(2))
        assert all(torch.equal(first.summary[metric], second.summary[metric]) for metric in first.summary)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("settings", [{"beta_contr": 0.1, "beta_struct": 1.0}, {"arm": "union"}])
def test_a_step_of_a_seed_is_the_same_alone_as_in_company(
    dataset: Dataset, task: str, settings: dict[str, Any]
) -> None:
    """In double precision, to rounding; in single precision differences in rounding grow from step to step."""
    both = build(dataset, task, seeds=(0, 1), **settings)
    together = estimated(both, "first_order", wide(both, 1))
    for index, seed in enumerate((0, 1)):
        single = build(dataset, task, seeds=(seed,), **settings)
        alone = estimated(single, "first_order", wide(single, 1))
        torch.testing.assert_close(together.state[index], alone.state[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together.hypergradient[index], alone.hypergradient[0], rtol=1e-9, atol=1e-12)


def test_a_seed_gives_the_same_alone_as_in_company(dataset: Dataset) -> None:
    state, hyper, together = final(build(dataset, seeds=(0, 1)))
    for index, seed in enumerate((0, 1)):
        alone_state, alone_hyper, alone = final(build(dataset, seeds=(seed,)))
        torch.testing.assert_close(state[index], alone_state[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(hyper[index], alone_hyper[0], rtol=1e-3, atol=1e-3)
        for name in COUNTS | {"search_loss_validation"}:
            torch.testing.assert_close(together.summary[name][index], alone.summary[name][0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("none", {}),
        ("first_order", {}),
        ("darts", {}),
        ("truncated", {"steps": 1}),
        ("unrolled", {}),
        ("aggregated", {"gamma": 0.9}),
        ("darts_unmoved", {}),
    ],
)
def test_every_method_runs(dataset: Dataset, task: str, method: str, settings: dict[str, Any]) -> None:
    if task == TASKS[0] and method == "darts_unmoved":
        return
    found = build(dataset, task, epochs=1, retrain_epochs=1, beta_contr=0.1, beta_struct=1.0)
    first = found.start()[1]
    _, hyper, result = final(found, method) if not settings else (None, None, run(found, method, **settings))
    assert result.alive.all()
    if hyper is not None:
        assert torch.equal(hyper, first) is (method == "none")


def test_single_domain_without_another(dataset: Dataset) -> None:
    result = run(build(dataset, domains=1))
    assert result.alive.all()
    assert torch.equal(result.summary["edges"], result.summary["edges_shared"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "changed",
    [
        {"arm": "union"},
        {"domains": 3},
        {"beta_struct": 1.0},
        {"beta_contr": 0.1},
        {"channels": 2},
        {"stem_channels": 6},
        {"image_size": 28},
        {"domain_size": 20},
        {"epochs": 3},
        {"batch_size": 8},
        {"learning_rate": 0.05},
        {"last_learning_rate": 0.05},
        {"momentum": 0.5},
        {"clip": 0.1},
        {"outer_learning_rate": 0.01},
    ],
)
def test_settings_reach_the_search(
    dataset: Dataset, searched: dict[str, Tensor], task: str, changed: dict[str, Any]
) -> None:
    found = final(build(dataset, task, retrain_epochs=1, **changed))[2].summary
    assert not torch.equal(found["search_loss_train"], searched[task])


@pytest.fixture(scope="module")
def searched(dataset: Dataset) -> dict[str, Tensor]:
    """The loss of a run with the settings of this file."""
    return {task: run(build(dataset, task, retrain_epochs=1)).summary["search_loss_train"] for task in TASKS}


def test_margin_reaches_the_search(dataset: Dataset) -> None:
    losses = [
        run(build(dataset, beta_contr=0.1, margin=margin, retrain_epochs=1)).summary["search_loss_train"]
        for margin in (0.0, 5.0)
    ]
    assert not torch.equal(*losses)


def test_retraining_learns_and_takes_its_epochs(dataset: Dataset) -> None:
    """Bars in blobs are easily told apart, by networks that train on both halves."""
    settings = {"epochs": 1, "channels": 2, "test_size": 30, "domain_size": 16}
    short, long = (run(build(dataset, **settings, retrain_epochs=epochs)) for epochs in (1, 15))
    assert torch.equal(short.summary["search_loss_train"], long.summary["search_loss_train"])
    assert long.summary["retrained_accuracy"].item() > 0.5
    assert long.summary["retrained_accuracy"].item() > short.summary["retrained_accuracy"].item()


@pytest.mark.parametrize("beta", ["beta_struct", "beta_contr"])
def test_a_single_domain_has_no_regularizer(beta: str) -> None:
    cls = task_class("rotated_mnist_corrected")
    with pytest.raises(SettingsError, match="domains: a single domain"):
        cls.check_data(cls.read_settings({"domains": 1, beta: 0.1}), "mnist_5k", {"all": 5000})
