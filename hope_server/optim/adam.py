"""Adam as the optimal element-wise memory of gradients, and AdamW.

Minimising sum_i w_i (M g_i - P)^2 + ridge M^2 over an element-wise memory M that maps gradients to the root P of their
weighted squares gives M = P sum_i w_i g_i / (sum_i w_i g_i^2 + ridge), that is first over root of second moment; with
geometric weights both sums are running means (NL eq. 101-105).
Shapes: B rows, then any shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.optim.rules import State, UpdateRule, counts_like, smooth_root


@dataclass(frozen=True, slots=True)
class Adam(UpdateRule):
    """`W <- W - lr m / (sqrt(v) + epsilon)`, m and v unbiased running means of gradients and of their squares.

    betas: shares of the past kept in m and v, 0 to 1, 1 excluded. Source: NL eq. 101-105; Adam alg. 1.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8

    def init(self, params: torch.Tensor) -> State:
        """first_moment and second_moment: as params."""
        return {"first_moment": torch.zeros_like(params), "second_moment": torch.zeros_like(params)}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        count = counts_like(num_steps, gradient)
        first = self.betas[0] * state["first_moment"] + (1 - self.betas[0]) * gradient
        second = self.betas[1] * state["second_moment"] + (1 - self.betas[1]) * gradient.square()
        root = smooth_root(second / (1 - self.betas[1] ** count)) + self.epsilon
        change = -self.lr * (first / (1 - self.betas[0] ** count)) / root
        return change, {"first_moment": first, "second_moment": second}


@dataclass(frozen=True, slots=True)
class AdamW(Adam):
    """Adam whose weights also shrink by the share `lr * weight_decay` at each step, apart from the gradient.

    A level gives its drift from its initial weights as `weights`, so that decay pulls it back to where it began.
    """

    weight_decay: float = 0.01

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule; weights are needed."""
        if weights is None:
            raise ValueError("AdamW decays weights: give them")
        # A dataclass with slots is made anew, so that the bare super() would not find its class.
        change, state = Adam.update(self, state, gradient, num_steps)
        return change - self.lr * self.weight_decay * weights, state
