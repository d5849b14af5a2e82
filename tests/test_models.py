"""Networks against a plain way of writing them."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, conv2d, linear, relu

from bilevel.models import convnet


def plain(params: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    p = convnet.LAYOUT.split(params)
    values = images
    for block in ("conv1", "conv2", "conv3"):
        kernel = p[f"{block}.weight"].movedim(-1, 1)
        values = avg_pool2d(relu(conv2d(values, kernel, p[f"{block}.bias"], padding=1)), 2)
    values = relu(linear(values.flatten(1), p["linear1.weight"], p["linear1.bias"]))
    return linear(values, p["linear2.weight"], p["linear2.bias"])


def test_convnet_is_the_published_network() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 28, 28, generator=draws, dtype=torch.float64)
    params = convnet.initial(draws).double() + 0.05 * torch.randn(5074, generator=draws, dtype=torch.float64)
    weights = torch.randn(5, 10, generator=draws, dtype=torch.float64)
    vector = torch.randn(5074, generator=draws, dtype=torch.float64)

    def derivatives(logits_of: object, inputs: torch.Tensor) -> list[torch.Tensor]:
        at = params.clone().requires_grad_()
        logits = logits_of(at, inputs)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), at, create_graph=True)
        (product,) = torch.autograd.grad(gradient, at, vector)
        return [logits.detach(), gradient.detach(), product]

    assert convnet.LAYOUT.size == 5074
    for ours, theirs in zip(
        derivatives(convnet.forward, convnet.patches(images)), derivatives(plain, images), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_first_parameters_are_truncated_normal_with_zero_biases() -> None:
    p = convnet.LAYOUT.split(convnet.initial(torch.Generator().manual_seed(1)))
    deviation = 72**-0.5
    assert p["linear1.weight"].abs().max() <= 2 * deviation
    assert abs(p["linear1.weight"].std().item() / deviation - 0.88) < 0.05  # a normal cut off at two deviations
    assert all(not p[name].any() for name in p if name.endswith("bias"))
