"""A recurrent network as the optimizer: its weights are hyperparameters."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import STRICT, GradientOptimizer
from bilevel.parameters import Layout

LAYERS = 2
P = 10
"""p of the preprocessing: gradients below e⁻ᵖ are not taken the logarithm of."""


@dataclass(frozen=True, config=STRICT)
class LSTM(GradientOptimizer):
    """w_t = w_{t−1} + α (vᵀ h² + b),  (h¹, c¹)_t = cell₁(x(g_t), (h¹, c¹)_{t−1}),  (h², c²)_t = cell₂(h¹_t, …).

    Every coordinate of w has a state of its own, and all share the weights, which are read from the hyperparameters. A
    cell with input x has the gates (i, f, o, u) = W x + U h + β, each of `units` rows, and

        c_t = σ(f) c_{t−1} + σ(i) tanh(u),  h_t = σ(o) tanh(c_t).

    units: of each of the two cells. start: index of the first weight in the hyperparameters; in order: input (4 units,
        rows of x), recurrent (4 units, units) and bias (4 units,) of either cell, output (1, units), output_bias (1,);
        `weights` names them, and `size` is their number.
    scale: α.
    preprocessing: x(g): `none`: g; `log_sign`: (log|g| / p, sign g) where |g| ≥ e⁻ᵖ, else (−1, eᵖ g), with p = 10.

    State: slot 0 is w, then come h¹, c¹, h², c² of `units` slots each.
    Adjoint: in closed form, with the activations computed again; B_t and A_t are exact, the part through g_t included.

    Raises ValueError at use where there are too few hyperparameters.

    Source: Andrychowicz et al. 2016 (coordinate-wise LSTM, appendix A for the preprocessing); deck 002.
    """

    units: Annotated[int, Field(ge=1)] = 20
    start: Annotated[int, Field(ge=0)] = 0
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    preprocessing: Literal["none", "log_sign"] = "none"

    @property
    def slots(self) -> int:
        """The parameters, and two vectors of `units` for either cell."""
        return 1 + 2 * LAYERS * self.units

    @property
    def counts(self) -> bool:
        """No."""
        return False

    @property
    def weights(self) -> Layout:
        """Names and shapes of the weights, from `start` on."""
        gates, inputs = 4 * self.units, 1 if self.preprocessing == "none" else 2
        return Layout(
            {
                "input1": (gates, inputs),
                "recurrent1": (gates, self.units),
                "bias1": (gates,),
                "input2": (gates, self.units),
                "recurrent2": (gates, self.units),
                "bias2": (gates,),
                "output": (1, self.units),
                "output_bias": (1,),
            }
        )

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weights.size

    def step_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> None:
        """One step in place."""
        w, u = self._weights(hyper), self.units
        values = self._inputs(gradient)
        for layer in range(1, LAYERS + 1):
            memory = state.narrow(-2, 1 + 2 * (layer - 1) * u, 2 * u)
            cell = _Cell(w[f"input{layer}"], w[f"recurrent{layer}"], w[f"bias{layer}"], values, memory)
            values = cell.output
            memory.copy_(torch.cat([values, cell.memory], -2))
        change = (w["output"] @ values).squeeze(-2) + w["output_bias"]
        state[..., 0, :].add_(change, alpha=self.scale)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        assert gradient is not None  # since `adjoint_reads_gradient`
        w, u = self._weights(hyper), self.units
        first, second = taped.narrow(-2, 1, 2 * u), taped.narrow(-2, 1 + 2 * u, 2 * u)
        cell1 = _Cell(w["input1"], w["recurrent1"], w["bias1"], self._inputs(gradient), first)
        cell2 = _Cell(w["input2"], w["recurrent2"], w["bias2"], cell1.output, second)
        by_change = cotangent[..., 0:1, :] * self.scale
        by1, by2 = cotangent.narrow(-2, 1, 2 * u), cotangent.narrow(-2, 1 + 2 * u, 2 * u)
        by2.narrow(-2, 0, u).add_(w["output"].mT @ by_change)
        by_gates2 = cell2.pull_back_(by2)
        by1.narrow(-2, 0, u).add_(w["input2"].mT @ by_gates2)
        by_gates1 = cell1.pull_back_(by1)
        if to_hyper is not None:
            parts = {
                **cell1.by_weights(by_gates1, "1"),
                **cell2.by_weights(by_gates2, "2"),
                "output": by_change @ cell2.output.mT,
                "output_bias": by_change.sum(-1),
            }
            flat = torch.cat([parts[name].flatten(hyper.dim() - 1) for name in self.weights.shapes], -1)
            to_hyper.narrow(-1, self.start, self.size).add_(flat)
        return self._pull_back_inputs(w["input1"].mT @ by_gates1, gradient)

    def _weights(self, hyper: Tensor) -> dict[str, Tensor]:
        if self.start + self.size > hyper.shape[-1]:
            raise ValueError(
                f"LSTM: its {self.size} weights stand from entry {self.start} on, but there are {hyper.shape[-1]} "
                "hyperparameters"
            )
        return self.weights.split(hyper.narrow(-1, self.start, self.size))

    def _inputs(self, gradient: Tensor) -> Tensor:
        """x(g), (..., rows, P)."""
        if self.preprocessing == "none":
            return gradient.unsqueeze(-2)
        return torch.stack(self._log_and_sign(gradient), -2)

    def _log_and_sign(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        sign = gradient.real.sign()
        size = gradient * sign  # of complex numbers the analytic continuation of |g| from the real axis
        large = size.real >= math.exp(-P)
        logarithm = size.where(large, 1.0).log() / P
        return (
            torch.where(large, logarithm, torch.full_like(logarithm, -1.0)),
            torch.where(large, sign.to(gradient.dtype), gradient * math.exp(P)),
        )

    def _pull_back_inputs(self, by_inputs: Tensor, gradient: Tensor) -> Tensor:
        """dL/dg (..., P), given dL/dx."""
        if self.preprocessing == "none":
            return by_inputs.squeeze(-2)
        by_logarithm, by_sign = by_inputs.unbind(-2)
        large = gradient.abs() >= math.exp(-P)
        return torch.where(large, by_logarithm / (P * gradient.where(large, 1.0)), by_sign * math.exp(P))


class _Cell:
    """One step of a cell for all coordinates: x (..., rows, P), and h and c before it in one, (..., 2 units, P)."""

    def __init__(self, by_input: Tensor, recurrent: Tensor, bias: Tensor, values: Tensor, memory: Tensor) -> None:
        self._recurrent, self._values = recurrent, values
        self._hidden, self._before = memory.chunk(2, -2)
        gates = by_input @ values + recurrent @ self._hidden + bias.unsqueeze(-1)
        units = self._before.shape[-2]
        sigmoids, self._update = gates.narrow(-2, 0, 3 * units).sigmoid(), gates.narrow(-2, 3 * units, units).tanh()
        self._enter, self._forget, self._leave = sigmoids.chunk(3, -2)
        self.memory = self._forget * self._before + self._enter * self._update
        self._squashed = self.memory.tanh()
        self.output = self._leave * self._squashed

    def pull_back_(self, cotangent: Tensor) -> Tensor:
        """dL/d(h, c) after the step becomes that before it, but for what passes through x; returns dL/d gates."""
        by_output, by_memory = cotangent.chunk(2, -2)
        by_memory.add_(by_output * self._leave * (1 - self._squashed * self._squashed))
        by_gates = torch.cat(
            [
                by_memory * self._update * self._enter * (1 - self._enter),
                by_memory * self._before * self._forget * (1 - self._forget),
                by_output * self._squashed * self._leave * (1 - self._leave),
                by_memory * self._enter * (1 - self._update * self._update),
            ],
            -2,
        )
        by_memory.mul_(self._forget)
        by_output.copy_(self._recurrent.mT @ by_gates)
        return by_gates

    def by_weights(self, by_gates: Tensor, number: str) -> dict[str, Tensor]:
        """dL/d of the weights, by their names."""
        return {
            f"input{number}": by_gates @ self._values.mT,
            f"recurrent{number}": by_gates @ self._hidden.mT,
            f"bias{number}": by_gates.sum(-1),
        }
