"""Inner optimization that can be run backwards: momentum and Adam in fixed-point numbers, and, to compare, in floating
point."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bilevel.derivatives import Derivatives
from bilevel.fixed_point import (
    Factor,
    FixedPoint,
    FixedPointSquares,
    RemainderBuffer,
    Workspace,
    nearest_ratio,
    rational,
)
from bilevel.optimizers import Adam, Learned, Momentum, Optimizer
from bilevel.optimizers.learned import value_of
from bilevel.problem import Batch, Problem

FRACTION_BITS = 44
SQUARE_FRACTION_BITS = 52
OTHER_METHODS = "use a method that needs no inverse, such as unrolled or checkpointed"


@dataclass(frozen=True)
class Average:
    """One of the averages x_t = γ x_{t−1} + i(a_t) that an optimizer keeps.

    name: what it is called in messages. factor: γ; None where it is learned. squares: whether it is one of squares.
    """

    name: str
    factor: Fraction | None
    squares: bool = False


class Recursion(ABC):
    """An optimizer as x_t = γ x_{t−1} + i(a_t) for each of its averages x, then w_t = w_{t−1} − u(x_t).

    a_t = g_t + ω w_{t−1}, with the gradient g_t at w_{t−1}. Such a step is undone without solving an equation: x_t
    gives w_{t−1}, this gives a_t, and that gives x_{t−1}.

    optimizer: the optimizer. averages: x, in the order of the optimizer's slots 1, 2, ….
    """

    optimizer: Momentum | Adam
    averages: tuple[Average, ...]

    def factors(self, hyper: Tensor, count: Tensor | None) -> list[Factor]:
        """γ of each average; `count` (S, 1) is the number of steps done before this one."""
        return [average.factor for average in self.averages if average.factor is not None]

    @abstractmethod
    def increments(self, descended: Tensor, count: Tensor | None) -> list[Tensor]:
        """i(a_t), one for each average; `count` as in `factors`."""

    @abstractmethod
    def update(self, averages: list[Tensor], hyper: Tensor, count: Tensor | None) -> Tensor:
        """u(x_t), (S, P); `count` as in `factors`."""

    def descended(self, params: Tensor, gradient: Tensor, hyper: Tensor, count: Tensor | None) -> Tensor:
        """a_t from w_{t−1} and g_t, (S, P); `count` as in `factors`."""
        decay = value_of(self.optimizer.weight_decay, hyper, count)
        return gradient + params * decay if isinstance(decay, Tensor) or decay else gradient

    def count(self, state: Tensor) -> Tensor | None:
        """The number of steps done, (S, 1), a view of the slot (S, 1, P) after the averages, where there is one."""
        first = 1 + len(self.averages)
        return state[..., first, :1] if state.shape[-2] > first else None


class MomentumRecursion(Recursion):
    """m_t = μ m_{t−1} + a_t, w_t = w_{t−1} − η m_t.

    A learned factor is rounded to n/2^20, by at most 5e-7 where it is above 0.001.

    Raises ValueError for Nesterov's momentum, and for a factor that is neither learned nor a rational in (0, 1).
    """

    def __init__(self, optimizer: Momentum) -> None:
        if optimizer.nesterov:
            raise ValueError(
                "nesterov: the step to w_t contains the gradient at w_(t-1) itself, so that w_(t-1) is known from w_t "
                f"only as the solution of an equation; set nesterov=False, or {OTHER_METHODS}"
            )
        fixed = None if isinstance(optimizer.momentum, Learned) else rational(optimizer.momentum, "momentum")
        self.optimizer: Momentum = optimizer
        self.averages = (Average("velocity", fixed),)

    def factors(self, hyper: Tensor, count: Tensor | None) -> list[Factor]:
        """μ_t."""
        if isinstance(self.optimizer.momentum, Learned):
            return [nearest_ratio(self.optimizer.momentum.value(hyper, count))]
        return super().factors(hyper, count)

    def increments(self, descended: Tensor, count: Tensor | None) -> list[Tensor]:
        """a_t."""
        return [descended]

    def update(self, averages: list[Tensor], hyper: Tensor, count: Tensor | None) -> Tensor:
        """η m_t."""
        return averages[0] * value_of(self.optimizer.learning_rate, hyper, count)


class AdamRecursion(Recursion):
    """m_t = β₁ m_{t−1} + (1 − β₁) a_t, v_t = β₂ v_{t−1} + (1 − β₂) a_t², w_t = w_{t−1} − η m̂_t / (√v̂_t + ε).

    Raises ValueError for a factor that is not a rational in (0, 1).
    """

    def __init__(self, optimizer: Adam) -> None:
        self.optimizer: Adam = optimizer
        self.averages = (
            Average("average of gradients", rational(optimizer.beta1, "beta1")),
            Average("average of squares", rational(optimizer.beta2, "beta2"), squares=True),
        )

    def increments(self, descended: Tensor, count: Tensor | None) -> list[Tensor]:
        """(1 − β₁) a_t and (1 − β₂) a_t²; at the first step of `bias="first_gradient"` a_t and a_t²."""
        whole = descended, descended.square()
        shares = [average * (1 - beta) for average, beta in zip(whole, self._betas, strict=True)]
        if self.optimizer.bias != "first_gradient" or count is None or bool((count > 0).all()):
            return shares
        return [torch.where(count == 0, at_first, share) for at_first, share in zip(whole, shares, strict=True)]

    def update(self, averages: list[Tensor], hyper: Tensor, count: Tensor | None) -> Tensor:
        """η m̂_t / (√v̂_t + ε)."""
        mean, square = averages
        rate = value_of(self.optimizer.learning_rate, hyper, count)
        if self.optimizer.bias == "corrected" and count is not None:
            first, second = (-torch.expm1((count + 1) * math.log(beta)) for beta in self._betas)
            rate, square = rate / first, square / second
        return square.sqrt().add_(self.optimizer.epsilon).reciprocal_().mul_(mean).mul_(rate)

    @property
    def _betas(self) -> tuple[float, float]:
        return self.optimizer.beta1, self.optimizer.beta2


def recursion(optimizer: Optimizer) -> Recursion:
    """The optimizer as a recursion that can be undone.

    Raises ValueError for an optimizer whose steps cannot: anything but Adam and heavy-ball momentum, with factors that
    are rationals in (0, 1) or, of momentum, learned.
    """
    if isinstance(optimizer, Adam):
        return AdamRecursion(optimizer)
    if isinstance(optimizer, Momentum):
        return MomentumRecursion(optimizer)
    raise ValueError(
        f"{type(optimizer).__name__}: only steps of Momentum and Adam can be undone; without an average to go by, "
        f"w_(t-1) is known from w_t only as the solution of an equation; {OTHER_METHODS}"
    )


class ReversibleChain:
    """The inner state in fixed-point numbers, which steps forward and back, coming back to the same bits.

    Gradients and updates are computed in the floating-point type of `state`, at the numbers rounded to it, and rounded
    to multiples of 2^−D; decays γ are products with the rational n/d of γ, undone with `RemainderBuffer`. On the way
    back the same gradients have to be found again, bit for bit.

    optimizer: heavy-ball `Momentum`, or `Adam` with fixed factors; everything else may be learned.
    hyper: (S, H). state: where the chain starts, (S, slots, P).
    fraction_bits: D of the parameters and of averages of gradients: resolution 2^−D, range 2^(62 − D).
    square_fraction_bits: D of Adam's average of squares v: √v resolves 2^(−D/2) and |a| may reach 2^(31 − D/2).

    A seed of which a number leaves the range is lost (see `fixed_point.Workspace`): NaN from then on, with a warning.

    Raises ValueError for an optimizer whose steps cannot be undone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        hyper: Tensor,
        state: Tensor,
        fraction_bits: int = FRACTION_BITS,
        square_fraction_bits: int = SQUARE_FRACTION_BITS,
    ) -> None:
        self._recursion = recursion(optimizer)
        self._hyper = hyper
        work = Workspace(state[..., 0, :])
        self._weights = FixedPoint(state[..., 0, :], fraction_bits, "parameters", workspace=work)
        self._averages: list[FixedPoint] = []
        for slot, average in enumerate(self._recursion.averages, start=1):
            values = state[..., slot, :]
            if average.squares:
                numbers: FixedPoint = FixedPointSquares(
                    values, square_fraction_bits, average.name, "square_fraction_bits", work
                )
            else:
                numbers = FixedPoint(values, fraction_bits, average.name, workspace=work)
            self._averages.append(numbers)
        self._buffers = [RemainderBuffer(state[..., 0, :], work) for _ in self._averages]
        self._numbers = [self._weights, *self._averages]
        self._state = state.clone(memory_format=torch.contiguous_format)
        self._stale = set(range(len(self._numbers)))  # slots of `_state` that are not what the numbers are
        self._count = self._recursion.count(self._state)

    @property
    def integers(self) -> list[Tensor]:
        """The chain's state: parameters and averages as int64 (S, P), to be read only."""
        return [numbers.integers for numbers in self._numbers]

    @property
    def bits(self) -> int:
        """Bits of side information held at present, a seed."""
        return self._state.shape[-1] * sum(buffer.bits for buffer in self._buffers)

    def params(self) -> Tensor:
        """The parameters, (S, P), a new tensor."""
        return self._read(0).clone()

    def state(self) -> Tensor:
        """The optimizer's state, (S, slots, P), a new tensor."""
        return self.borrowed_state().clone()

    def borrowed_state(self) -> Tensor:
        """`state` in a tensor that changes once the chain moves on."""
        for slot in range(len(self._numbers)):
            self._read(slot)
        return self._state

    def advance_(self, params: Tensor, gradient: Tensor) -> None:
        """s_{t−1} becomes s_t; `gradient` (S, P) is that at `params` = w_{t−1}, as `params()` gives it."""
        for average, buffer, factor, increment in self._moves(params, gradient):
            average.scale_(factor, buffer)
            average.add_(increment)
        self._stale.update(range(1, len(self._numbers)))
        self._weights.add_(self._update(), -1)
        if self._count is not None:
            self._count.add_(1)
        self._stale.update(range(len(self._numbers)))  # all, since a seed may be lost

    def retreat_params_(self) -> None:
        """First half of the way from s_t to s_{t−1}: `params()` is w_{t−1} afterwards."""
        if self._count is not None:
            self._count.sub_(1)
        self._weights.undo_add_(self._update(), -1)
        self._stale.add(0)

    def retreat_averages_(self, params: Tensor, gradient: Tensor) -> None:
        """Second half; `gradient` (S, P) is that at `params` = w_{t−1}."""
        for average, buffer, factor, increment in self._moves(params, gradient):
            average.undo_add_(increment)
            average.undo_scale_(factor, buffer)
        self._stale.update(range(1, len(self._numbers)))

    def is_back_at(self, state: Tensor) -> bool:
        """Whether the chain is, bit for bit, what it was when it started at `state`, with nothing left to be undone."""
        rest = slice(len(self._numbers), None)
        return (
            all(numbers.equal(state[..., slot, :]) for slot, numbers in enumerate(self._numbers))
            and all(buffer.empty for buffer in self._buffers)
            and torch.equal(self._state[..., rest, :], state[..., rest, :])
        )

    def _moves(self, params: Tensor, gradient: Tensor) -> Iterator[tuple[FixedPoint, RemainderBuffer, Factor, Tensor]]:
        """What the step does to each average: it is multiplied by a factor, and an increment is added."""
        descended = self._recursion.descended(params, gradient, self._hyper, self._count)
        factors = self._recursion.factors(self._hyper, self._count)
        increments = self._recursion.increments(descended, self._count)
        return zip(self._averages, self._buffers, factors, increments, strict=True)

    def _update(self) -> Tensor:
        averages = [self._read(slot) for slot in range(1, len(self._numbers))]
        return self._recursion.update(averages, self._hyper, self._count)

    def _read(self, slot: int) -> Tensor:
        """Numbers in floating point, (S, P), a view of `_state`, which is brought up to date where it is not."""
        values = self._state[..., slot, :]
        if slot in self._stale:
            self._numbers[slot].write_(values)
            self._stale.remove(slot)
        return values


