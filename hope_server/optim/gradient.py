"""Gradient descent and momentum: memories of gradients with the dot product as inner objective.

Shapes: B rows, then any shape; every rule here is element-wise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from hope_server.optim.rules import State, UpdateRule, counts_like, smooth_root, unit_rms

Form = Literal["ema", "accumulating"]
"""How a moment takes in a new value: as an unbiased running mean, or as a decayed sum (as the paper prints it)."""


def remember(
    form: Form, past: torch.Tensor, value: torch.Tensor, share: float, num_steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take `value` into a moment that keeps `share` of its past; returns the moment and what it answers.

    The running mean answers without the bias of its start at zero; the decayed sum answers itself.
    """
    if form == "accumulating":
        moment = share * past + value
        return moment, moment
    moment = share * past + (1 - share) * value
    return moment, moment / (1 - share ** counts_like(num_steps, value))


@dataclass(frozen=True, slots=True)
class GradientDescent(UpdateRule):
    """`W <- W - lr g`. Source: NL eq. 32."""

    def init(self, params: torch.Tensor) -> State:
        """No state."""
        return {}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        return -self.lr * gradient, {}


@dataclass(frozen=True, slots=True)
class Momentum(UpdateRule):
    """`W <- W + m`, `m <- momentum m - lr g`: gradients compressed into a memory that has no values.

    momentum: share of past surprise kept, 0 to 1. With `accumulating` this is the printed equation; `ema` divides by
    the sum of the kept shares, so that the step does not grow with the momentum. Source: NL eq. 33.
    """

    momentum: float = 0.9
    form: Form = "ema"

    def init(self, params: torch.Tensor) -> State:
        """first_moment: as params."""
        return {"first_moment": torch.zeros_like(params)}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        first, answer = remember(self.form, state["first_moment"], gradient, self.momentum, num_steps)
        return -self.lr * answer, {"first_moment": first}


def precondition(
    state: State, gradient: torch.Tensor, share: float, epsilon: float, num_steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """P g with the diagonal P = 1 / (root of the mean square of past gradients + epsilon); also the second moment."""
    second, mean = remember("ema", state["second_moment"], gradient.square(), share, num_steps)
    return gradient / smooth_root(mean).add(epsilon), second


@dataclass(frozen=True, slots=True)
class PreconditionedMomentum(UpdateRule):
    """`W <- W + m`, `m <- momentum m - lr P g`: a memory that maps each gradient to the value P.

    P is diagonal, one over the root mean square of past gradients. betas: shares of the past kept in the momentum and
    in P, 0 to 1. Source: NL eq. 46-47.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    form: Form = "ema"
    epsilon: float = 1e-8

    def init(self, params: torch.Tensor) -> State:
        """first_moment and second_moment: as params."""
        return {"first_moment": torch.zeros_like(params), "second_moment": torch.zeros_like(params)}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        value, second = precondition(state, gradient, self.betas[1], self.epsilon, num_steps)
        first, answer = remember(self.form, state["first_moment"], value, self.betas[0], num_steps)
        return -self.lr * answer, {"first_moment": first, "second_moment": second}


@dataclass(frozen=True, slots=True)
class FeatureMomentum(UpdateRule):
    """`W <- W + m`, `m <- momentum m - lr P phi(g)`: keys lifted by higher-order features of the gradient.

    phi stacks the signed powers sign(z) |z|^p of the gradient z scaled to a root mean square of 1 in its row, and P
    weighs them back into one value. powers, shares: the exponents p > 0 and their weights. Source: NL eq. 51.
    """

    momentum: float = 0.9
    powers: tuple[float, ...] = (0.5, 1.0, 2.0)
    shares: tuple[float, ...] = (0.5, 0.4, 0.1)
    form: Form = "ema"

    def __post_init__(self) -> None:
        """Refuse features that cannot be: raises ValueError."""
        if len(self.powers) != len(self.shares) or not self.powers or min(self.powers) <= 0:
            raise ValueError(f"powers {self.powers} must be positive, with one share each; got {self.shares}")

    def init(self, params: torch.Tensor) -> State:
        """first_moment: as params."""
        return {"first_moment": torch.zeros_like(params)}

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        key = unit_rms(gradient)
        size, sign = key.abs(), key.sign()
        value = torch.zeros_like(key)
        for power, share in zip(self.powers, self.shares, strict=True):
            value = value + share * sign * size**power
        first, answer = remember(self.form, state["first_moment"], value, self.momentum, num_steps)
        return -self.lr * answer, {"first_moment": first}
