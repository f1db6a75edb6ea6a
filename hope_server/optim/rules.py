"""Inner update rules over flat weights, one row a session: gradient in, change of weights out.

Shapes: B rows, P weights. Every tensor is [B, P]; a rule that keeps no moment gets and returns [B, 0].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Rule = Literal["sgd", "momentum", "adam"]


@dataclass(frozen=True, slots=True)
class Moments:
    """What a rule remembers of past gradients: running sums of the gradient and of its square."""

    first: torch.Tensor
    second: torch.Tensor


def step(
    rule: Rule,
    gradient: torch.Tensor,
    moments: Moments,
    num_steps: torch.Tensor,
    lr: float,
    betas: tuple[float, float],
) -> tuple[torch.Tensor, Moments]:
    """Return the change of the weights for one gradient [B, P], and the new moments.

    num_steps [B] counts this step, from 1. betas are the shares of the past kept in the first and second moment.
    Source: `sgd` plain gradient descent; `momentum` NL eq. 33 in its decayed form; `adam` NL eq. 101-105.
    """
    if rule == "sgd":
        return -lr * gradient, moments
    first = betas[0] * moments.first + (1 - betas[0]) * gradient
    count = num_steps[:, None].to(gradient.dtype)
    if rule == "momentum":
        return -lr * first / (1 - betas[0] ** count), Moments(first, moments.second)
    second = betas[1] * moments.second + (1 - betas[1]) * gradient.square()
    root = (second / (1 - betas[1] ** count)).sqrt_().add_(1e-8)
    return -lr * (first / (1 - betas[0] ** count)).div_(root), Moments(first, second)


def cap_drift(weights: torch.Tensor, initial: torch.Tensor, cap: float) -> torch.Tensor:
    """Pull weights [B, P] back towards initial [P] so that no row drifts further than `cap` (Frobenius norm)."""
    drift = weights - initial
    norm = drift.norm(dim=1, keepdim=True)
    return torch.where(norm > cap, initial + drift * (cap / norm.clamp_min(1e-30)), weights)


def clip_norm(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    """Scale down each row of gradient [B, P] whose norm passes `limit`."""
    norm = gradient.norm(dim=1, keepdim=True)
    scale: torch.Tensor = (limit / norm.clamp_min(1e-30)).clamp(max=1.0)
    return gradient * scale