def fixed_point_distances(
    problem: Problem,
    optimizer: Optimizer,
    state: Tensor,
    hyper: Tensor,
    batches: Sequence[Batch],
    fraction_bits: int = FRACTION_BITS,
    square_fraction_bits: int = SQUARE_FRACTION_BITS,
) -> Tensor:
    """‖w_t − w̃_t‖₂ for t = 0 … T, (T + 1, S), between a chain in fixed-point numbers and the same one run backwards.

    Zero, exactly, as long as gradients are found again bit for bit. All parameters w_0 … w_T are kept to compare.
    Arguments as for a hypergradient method, with the seed axis: state (S, slots, P), hyper (S, H).
    """
    derivatives = Derivatives(problem, hyper)
    chain = ReversibleChain(optimizer, derivatives.hyper, state.detach(), fraction_bits, square_fraction_bits)
    true = [chain.params()]
    with torch.enable_grad():
        for index in range(len(batches)):
            chain.advance_(true[-1], derivatives.linearize(true[-1], batches[index]).gradient)
            true.append(chain.params())
        distances = [_distance(true[-1], chain.params())]
        for index in reversed(range(len(batches))):
            chain.retreat_params_()
            params = chain.params()
            distances.append(_distance(true[index], params))
            chain.retreat_averages_(params, derivatives.linearize(params, batches[index]).gradient)
    return torch.stack(distances[::-1])


