"""The supernet of deck 003's vision experiment, and the discrete network that is made of what was chosen.

A 3×3 convolution with normalization (the stem), one reduction cell, the mean over places, a linear layer. The cell has
two inputs, both 1×1 convolutions of the stem; edges that leave them halve the image. Its output is all of its nodes
together. The operations are those of DARTS (Liu, Simonyan and Yang 2019): 3×3 maximum and mean, each normalized; skip,
which between an input and a node is a factorized reduction (Zoph et al. 2018); separable convolutions, that is ReLU, a
convolution of each channel, a 1×1 convolution, normalization, twice; and the same once with dilation 2.

Weights are common to all domains. Normalization takes the mean and the variance of the batch it sees, which is one
domain's; in the stem, and everywhere in the discrete network, it has a factor and an offset for each domain.

The supernet computes all edges that leave a node together, and those of both inputs at once. Values are laid out as
(channel, place, image). What does not depend on the edge is computed once: maximum, mean and skip, ReLU, and the 5×5
surroundings of all places, without and with dilation, which serve the first convolutions of all kinds (a 3×3 kernel is
a 5×5 one with zeros around it). These convolutions are then one batched matrix product, as are the 1×1 convolutions
after them, and the mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, linear, max_pool2d, pad, relu, unfold

from bilevel.architecture import Choice, Genotype, Mixture, Space

OPERATIONS = ("max_pool_3", "avg_pool_3", "skip", "sep_conv_3", "sep_conv_5", "dil_conv_3", "dil_conv_5")
INPUTS, CLASSES = 2, 10
MAXIMUM, MEAN, SKIP, SEPARABLE, DILATED = 0, 1, 2, slice(3, 5), slice(5, 7)
"""Places in OPERATIONS."""


class Normalize(Protocol):
    """What normalizes the channels of values (N, C, …), and gives each a factor and an offset (C,)."""

    def __call__(self, values: Tensor, factor: Tensor | None = None, offset: Tensor | None = None, /) -> Tensor:
        """The same shape; without factor and offset with mean 0 and variance 1."""


def space(nodes: int = 4) -> Space:
    """Cells of deck 003: two inputs, seven operations, a switch that keeps two inputs of each node."""
    return Space(inputs=INPUTS, nodes=nodes, operations=OPERATIONS, kept=2, switch=True)


def by_batch(values: Tensor, factor: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Normalized by mean and variance of the batch itself; 1e-5 is added to the variance."""
    return batch_norm(values, None, None, factor, offset, training=True)


