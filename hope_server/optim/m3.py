"""M3, multi-scale momentum Muon: a continuum memory of two levels inside the optimizer.

Shapes: B rows, matrices [m, n].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hope_kernels.newton_schulz import newton_schulz

from hope_server.optim.gradient import Form
from hope_server.optim.rules import State, UpdateRule, counts_like, smooth_root, unit_rms


@dataclass(frozen=True, slots=True)
class M3(UpdateRule):
    """`W <- W - lr (NS(m1) + slow_share NS(m2)) / (sqrt(v) + epsilon)`, NS being Newton-Schulz.

    m1 takes in each gradient; m2, every `slow_period` steps, the sum of the gradients since; v their squares.
    form: `accumulating` is Algorithm 1 as printed, where betas scale what is added and nothing decays; `ema` keeps the
    shares betas of the past, m2 taking in the mean of its period.
    is_rescaled: scale the joint step to a root mean square of 1, so that lr is the size of a step in each weight,
    whatever the size of the gradients.
    betas: of m1, v and m2. Source: NL eq. 75, Algorithm 1; aggregation NL eq. 74.
    """

    betas: tuple[float, float, float] = (0.9, 0.99, 0.9)
    slow_share: float = 0.5
    slow_period: int = 8
    num_iterations: int = 5
    form: Form = "ema"
    is_rescaled: bool = True
    epsilon: float = 1e-8

    @property
    def needs_matrix(self) -> bool:
        """Yes."""
        return True

    def init(self, params: torch.Tensor) -> State:
        """first_moment, second_moment, slow_moment and pending_moment, the sum that waits for it, all [B, m, n]."""
        names = ("first_moment", "second_moment", "slow_moment", "pending_moment")
        return {name: torch.zeros_like(params) for name in names}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        fast_beta, square_beta, slow_beta = self.betas
        slow, pending = self._slow(state, num_steps, slow_beta)
        first = self._take_in(state["first_moment"], gradient, fast_beta)
        second = self._take_in(state["second_moment"], gradient.square(), square_beta)
        mean = second
        if self.form == "ema":
            mean = second / (1 - square_beta ** counts_like(num_steps, gradient))
        joint = newton_schulz(first, self.num_iterations)
        joint = joint + self.slow_share * newton_schulz(slow, self.num_iterations)
        step = joint / smooth_root(mean).add(self.epsilon)
        if self.is_rescaled:
            step = unit_rms(step)
        moments = {"first_moment": first, "second_moment": second, "slow_moment": slow}
        return -self.lr * step, moments | {"pending_moment": pending + gradient}

    def _take_in(self, past: torch.Tensor, value: torch.Tensor, beta: float) -> torch.Tensor:
        return past + beta * value if self.form == "accumulating" else beta * past + (1 - beta) * value

    def _slow(self, state: State, num_steps: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The slow memory as of this step and what waits for it: a period that ended before it is taken in now."""
        slow, pending = state["slow_moment"], state["pending_moment"]
        due = ((num_steps - 1) % self.slow_period == 0).view(-1, 1, 1) & (num_steps > 1).view(-1, 1, 1)
        value = pending if self.form == "accumulating" else pending / self.slow_period
        taken = self._take_in(slow, value, beta)
        return torch.where(due, taken, slow), torch.where(due, torch.zeros_like(pending), pending)
