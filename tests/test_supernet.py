"""The supernet and its discrete network: against torch.nn.functional edge by edge, normalization, domains, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, cross_entropy, linear, max_pool2d, relu

from bilevel.architecture import Choice, Genotype, Mixture, Space
from bilevel.derivatives import Derivatives
from bilevel.models import supernet
from bilevel.models.supernet import Discrete, Statistics, Supernet
from bilevel.parameters import functional
from bilevel.problem import Problem
from bilevel.tracing import traced

CHANNELS, STEM = 4, 6
SPACE = supernet.space(nodes=3)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=draws(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> Supernet:
    """In double precision, with factors and offsets of the stem that tell domains apart."""
    found = Supernet(SPACE, CHANNELS, STEM, 2, draws(0)).double()
    with torch.no_grad():
        found.stem_factor.add_(normal((2, STEM), 1) / 5)
        found.stem_offset.add_(normal((2, STEM), 2) / 5)
    return found


def mixture(seed: int) -> Mixture:
    return SPACE.mixture(normal((SPACE.size,), seed))


# --- the plain network, edge by edge

Parameters = dict[str, Tensor]


def by_batch(values: Tensor) -> Tensor:
    return batch_norm(values, None, None, training=True)


def plain_operation(name: str, p: Parameters, edge: int, values: Tensor, stride: int) -> Tensor:
    """One operation of edge number `edge` among those that leave its source."""
    channels = values.shape[1]
    if name == "max_pool_3":
        return by_batch(max_pool2d(values, 3, stride, 1))
    if name == "avg_pool_3":
        return by_batch(avg_pool2d(values, 3, stride, 1, count_include_pad=False))
    if name == "skip":
        if stride == 1:
            return values
        even, odd = p["reduction"][:, edge, ..., None, None]
        values = relu(values)
        return by_batch(torch.cat([conv2d(values, even, stride=2), conv2d(values[:, :, 1:, 1:], odd, stride=2)], dim=1))
    size, dilated = int(name[-1]), int(name.startswith("dil"))
    kernels = p["small" if size == 3 else "large"][:, dilated, edge].unsqueeze(1)
    reach = (size // 2) * (1 + dilated)
    values = conv2d(relu(values), kernels, None, stride, reach, 1 + dilated, channels)
    values = by_batch(conv2d(values, p["first"][dilated, edge, size // 2 - 1][..., None, None]))
    if dilated:
        return values
    kernels = p["small_again" if size == 3 else "large_again"][edge]
    values = conv2d(relu(values), kernels, None, 1, size // 2, 1, channels)
    return by_batch(conv2d(values, p["second"][size // 2 - 1, edge][..., None, None]))


def of_source(p: Parameters, source: int) -> Parameters:
    """Weights of the edges that leave a node, without the axis of nodes."""
    prefix = f"leaving.{max(source - 1, 0)}."
    own = {name.removeprefix(prefix): part for name, part in p.items() if name.startswith(prefix)}
    source = source if source < 2 else 0
    found = {name: own[name][:, source] for name in ("small", "large")}
    found["first"] = own["first"][source]
    if "reduction" in own:
        found["reduction"] = own["reduction"][:, source]
    targets = own["first"].shape[2]
    edges = slice(source * targets, (source + 1) * targets)
    for name in ("small_again", "large_again"):
        found[name] = own[name].view(-1, CHANNELS, *own[name].shape[1:])[edges]
    found["second"] = own["second"][:, edges]
    return found


def plain_forward(p: Parameters, images: Tensor, domain: int, mixed: Mixture) -> tuple[Tensor, Tensor]:
    """Logits, and the cell's output (B, C, h, w)."""
    stem = by_batch(conv2d(images, p["stem"].view(-1, 1, 3, 3), padding=1))
    stem = stem * p["stem_factor"][domain].view(-1, 1, 1) + p["stem_offset"][domain].view(-1, 1, 1)
    entries = p["entry"].view(CHANNELS, 2, STEM, 1, 1).unbind(1)
    nodes = [by_batch(conv2d(relu(stem), weight)) for weight in entries]
    for target in range(2, 2 + SPACE.nodes):
        total = torch.zeros(())
        for number, edge in enumerate(SPACE.edges):
            if edge.target == target:
                place, own = target - max(edge.source + 1, 2), of_source(p, edge.source)
                for kind, name in enumerate(SPACE.operations):
                    found = plain_operation(name, own, place, nodes[edge.source], 2 if edge.source < 2 else 1)
                    total = total + mixed.inputs[number] * mixed.operations[number, kind] * found
        nodes.append(total)
    hidden = torch.cat(nodes[2:], 1)
    return linear(hidden.mean((2, 3)), p["head"], p["head_offset"]), hidden