class Statistics:
    """Means and variances of one pass through a network, for other passes to be normalized by.

    `collect` normalizes as `by_batch` does and remembers; what `fixed` returns normalizes another pass by them.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, Tensor]] = []

    def collect(self, values: Tensor, factor: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        """Normalized by the batch itself."""
        over = [axis for axis in range(values.dim()) if axis != 1]
        variance, mean = torch.var_mean(values, over, correction=0)
        self._found.append((mean, variance))
        return by_batch(values, factor, offset)

    def fixed(self) -> Normalize:
        """A `Normalize` for one more pass through the same network."""
        waiting = iter(self._found)

        def normalize(values: Tensor, factor: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
            return batch_norm(values, *next(waiting), factor, offset, training=False)

        return normalize


class Supernet(nn.Module):
    """All operations on all edges, mixed: (images, domain, mixture) -> (logits, hidden).

    space: of OPERATIONS, with two inputs. channels: C of a node. stem_channels: of the stem. domains: how many factors
    and offsets the stem has. generator: first weights, uniform within 1/√fan_in (torch's default) in this order.

    Raises ValueError for another space, or an odd number of channels.
    """

    def __init__(
        self, space: Space, channels: int, stem_channels: int, domains: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        if space.inputs != INPUTS or space.operations != OPERATIONS:
            raise ValueError(f"expected a space of {INPUTS} inputs with the operations {OPERATIONS}, got {space}")
        _check_channels(channels)
        self.channels, self.nodes = channels, space.nodes
        self.stem = nn.Parameter(_uniform((stem_channels, 9), 9, generator))
        self.stem_factor = nn.Parameter(torch.ones(domains, stem_channels))
        self.stem_offset = nn.Parameter(torch.zeros(domains, stem_channels))
        self.entry = nn.Parameter(_uniform((channels * INPUTS, stem_channels), stem_channels, generator))
        sources = [range(INPUTS), *((node,) for node in range(INPUTS, INPUTS + space.nodes - 1))]
        order = sorted(range(len(space.edges)), key=lambda number: space.edges[number])
        self._by_source = torch.tensor(order)
        self.leaving = nn.ModuleList(
            Leaving(channels, len(together), INPUTS + space.nodes - max(together[-1] + 1, INPUTS), generator)
            for together in sources
        )
        features = space.nodes * channels
        self.head = nn.Parameter(_uniform((CLASSES, features), features, generator))
        self.head_offset = nn.Parameter(_uniform((CLASSES,), features, generator))

    def forward(
        self, images: Tensor, domain: Tensor, mixture: Mixture, normalize: Normalize = by_batch
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 10) and the cell's output (nodes · channels, places, B) of images (B, 1, h, w) of one domain.

        domain: its number, a tensor (). mixture: the weights of its cell, operations (E, O) and inputs (E,). h and w
        are even.
        """
        count, height, width = len(images), images.shape[2], images.shape[3]
        weights = (mixture.operations * mixture.inputs.unsqueeze(-1))[self._by_source]
        of_sources = torch.split(weights, [leaving.sources * leaving.targets for leaving in self._parts()])
        factor, offset = (part.index_select(0, domain.view(1))[0] for part in (self.stem_factor, self.stem_offset))
        values = _rows(normalize, _stem(self.stem, images), factor, offset)
        values = _rows(normalize, torch.mm(self.entry, relu(values)))
        values = values.view(self.channels * INPUTS, height * width, count)
        nodes, sums = list[Tensor](), list[Tensor]()  # those that are known, and of the others what has come in
        for step, (leaving, own) in enumerate(zip(self._parts(), of_sources, strict=True)):
            size = (height, width) if step == 0 else (height // 2, width // 2)
            parts = leaving(values, size, own, normalize)
            values, *sums = [node + part for node, part in zip(sums, parts, strict=True)] if sums else parts
            nodes.append(values)
        hidden = torch.cat(nodes)
        logits = linear(hidden.mean(1).t(), self.head, self.head_offset)
        return logits, hidden

    def _parts(self) -> list[Leaving]:
        return [part for part in self.leaving if isinstance(part, Leaving)]


class Leaving(nn.Module):
    """All edges that leave S nodes, both inputs or one node, to the same n targets: (values (C · S, places, B), weights
    (S · n, O)) -> what they add to each target.

    Axes of the weights: `small` and `large` (C, S, plain or dilated, n, row, column) and `first` (S, plain or dilated,
    n, kernel size, out, in) are the first convolutions, by channel and 1×1; `small_again`, `large_again` (S · n · C, 1,
    row, column) and `second` (kernel size, S · n, out, in) the second ones of separable convolutions; `reduction` (even
    or odd places, S, n, out, in).
    """

    def __init__(self, channels: int, sources: int, targets: int, generator: torch.Generator) -> None:
        super().__init__()
        self.channels, self.sources, self.targets = channels, sources, targets
        self.stride = 2 if sources == INPUTS else 1
        edges = sources * targets
        self.small = nn.Parameter(_uniform((channels, sources, 2, targets, 3, 3), 9, generator))
        self.large = nn.Parameter(_uniform((channels, sources, 2, targets, 5, 5), 25, generator))
        self.first = nn.Parameter(_uniform((sources, 2, targets, 2, channels, channels), channels, generator))
        self.small_again = nn.Parameter(_uniform((edges * channels, 1, 3, 3), 9, generator))
        self.large_again = nn.Parameter(_uniform((edges * channels, 1, 5, 5), 25, generator))
        self.second = nn.Parameter(_uniform((2, edges, channels, channels), channels, generator))
        if self.stride == 2:
            half = (2, sources, targets, channels // 2, channels)
            self.reduction = nn.Parameter(_uniform(half, channels, generator))

    def forward(
        self, values: Tensor, size: tuple[int, int], weights: Tensor, normalize: Normalize
    ) -> tuple[Tensor, ...]:
        """`values` of an image of `size`; a tensor (C, places, B) for each target."""
        positive = relu(values)
        plain, dilated = self._first(positive, size, normalize)
        separable = self._second(relu(plain), size, normalize)
        shared = self._pooled(values, size, normalize)
        if self.stride == 1:
            shared = torch.cat([shared, values.view(1, 1, -1)], 1)
        by_source, by_edge = weights.view(self.sources, self.targets, -1), weights.unsqueeze(1)
        mixed = torch.bmm(by_source[:, :, : shared.shape[1]], shared).view(self.sources * self.targets, 1, -1)
        mixed = mixed.baddbmm(by_edge[:, :, SEPARABLE], separable).baddbmm(by_edge[:, :, DILATED], dilated)
        if self.stride == 2:
            mixed = mixed.baddbmm(by_edge[:, :, SKIP : SKIP + 1], self._reduced(positive, size, normalize))
        total = mixed.view(self.sources, self.targets, self.channels, -1, values.shape[-1])
        return (total.sum(0) if self.sources > 1 else total[0]).unbind()

    def _first(self, values: Tensor, size: tuple[int, int], normalize: Normalize) -> tuple[Tensor, Tensor]:
        """First convolutions without and with dilation, normalized, each (edge, kernel size, C · places · B)."""
        channels, sources, targets = self.channels, self.sources, self.targets
        around = _surroundings(*size, self.stride, values.device)
        patches = pad(values, (0, 0, 0, 1)).index_select(1, around).view(channels * sources * 2, 25, -1)
        kernels = torch.stack([pad(self.small, (1, 1, 1, 1)), self.large], 4).view(-1, targets * 2, 25)
        by_channel = torch.bmm(kernels, patches).view(channels, sources * targets * 4, -1).transpose(0, 1)
        found = torch.bmm(self.first.view(-1, channels, channels), by_channel)
        kinds = _rows(normalize, found.flatten(0, 1)).view(sources, 2, targets, 2, -1)
        plain, dilated = (kinds[:, kind].flatten(0, 1) for kind in range(2))
        return plain, dilated

    def _second(self, values: Tensor, size: tuple[int, int], normalize: Normalize) -> Tensor:
        """Second convolutions of separable ones: (edge, kernel size, C · places · B) -> the same shape."""
        channels, edges = self.channels, self.sources * self.targets
        height, width = (side // self.stride for side in size)
        maps = values.view(edges, 2, channels, height, width, -1)
        found = []
        for index, kernels in enumerate((self.small_again, self.large_again)):
            images = maps[:, index].flatten(0, 1).permute(3, 1, 2, 0).contiguous().permute(0, 3, 1, 2)  # channels last
            each = conv2d(images, kernels, padding=kernels.shape[-1] // 2, groups=edges * channels)
            found.append(each.permute(1, 2, 3, 0).reshape(edges, channels, -1))
        again = torch.bmm(self.second.flatten(0, 1), torch.cat(found))
        return _rows(normalize, again.flatten(0, 1)).view(2, edges, -1).transpose(0, 1)

    def _pooled(self, values: Tensor, size: tuple[int, int], normalize: Normalize) -> Tensor:
        """Maximum and mean over 3×3 places inside the image, normalized, (S, 2, C · places · B)."""
        images = values.view(len(values), *size, -1).permute(3, 0, 1, 2)
        highest = max_pool2d(images, 3, self.stride, 1)
        means = avg_pool2d(images, 3, self.stride, 1, count_include_pad=False)
        rows = torch.stack([highest, means]).permute(0, 2, 3, 4, 1).reshape(2 * len(values), -1)
        found = _rows(normalize, rows).view(2, self.channels, self.sources, -1)
        return found.permute(2, 0, 1, 3).reshape(self.sources, 2, -1)

    def _reduced(self, values: Tensor, size: tuple[int, int], normalize: Normalize) -> Tensor:
        """Factorized reductions, (edge, 1, C · places · B): half of the channels from the even places, half from the
        odd ones."""
        maps = values.view(self.channels, self.sources, *size, -1).transpose(0, 1)
        corners = torch.stack([maps[:, :, ::2, ::2], maps[:, :, 1::2, 1::2]]).flatten(0, 1).flatten(2)
        found = torch.bmm(self.reduction.flatten(0, 1).flatten(1, 2), corners)
        rows = _rows(normalize, found.flatten(0, 1)).view(2, self.sources * self.targets, -1)
        return rows.transpose(0, 1).reshape(self.sources * self.targets, 1, -1)


class Discrete(nn.Module):
    """The cells that were chosen, one for each domain, in one network: (images, domain) -> logits.

    Its operations are those that any domain has, an edge's operation being common to the domains that have it; each
    normalization has a factor and an offset for every domain that uses it. A node is the sum of its inputs.

    genotypes: of the domains, from `space`. generator: first weights, as in `Supernet`.

    Raises ValueError for an odd number of channels.
    """

    def __init__(
        self,
        space: Space,
        genotypes: Sequence[Genotype],
        channels: int,
        stem_channels: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        _check_channels(channels)
        domains = list(range(len(genotypes)))
        self.nodes, self.genotypes = space.nodes, list(genotypes)
        self.stem = nn.Parameter(_uniform((stem_channels, 9), 9, generator))
        self.stem_normalized = DomainNormalization(stem_channels, domains)
        self.entry = nn.Parameter(_uniform((INPUTS * channels, stem_channels), stem_channels, generator))
        self.entry_normalized = DomainNormalization(INPUTS * channels, domains)
        chosen = sorted(set[Choice]().union(*genotypes), key=lambda choice: (choice.target, choice.source, choice))
        self.operations = nn.ModuleDict(
            {
                _name(choice): _operation(
                    choice, channels, [domain for domain in domains if choice in genotypes[domain]], generator
                )
                for choice in chosen
            }
        )
        features = space.nodes * channels
        self.head = nn.Parameter(_uniform((CLASSES, features), features, generator))
        self.head_offset = nn.Parameter(_uniform((CLASSES,), features, generator))

    def forward(self, images: Tensor, domain: int, normalize: Normalize = by_batch) -> Tensor:
        """Logits (B, 10) of images (B, 1, h, w) of one domain; h and w are even."""
        values = conv2d(images, self.stem.view(-1, 1, 3, 3), padding=1)
        values = relu(self.stem_normalized(values, domain, normalize))
        values = conv2d(values, self.entry[..., None, None])
        known = list(self.entry_normalized(values, domain, normalize).chunk(INPUTS, 1))
        for target in range(INPUTS, INPUTS + self.nodes):
            parts = [
                self.operations[_name(choice)](known[choice.source], domain, normalize)
                for choice in self.genotypes[domain]
                if choice.target == target
            ]
            known.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        means = torch.cat([node.mean((2, 3)) for node in known[INPUTS:]], 1)
        return linear(means, self.head, self.head_offset)


class DomainNormalization(nn.Module):
    """Normalization of the batch, then a factor and an offset for each channel and each of `domains`, at first 1 and
    0."""

    def __init__(self, channels: int, domains: Sequence[int]) -> None:
        super().__init__()
        self._rows = {domain: row for row, domain in enumerate(domains)}
        self.factor = nn.Parameter(torch.ones(len(domains), channels))
        self.offset = nn.Parameter(torch.zeros(len(domains), channels))

    def forward(self, values: Tensor, domain: int, normalize: Normalize) -> Tensor:
        """Values (B, C, h, w) of one domain."""
        row = self._rows[domain]
        return normalize(values, self.factor[row], self.offset[row])


class Pooling(nn.Module):
    """Maximum or mean over 3×3 places inside the image, normalized."""

    def __init__(self, channels: int, maximum: bool, stride: int, domains: Sequence[int]) -> None:
        super().__init__()
        self.maximum, self.stride = maximum, stride
        self.normalized = DomainNormalization(channels, domains)

    def forward(self, values: Tensor, domain: int, normalize: Normalize) -> Tensor:
        """Values (B, C, h, w)."""
        if self.maximum:
            pooled = max_pool2d(values, 3, self.stride, 1)
        else:
            pooled = avg_pool2d(values, 3, self.stride, 1, count_include_pad=False)
        found: Tensor = self.normalized(pooled, domain, normalize)
        return found


class Same(nn.Module):
    """Skip between nodes of the same size."""

    def forward(self, values: Tensor, domain: int, normalize: Normalize) -> Tensor:
        """The values themselves."""
        return values


class Reduction(nn.Module):
    """Skip between an input and a node, half its size: a factorized reduction."""

    def __init__(self, channels: int, domains: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform((2, channels // 2, channels), channels, generator))
        self.normalized = DomainNormalization(channels, domains)

    def forward(self, values: Tensor, domain: int, normalize: Normalize) -> Tensor:
        """Values (B, C, h, w): half of the channels from the even places, half from the odd ones."""
        even, odd = self.weight.unsqueeze(-1).unsqueeze(-1).unbind()
        values = relu(values)
        halves = torch.cat([conv2d(values, even, stride=2), conv2d(values[:, :, 1:, 1:], odd, stride=2)], 1)
        found: Tensor = self.normalized(halves, domain, normalize)
        return found


class Convolutions(nn.Module):
    """ReLU, a convolution of each channel, a 1×1 convolution, normalization, `repeats` times; the first with `stride`.

    size: of the kernels.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        stride: int,
        dilation: int,
        repeats: int,
        domains: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.by_channel = nn.ParameterList(
            _uniform((channels, 1, size, size), size * size, generator) for _ in range(repeats)
        )
        self.by_place = nn.ParameterList(_uniform((channels, channels), channels, generator) for _ in range(repeats))
        self.normalized = nn.ModuleList(DomainNormalization(channels, domains) for _ in range(repeats))

    def forward(self, values: Tensor, domain: int, normalize: Normalize) -> Tensor:
        """Values (B, C, h, w)."""
        stride = self.stride
        for kernels, weights, normalized in zip(self.by_channel, self.by_place, self.normalized, strict=True):
            values = conv2d(
                relu(values),
                kernels,
                stride=stride,
                padding=self.dilation * (kernels.shape[-1] // 2),
                dilation=self.dilation,
                groups=len(kernels),
            )
            values = normalized(conv2d(values, weights[..., None, None]), domain, normalize)
            stride = 1
        return values


def _operation(choice: Choice, channels: int, domains: Sequence[int], generator: torch.Generator) -> nn.Module:
    stride = 2 if choice.source < INPUTS else 1
    kind = OPERATIONS.index(choice.operation)
    if kind in (MAXIMUM, MEAN):
        return Pooling(channels, kind == MAXIMUM, stride, domains)
    if kind == SKIP:
        return Same() if stride == 1 else Reduction(channels, domains, generator)
    size = 3 if choice.operation.endswith("3") else 5
    separable = kind < SEPARABLE.stop
    return Convolutions(
        channels,
        size,
        stride,
        dilation=1 if separable else 2,
        repeats=2 if separable else 1,
        domains=domains,
        generator=generator,
    )


def _name(choice: Choice) -> str:
    return f"{choice.source}_{choice.target}_{choice.operation}"


def _rows(normalize: Normalize, values: Tensor, factor: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Values (C, places · B), normalized by row."""
    return normalize(values.unsqueeze(0), factor, offset).squeeze(0)


def _stem(weight: Tensor, images: Tensor) -> Tensor:
    """3×3 convolution: (C, places · B) of images (B, 1, h, w)."""
    patches = unfold(images, 3, padding=1).permute(1, 2, 0).reshape(9, -1)
    return torch.mm(weight, patches)


@cache
def _surroundings(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """For each of 25 neighbors in a 5×5 square, without dilation and with 2, its place seen from every `stride`-th
    place of an image, (2 · 25 · places,); `height * width` where it lies outside."""
    places = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    found = [unfold(places, 5, dilation=d, padding=2 * d, stride=stride).flatten() for d in (1, 2)]
    index = torch.cat(found).long() - 1
    return torch.where(index < 0, height * width, index).to(device)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _check_channels(channels: int) -> None:
    if channels % 2:
        raise ValueError(
            f"channels: a reduction takes half of them from elsewhere, so expected an even number, got {channels}"
        )
