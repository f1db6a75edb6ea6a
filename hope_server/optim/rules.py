"""The common form of an update rule, pure: gradient and state in, change of weights and new state out.

Rows never interact: a row may be a session, a head or the one matrix that a training run owns.
Shapes: B rows; then any shape for an element-wise rule, a matrix [m, n] in the last two dimensions for a matrix rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

State = dict[str, torch.Tensor]
"""What a rule remembers, by name, every tensor with the row dimension first. Zeros are the state that saw nothing."""


@dataclass(frozen=True, slots=True)
class UpdateRule(ABC):
    """An update rule with its hyperparameters. lr: step size (NL's eta), 0 or more."""

    lr: float

    @property
    def needs_matrix(self) -> bool:
        """Whether the rule works on matrices [B, m, n] only."""
        return False

    @abstractmethod
    def init(self, params: torch.Tensor) -> State:
        """The state, all zeros, for params [B, ...] of which no gradient was seen; only shape and dtype are read."""

    @abstractmethod
    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Return the change to add to the weights [B, ...], and the new state; the arguments are left as they were.

        gradient [B, ...]: of the loss; num_steps [B]: counts this step in each row, from 1.
        weights [B, ...]: read by rules with weight decay alone; ValueError where one needs them and they are missing.
        """


def counts_like(num_steps: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """num_steps [B] as [B, 1, ...] in the dtype of `tensor` [B, ...]."""
    counts: torch.Tensor = num_steps.view(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype)
    return counts


def row_norm(tensor: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row of [B, ...], as [B, 1, ...]."""
    norm: torch.Tensor = tensor.unsqueeze(-1).flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
    return norm


def unit_rms(tensor: torch.Tensor) -> torch.Tensor:
    """Each row of [B, ...] scaled to a root mean square of 1; a row of zeros stays zero."""
    size = tensor[0].numel() if len(tensor) else 1
    norm = row_norm(tensor)
    scale: torch.Tensor = size**0.5 / torch.where(norm > 0, norm, torch.ones_like(norm))
    return tensor * scale


def smooth_root(squares: torch.Tensor) -> torch.Tensor:
    """The root of squares, 0 or more, as a level's step takes it, which may be differentiated.

    The slope of a root has no limit at 0, where a weight without gradient stands; squares below 1e-32 count as that,
    and its root is far below every epsilon.
    """
    return squares.clamp_min(1e-32).sqrt()
