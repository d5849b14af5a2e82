"""The outer optimizer against torch's."""

from __future__ import annotations

import torch

from bilevel.outer import Adam


def test_adam_gives_the_numbers_of_torch() -> None:
    draws = torch.Generator().manual_seed(0)
    hyper = torch.randn(3, 7, generator=draws, dtype=torch.float64)
    theirs = hyper.clone()
    optimizer = torch.optim.Adam([theirs], lr=0.3)
    ours = Adam(0.3)
    for step in range(20):
        gradient = torch.randn(3, 7, generator=draws, dtype=torch.float64) * 10.0 ** (step % 5 - 4)
        gradient[0, 0] = 0
        theirs.grad = gradient.clone()
        optimizer.step()
        hyper = ours.step(hyper, gradient)
        torch.testing.assert_close(hyper, theirs, rtol=1e-12, atol=1e-14)
