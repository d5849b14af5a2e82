"""A recurrent network as the optimizer: its weights are hyperparameters."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bilevel.optimizers.base import STRICT, Adjoint, GradientOptimizer
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

    @cached_property
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
        self._write(self._cells(state, gradient, hyper), state, hyper)

    def step_with_adjoint_(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> Adjoint:
        """See `GradientOptimizer`: activations are kept."""
        cells = self._cells(state.clone(), gradient, hyper)
        self._write(cells, state, hyper)
        return partial(self._pull_back_, cells, gradient, hyper)

    def adjoint_(
        self, cotangent: Tensor, taped: Tensor, gradient: Tensor | None, hyper: Tensor, to_hyper: Tensor | None
    ) -> Tensor:
        """See the class."""
        assert gradient is not None  # since `adjoint_reads_gradient`
        return self._pull_back_(self._cells(taped, gradient, hyper), gradient, hyper, cotangent, to_hyper)

    def _cells(self, state: Tensor, gradient: Tensor, hyper: Tensor) -> tuple[_Cell, _Cell]:
        """Both cells at this step; they look at the memory in `state`."""
        w, u = self._weights(hyper), self.units
        first = _Cell(w, 1, self._inputs(gradient), state.narrow(-2, 1, 2 * u))
        return first, _Cell(w, 2, first.output, state.narrow(-2, 1 + 2 * u, 2 * u))

    def _write(self, cells: tuple[_Cell, _Cell], state: Tensor, hyper: Tensor) -> None:
        """The step that the cells have computed."""
        w, last = self._weights(hyper), cells[-1].output
        parts = [part for cell in cells for part in (cell.output, cell.memory)]
        state.narrow(-2, 1, len(parts) * self.units).copy_(torch.cat(parts, -2))
        state[..., 0, :].add_((w["output"] @ last).squeeze(-2) + w["output_bias"], alpha=self.scale)

    def _pull_back_(
        self,
        cells: tuple[_Cell, _Cell],
        gradient: Tensor,
        hyper: Tensor,
        cotangent: Tensor,
        to_hyper: Tensor | None,
    ) -> Tensor:
        """`adjoint_` of the step that the cells have computed."""
        output, u = self._weights(hyper)["output"], self.units
        by_change = cotangent[..., 0:1, :] * self.scale
        by1, by2 = cotangent.narrow(-2, 1, 2 * u), cotangent.narrow(-2, 1 + 2 * u, 2 * u)
        by2.narrow(-2, 0, u).add_(output.mT @ by_change)
        by_output1, *by_weights2 = cells[1].pull_back_(by2)
        by1.narrow(-2, 0, u).add_(by_output1)
        by_inputs, *by_weights1 = cells[0].pull_back_(by1)
        if to_hyper is not None:
            by_output = [by_change @ cells[1].output.mT, by_change.sum(-1)]
            flat = [part.flatten(hyper.dim() - 1) for part in (*by_weights1, *by_weights2, *by_output)]
            to_hyper.narrow(-1, self.start, self.size).add_(torch.cat(flat, -1))
        return self._pull_back_inputs(by_inputs, gradient)

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

    def __init__(self, weights: dict[str, Tensor], number: int, values: Tensor, memory: Tensor) -> None:
        hidden, self._before = memory.chunk(2, -2)
        parts = [weights[f"input{number}"], weights[f"recurrent{number}"], weights[f"bias{number}"].unsqueeze(-1)]
        self._sizes = [part.shape[-1] for part in parts]
        # one product for all three
        self._weights = torch.cat(parts, -1)
        self._inputs = torch.cat([values, hidden, torch.ones_like(hidden[..., :1, :])], -2)
        units = self._before.shape[-2]
        gates = self._weights @ self._inputs
        self._sigmoids, self._update = gates.narrow(-2, 0, 3 * units).sigmoid_(), gates.narrow(-2, 3 * units, units)
        self._update.tanh_()
        self._enter, self._forget, self._leave = self._sigmoids.chunk(3, -2)
        self.memory = (self._forget * self._before).addcmul_(self._enter, self._update)
        self._squashed = self.memory.tanh()
        self.output = self._leave * self._squashed

    def pull_back_(self, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dL/d(h, c) after the step becomes that before it, but for what passes through x; returns dL/dx and dL/d of
        the weights: of the input, recurrent and bias."""
        by_output, by_memory = cotangent.chunk(2, -2)
        by_squashed = by_output * self._leave
        by_memory.add_(by_squashed).sub_(by_squashed.mul_(self._squashed).mul_(self._squashed))
        by_enter = by_memory * self._enter
        by_gates = torch.cat(
            [
                by_memory * self._update,
                by_memory * self._before,
                by_output * self._squashed,
                by_enter.addcmul_(by_enter * self._update, self._update, value=-1),
            ],
            -2,
        )
        slopes = torch.addcmul(self._sigmoids, self._sigmoids, self._sigmoids, value=-1)
        by_gates.narrow(-2, 0, slopes.shape[-2]).mul_(slopes)
        by_memory.mul_(self._forget)
        by_values, by_hidden, _ = torch.split(self._weights.mT @ by_gates, self._sizes, -2)
        by_output.copy_(by_hidden)
        by_input, by_recurrent, by_bias = torch.split(by_gates @ self._inputs.mT, self._sizes, -1)
        return by_values, by_input, by_recurrent, by_bias
