"""Muon: momentum whose output is orthogonal.

Shapes: B rows, matrices [m, n].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from hope_kernels.newton_schulz import newton_schulz

from hope_server.optim.rules import State, UpdateRule

StepScale = Literal["original", "rms", "none"]
"""`original`: sqrt(max(1, m / n)); `rms`: 0.2 sqrt(max(m, n)), the size of an Adam step; `none`: 1."""


def step_scale(scale: StepScale, rows: int, columns: int) -> float:
    """The factor of lr for a matrix of this shape."""
    if scale == "original":
        return float(max(1.0, rows / columns) ** 0.5)
    return float(0.2 * max(rows, columns) ** 0.5) if scale == "rms" else 1.0


@dataclass(frozen=True, slots=True)
class Muon(UpdateRule):
    """`W <- W - lr scale NewtonSchulz(m)`, m a running mean of gradients.

    The special case of a non-linear output over a linear memory. momentum: share of past surprise kept; is_nesterov:
    look ahead by the current gradient. Source: NL eq. 42, 52.
    """

    momentum: float = 0.95
    is_nesterov: bool = True
    num_iterations: int = 5
    scale: StepScale = "rms"

    @property
    def needs_matrix(self) -> bool:
        """Yes."""
        return True

    def init(self, params: torch.Tensor) -> State:
        """first_moment [B, m, n]."""
        return {"first_moment": torch.zeros_like(params)}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        first = self.momentum * state["first_moment"] + (1 - self.momentum) * gradient
        ahead = self.momentum * first + (1 - self.momentum) * gradient if self.is_nesterov else first
        size = self.lr * step_scale(self.scale, *gradient.shape[-2:])
        return -size * newton_schulz(ahead, self.num_iterations), {"first_moment": first}
