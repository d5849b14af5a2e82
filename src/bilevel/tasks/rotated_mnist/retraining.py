"""Training of the discrete networks that a search ended with, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel.architecture import Choice, Genotype
from bilevel.checkpoint import Checkpoint
from bilevel.derivatives import Derivatives
from bilevel.models.supernet import Discrete
from bilevel.optimizers import Optimizer
from bilevel.parameters import functional
from bilevel.problem import Batch, Problem
from bilevel.progress import Progress
from bilevel.tasks.rotated_mnist.images import Stream

NOMINAL = {"sep_conv_3": 800, "sep_conv_5": 1312, "dil_conv_3": 400, "dil_conv_5": 656}
"""Parameters that the slide counts for an operation: its convolutions with 16 channels. None for the others."""


def nominal_parameters(genotypes: Sequence[Genotype]) -> int:
    """The slide's count: over all edges with operations that any domain has, each once."""
    return sum(NOMINAL.get(choice.operation, 0) for choice in set[Choice]().union(*genotypes))


def retrained(
    network: Discrete, stream: Stream, optimizer: Optimizer, epochs: int, name: str, checkpoint: Checkpoint
) -> tuple[Tensor, Callable[..., Tensor]]:
    """Parameters (P,) after `epochs` of cross-entropy on the stream's batches, one domain at a time, and the network as
    a function (params, images, domain, normalize) -> logits. `name` is what progress is reported under."""
    layout, forward = functional(network)
    params = layout.join(dict(network.named_parameters())).detach().to(stream.device)
    state = optimizer.init(params.unsqueeze(0))
    problems = [Problem(loss, loss) for loss in (partial(_loss, forward, d) for d in range(stream.domains))]
    derivatives = [Derivatives(problem, params.new_zeros(1, 0)) for problem in problems]
    first = 0
    if checkpoint.found is not None:
        first, state = checkpoint.found["steps"], checkpoint.found["state"]
    progress = Progress(name, "epoch", first // stream.per_epoch)
    for number in range(first, epochs * stream.per_epoch):
        images, labels, domain = stream[number]
        optimizer.advance_(derivatives[domain], state, (images.unsqueeze(0), labels.unsqueeze(0)))
        if (number + 1) % stream.per_epoch == 0:
            progress.report((number + 1) // stream.per_epoch, epochs)
        checkpoint.keep({"steps": number + 1, "state": state})
    return optimizer.params(state)[0], forward


def _loss(forward: Callable[..., Tensor], domain: int, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
    images, labels = batch
    return cross_entropy(forward(params, images, domain), labels)