@pytest.mark.parametrize("size", [14, 12])
def test_supernet_is_the_plain_network_with_its_derivatives(network: Supernet, size: int) -> None:
    """Outputs, gradients over weights and structure, and a second derivative."""
    layout, forward = functional(network)
    params = layout.join(dict(network.named_parameters())).detach()
    structure, images = normal((SPACE.size,), 3), normal((5, 1, size, size), 4)
    labels, vector = torch.tensor([0, 3, 9, 3, 1]), normal((layout.size,), 5)

    def derivatives_of(outputs: Any) -> list[Tensor]:
        leaves = [params.clone().requires_grad_(), structure.clone().requires_grad_()]
        logits, hidden = outputs(*leaves)
        loss = cross_entropy(logits, labels) + hidden.square().mean()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(first[0] @ vector, leaves)
        return [logits, hidden, *first, *second]

    def ours(p: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = forward(p, images, torch.tensor(1), SPACE.mixture(s))
        return logits, hidden.view(SPACE.nodes * CHANNELS, size // 2, size // 2, -1).permute(3, 0, 1, 2)

    def plain(p: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return plain_forward(layout.split(p), images, 1, SPACE.mixture(s))

    for found, expected in zip(derivatives_of(ours), derivatives_of(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


def test_seeds_are_batched_and_derivatives_recorded(network: Supernet) -> None:
    """Domains are data: one function, and one recording, for seeds whose batches are of different domains."""
    layout, forward = functional(network)
    params = layout.join(dict(network.named_parameters())).detach()
    several = torch.stack([params, params + 0.1 * normal((layout.size,), 6)])
    hyper, images = normal((2, 2 * SPACE.size), 7), normal((2, 4, 1, 8, 8), 8)
    batch = (images, torch.tensor([[0, 1, 2, 3], [4, 4, 5, 6]]), torch.tensor([1, 0]))

    def loss(w: Tensor, h: Tensor, one: Any) -> Tensor:
        structure = h.view(2, -1).index_select(0, one[2].view(1))[0]
        return cross_entropy(forward(w, one[0], one[2], SPACE.mixture(structure))[0], one[1])

    problem = Problem(loss, loss)
    found = Derivatives(problem, hyper).outer_gradient(several, batch)
    recorded = Derivatives(traced(problem), hyper)
    for again in (recorded.outer_gradient(several, batch), recorded.outer_gradient(several, batch)):
        for part, expected in zip(again, found, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-12)
    for seed in range(2):
        alone = Derivatives(problem, hyper[[seed]]).outer_gradient(
            several[[seed]], tuple(part[[seed]] for part in batch)
        )
        for part, expected in zip(alone, found, strict=True):
            torch.testing.assert_close(part[0], expected[seed], rtol=1e-10, atol=1e-12)
        assert not found.hyper[seed].view(2, -1)[1 - int(batch[2][seed])].any()  # the other domain's structure


def test_a_batch_is_normalized_by_its_own_domain_alone(network: Supernet) -> None:
    """The stem's factors of another domain have no part in it."""
    images, mixed = normal((4, 1, 8, 8), 9), mixture(10)
    logits, _ = network(images, torch.tensor(0), mixed)
    gradients = torch.autograd.grad(logits.sum(), [network.stem_factor, network.stem_offset])
    for gradient in gradients:
        assert gradient[0].any()
        assert not gradient[1].any()
    other, _ = network(images, torch.tensor(1), mixed)
    assert not torch.allclose(logits, other)


@pytest.mark.parametrize("kind", ["supernet", "discrete"])
def test_fixed_statistics(network: Supernet, kind: str) -> None:
    """On the images they are of, the same as of the batch; other images do not change what one of them gives."""
    train, others = normal((12, 1, 8, 8), 11), normal((5, 1, 8, 8), 12)

    def outputs(images: Tensor, normalize: Any) -> Tensor:
        if kind == "supernet":
            found: Tensor = network(images, torch.tensor(0), mixture(13), normalize)[0]
        else:
            found = discrete()(images, 1, normalize)
        return found

    with torch.no_grad():
        statistics = Statistics()
        collected = outputs(train, statistics.collect)
        torch.testing.assert_close(outputs(train, supernet.by_batch), collected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(outputs(train, statistics.fixed()), collected, rtol=1e-10, atol=1e-10)
        together = outputs(others, statistics.fixed())
        alone = torch.cat([outputs(image.unsqueeze(0), statistics.fixed()) for image in others])
        torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a space of 2 inputs"):
        Supernet(Space(2, 2, ("skip", "max_pool_3"), 2, True), 4, 4, 1, draws(0))
    with pytest.raises(ValueError, match="expected an even number, got 5"):
        Supernet(SPACE, 5, 4, 1, draws(0))
    with pytest.raises(ValueError, match="expected an even number, got 3"):
        Discrete(SPACE, GENOTYPES, 3, 4, draws(0))


# --- the discrete network

GENOTYPES: list[Genotype] = [
    (
        Choice(0, 2, "sep_conv_5"),
        Choice(1, 2, "skip"),
        Choice(0, 3, "max_pool_3"),
        Choice(2, 3, "dil_conv_3"),
        Choice(2, 4, "skip"),
        Choice(3, 4, "avg_pool_3"),
    ),
    (
        Choice(0, 2, "sep_conv_3"),
        Choice(1, 2, "skip"),
        Choice(1, 3, "dil_conv_5"),
        Choice(2, 3, "dil_conv_3"),
        Choice(2, 4, "skip"),
        Choice(3, 4, "sep_conv_3"),
    ),
]


def discrete(genotypes: list[Genotype] | None = None) -> Discrete:
    return Discrete(SPACE, genotypes or GENOTYPES, CHANNELS, STEM, draws(20)).double()


def one_hot(genotype: Genotype) -> Mixture:
    """Weight 1 for what was chosen."""
    operations, inputs = torch.zeros(len(SPACE.edges), len(SPACE.operations)).double(), torch.zeros(len(SPACE.edges))
    for source, target, operation in genotype:
        edge = [*map(tuple, SPACE.edges)].index((source, target))
        operations[edge, SPACE.operations.index(operation)] = inputs[edge] = 1
    return Mixture(operations, inputs.double())


def take_weights(to: Discrete, of: Supernet) -> None:
    """Convolutions of the supernet for those of the discrete network."""
    for name in ("stem", "head", "head_offset"):
        getattr(to, name).copy_(getattr(of, name))
    to.entry.copy_(of.entry.view(CHANNELS, 2, STEM).transpose(0, 1).flatten(0, 1))
    for name, operation in to.operations.items():
        source, target, kind = int(name[0]), int(name[2]), name[4:]
        own: Any = of_source(dict(of.named_parameters()), source)
        edge, small, dilated = target - max(source + 1, 2), kind.endswith("3"), int(kind.startswith("dil"))
        if kind == "skip" and source < 2:
            operation.weight.copy_(own["reduction"][:, edge])
        elif "conv" in kind:
            first = own["small" if small else "large"][:, dilated, edge]
            kernels = [first.unsqueeze(1), own["small_again" if small else "large_again"][edge]]
            weights = [own["first"][dilated, edge, int(not small)], own["second"][int(not small), edge]]
            for index in range(2 - dilated):
                operation.by_channel[index].copy_(kernels[index])
                operation.by_place[index].copy_(weights[index])


def test_discrete_network_is_the_supernet_with_one_hot_mixtures() -> None:
    """With the supernet's convolutions and no factors of normalization yet, in every domain."""
    network, ours = Supernet(SPACE, CHANNELS, STEM, 2, draws(0)).double(), discrete()
    with torch.no_grad():
        take_weights(ours, network)
        for domain, genotype in enumerate(GENOTYPES):
            images = normal((6, 1, 12, 12), 21 + domain)
            expected, _ = network(images, torch.tensor(domain), one_hot(genotype))
            torch.testing.assert_close(ours(images, domain), expected, rtol=1e-10, atol=1e-10)


def test_what_is_common_is_there_once() -> None:
    """Counted by hand: convolutions once for both domains, factors and offsets for each domain that uses them."""
    layout, _ = functional(discrete())
    affine = 2 * CHANNELS
    separable = {size: 2 * (size**2 * CHANNELS + CHANNELS**2) for size in (3, 5)}
    dilated = {size: size**2 * CHANNELS + CHANNELS**2 for size in (3, 5)}
    expected = (
        9 * STEM
        + 2 * 2 * STEM  # the stem, its factors and offsets
        + 2 * CHANNELS * STEM
        + 2 * 2 * affine  # two inputs of two domains
        + separable[5]
        + 2 * affine  # 0 to 2, the first domain's
        + separable[3]
        + 2 * affine  # the second's
        + CHANNELS**2
        + 2 * affine  # the reduction of both
        + affine  # the maximum
        + dilated[5]
        + affine
        + dilated[3]
        + 2 * affine
        + affine  # the mean
        + separable[3]
        + 2 * affine  # 3 to 4
        + 10 * 3 * CHANNELS
        + 10
    )
    assert layout.size == expected


def test_domains_share_weights_and_nothing_else() -> None:
    network = discrete()
    logits = network(normal((4, 1, 8, 8), 30), 0)
    gradients = dict(
        zip(
            dict(network.named_parameters()),
            torch.autograd.grad(logits.sum(), [*network.parameters()], allow_unused=True, materialize_grads=True),
            strict=True,
        )
    )
    for name, gradient in gradients.items():
        if name.startswith(("operations.0_2_sep_conv_3", "operations.1_3_dil_conv_5", "operations.3_4_sep_conv_3")):
            assert not gradient.any(), name
        elif name.endswith("offset") and name != "head_offset":  # sums over a normalized channel do not vanish
            assert not gradient[1:].any(), name
    assert gradients["operations.2_3_dil_conv_3.by_place.0"].any()
    assert gradients["stem_normalized.factor"][0].any()


def test_same_generator_same_weights() -> None:
    for one, other in (
        (discrete(), discrete()),
        (Supernet(SPACE, 4, 6, 1, draws(1)), Supernet(SPACE, 4, 6, 1, draws(1))),
    ):
        assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    for name, part in Supernet(SPACE, CHANNELS, STEM, 2, draws(2)).named_parameters():
        fan_in = {"stem": 9, "entry": STEM, "head": 3 * CHANNELS, "leaving.0.large": 25, "leaving.1.first": CHANNELS}
        if name in fan_in:
            assert part.abs().max() <= fan_in[name] ** -0.5
            assert part.abs().max() > 0.8 * fan_in[name] ** -0.5
