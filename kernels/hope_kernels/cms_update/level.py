"""What a write of a level is made of, and how far it may go.

Shapes: B rows, S slots, P weights of a level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Moments = dict[str, torch.Tensor]
"""What a level's rule remembers, by name, [S, n] each."""
Step = Callable[[Moments, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Moments]]
"""A rule: moments [B, n], gradient [B, P], steps [B] with this one, drift [B, P] to change [B, P] and new moments."""


@dataclass(frozen=True, slots=True)
class ElementRule:
    """A rule that the Triton form computes itself, weight by weight.

    name: `sgd` (no moments), `momentum` (an unbiased running mean: first_moment [S, P]) or `adam` (second_moment too).
    lr: step size, 0 or more; betas: shares of the past kept in the first and the second moment, 0 to 1, 1 excluded;
    epsilon: what is added to the root of the second moment. Source: NL eq. 32, 33, 101-105.
    """

    name: Literal["sgd", "momentum", "adam"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8


MOMENT_NAMES = {"sgd": (), "momentum": ("first_moment",), "adam": ("first_moment", "second_moment")}
"""What each element rule remembers."""


@dataclass(slots=True)
class LevelWrite:
    """One level and the gradient that it is given.

    In place: weights [S, P], moments, accumulator [S, P] ([S, 0] where every gradient is applied at once).
    Read: initial [P]; num_steps [S] int64, steps the rule has taken; gradient [B, P] summed over taught tokens;
    num_taught [B] int64; is_due [B] bool, whether the row's period ends (read with an accumulator only).
    max_update_norm: norm above which a gradient is scaled down; norm_cap: largest norm of the drift from initial.
    step: the level's rule; element_rule: the same rule by name, where it is one that the Triton form knows.
    """

    weights: torch.Tensor
    initial: torch.Tensor
    moments: Moments
    accumulator: torch.Tensor
    num_steps: torch.Tensor
    gradient: torch.Tensor
    num_taught: torch.Tensor
    is_due: torch.Tensor
    max_update_norm: float
    norm_cap: float
    step: Step
    element_rule: ElementRule | None = None

    @property
    def accumulates(self) -> bool:
        """Whether gradients wait for the period to end."""
        return self.accumulator.shape[1] > 0


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: norm [B] of each row's change of weights, and whether the row was written [B]."""

    norm: torch.Tensor
    is_written: torch.Tensor


def clip_norm(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    """Scale down each row of gradient [B, P] whose norm passes `limit`."""
    norm = gradient.norm(dim=1, keepdim=True)
    scale: torch.Tensor = (limit / norm.clamp_min(1e-30)).clamp(max=1.0)
    return gradient * scale


def cap_drift(weights: torch.Tensor, initial: torch.Tensor, cap: float) -> torch.Tensor:
    """Pull weights [B, P] back towards initial [P] so that no row drifts further than `cap` (Frobenius norm)."""
    drift = weights - initial
    norm = drift.norm(dim=1, keepdim=True)
    return torch.where(norm > cap, initial + drift * (cap / norm.clamp_min(1e-30)), weights)
