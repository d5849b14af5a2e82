"""What an estimate cost, counted where the work is done and never asserted afterwards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Work of one or more estimates, per seed.

    gradients: gradients of the inner or the outer loss, with respect to the parameters or the hyperparameters.
    losses: evaluations of the inner loss alone (trials of a line search).
    hessian_products: products of a vector with ∂²L₁/∂w∂w.
    mixed_products: products of a vector with ∂²L₁/∂λ∂w.
    peak_states: most inner states held at once for the sake of the estimate (the current one not counted).
    bits: side information kept to make steps reversible.
    seconds: wall time of the call.
    """

    gradients: int = 0
    losses: int = 0
    hessian_products: int = 0
    mixed_products: int = 0
    peak_states: int = 0
    bits: int = 0
    seconds: float = 0.0

    @property
    def jvps(self) -> int:
        """Jacobian products as deck 000 counts them: one for each A v and one for each B v."""
        return self.hessian_products + self.mixed_products

    def hold(self, states: int) -> None:
        """Note that `states` inner states are held at this moment."""
        self.peak_states = max(self.peak_states, states)

    def __add__(self, other: Cost) -> Cost:
        """Work of both, one after the other: counts add up, the peak is the larger one."""
        return Cost(
            gradients=self.gradients + other.gradients,
            losses=self.losses + other.losses,
            hessian_products=self.hessian_products + other.hessian_products,
            mixed_products=self.mixed_products + other.mixed_products,
            peak_states=max(self.peak_states, other.peak_states),
            bits=max(self.bits, other.bits),
            seconds=self.seconds + other.seconds,
        )