def invert_float(
    problem: Problem, optimizer: Optimizer, state: Tensor, hyper: Tensor, batches: Sequence[Batch]
) -> Tensor:
    """‖w_t − w̃_t‖₂ for t = 0 … T, (T + 1, S), where w̃ is found backwards from s_T in floating point, as `state`.

    Each step is inverted as it stands, x_{t−1} = (x_t − i(a_t)) / γ, so that rounding errors grow by 1/γ a step. An
    average of squares that they make negative counts as zero. All parameters w_0 … w_T are kept to compare.
    Arguments as for a hypergradient method, with the seed axis: state (S, slots, P), hyper (S, H).

    Source: deck 001, slides on the inversion of Adam and on long chains.
    """
    rule, derivatives = recursion(optimizer), Derivatives(problem, hyper)
    state = state.detach().clone()
    true = [optimizer.params(state).clone()]
    with torch.enable_grad():
        for index in range(len(batches)):
            optimizer.advance_(derivatives, state, batches[index])
            true.append(optimizer.params(state).clone())
        distances = [_distance(true[-1], optimizer.params(state))]
        for index in reversed(range(len(batches))):
            _retreat_float_(rule, derivatives, state, batches[index])
            distances.append(_distance(true[index], optimizer.params(state)))
    return torch.stack(distances[::-1])


def _retreat_float_(rule: Recursion, derivatives: Derivatives, state: Tensor, batch: Batch) -> None:
    hyper, count = derivatives.hyper, rule.count(state)
    if count is not None:
        count.sub_(1)
    params, averages = state[..., 0, :], [state[..., slot, :] for slot in range(1, 1 + len(rule.averages))]
    params.add_(rule.update(averages, hyper, count))
    descended = rule.descended(params, derivatives.inner_gradient(params, batch), hyper, count)
    moves = zip(rule.averages, averages, rule.factors(hyper, count), rule.increments(descended, count), strict=True)
    for average, values, factor, increment in moves:
        values.sub_(increment).div_(factor.numerator / factor.denominator)
        if average.squares:
            values.clamp_(min=0)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(-1).sqrt()
