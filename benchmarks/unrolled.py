"""Exact reverse mode against the inner steps alone: tanh MLP 784-128-10, L2 per weight, batch 64, momentum, T = 200.

    python benchmarks/unrolled.py [threads]

Prints, from one run: the seconds of the same training steps as plain PyTorch code and as the library's own, the seconds
of `unrolled`, their ratios, and the memory that `unrolled` adds beside that of its stored states.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import bilevel
from bilevel.cli import keep_memory

STEPS, BATCH, REPEATS = 200, 64, 7
LAYOUT = bilevel.Layout({"w1": (128, 784), "b1": (128,), "w2": (10, 128), "b2": (10,)})


def data_loss(params: Tensor, hyper: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the network."""
    p = LAYOUT.split(params)
    return cross_entropy(linear(torch.tanh(linear(batch[0], p["w1"], p["b1"])), p["w2"], p["b2"]), batch[1])


def plain_training(params: Tensor, hyper: Tensor, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same steps as one would write them in PyTorch."""
    params = params.clone().requires_grad_()
    optimizer = torch.optim.SGD([params], lr=0.02, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        loss = data_loss(params, hyper, batch) + 0.5 * (hyper.exp() * params * params).sum()
        loss.backward()
        optimizer.step()
    return params.detach()


def seconds(function: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    keep_memory()
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    draws = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(BATCH, 784, generator=draws), torch.randint(10, (BATCH,), generator=draws)) for _ in range(STEPS)
    ]
    params = torch.randn(LAYOUT.size, generator=draws) * 0.03
    hyper = torch.full((LAYOUT.size,), -6.0)
    problem = bilevel.Problem(data_loss, data_loss, bilevel.penalties.L2())
    optimizer = bilevel.optimizers.Momentum(learning_rate=0.02, momentum=0.9)
    state = optimizer.init(params)

    def run(name: str) -> bilevel.hypergradients.Estimate:
        return bilevel.hypergradients.create(name)(problem, optimizer, state, hyper, batches, batches[0])

    torch.testing.assert_close(run("none").state[0], plain_training(params, hyper, batches), rtol=1e-3, atol=1e-5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run("unrolled")
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    states = STEPS * LAYOUT.size * 4 / 2**20
    times: dict[str, list[float]] = {"plain": [], "none": [], "unrolled": []}
    for _ in range(REPEATS):  # interleaved, so that a busy machine disturbs all three alike
        times["plain"].append(seconds(lambda: plain_training(params, hyper, batches)))
        times["none"].append(seconds(lambda: run("none")))
        times["unrolled"].append(seconds(lambda: run("unrolled")))
    plain, own, unrolled = (statistics.median(times[key]) for key in ("plain", "none", "unrolled"))
    print(f"threads {torch.get_num_threads()}, median of {REPEATS}")
    print(f"inner steps, plain PyTorch   {plain:.3f} s")
    print(f"inner steps, this library    {own:.3f} s")
    print(f"unrolled                     {unrolled:.3f} s")
    print(f"unrolled / plain PyTorch     {unrolled / plain:.2f}")
    print(f"unrolled / this library      {unrolled / own:.2f}")
    print(f"memory added {added:.0f} MiB, of which stored states {states:.0f} MiB")


if __name__ == "__main__":
    main()
