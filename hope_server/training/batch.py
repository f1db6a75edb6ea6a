"""What the outer loop trains on: rows of tokens with what should follow each of them, and who makes such rows.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "Task"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to train or score on.

    tokens: [B, T] int64, what the model reads.
    targets: [B, T] int64, the token that should follow each position; or [B, T, V] float in {0, 1}, the set of tokens
        that may follow it.
    weights: [B, T] float, not negative: how much a position counts; 0 is not scored. A loss is the weighted mean.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.dtype != torch.long:
            raise ValueError(f"tokens are {self.tokens.dtype} of shape {tuple(self.tokens.shape)}; need int64 [B, T]")
        if self.weights.shape != self.tokens.shape or not self.weights.is_floating_point():
            raise ValueError(
                f"weights are {self.weights.dtype} {tuple(self.weights.shape)}; need float like the tokens"
            )
        if self.targets.shape[:2] != self.tokens.shape or self.targets.ndim > 3:
            raise ValueError(
                f"targets have shape {tuple(self.targets.shape)}; need [B, T] or [B, T, V] like the tokens"
            )
        if self.is_multi_hot != self.targets.is_floating_point():
            raise ValueError(f"targets of shape {tuple(self.targets.shape)} have the wrong kind {self.targets.dtype}")

    @property
    def is_multi_hot(self) -> bool:
        """Whether the targets are sets of tokens, [B, T, V], and not one token each."""
        return self.targets.ndim == 3

    def to(self, device: torch.device | str) -> Batch:
        """Return the same rows on `device`."""
        return Batch(self.tokens.to(device), self.targets.to(device), self.weights.to(device))

    def rows(self, start: int, stop: int) -> Batch:
        """Return the rows from `start` up to `stop`, as views."""
        return Batch(self.tokens[start:stop], self.targets[start:stop], self.weights[start:stop])

    def columns(self, start: int, stop: int) -> Batch:
        """Return the tokens from `start` up to `stop` of every row, as views."""
        return Batch(self.tokens[:, start:stop], self.targets[:, start:stop], self.weights[:, start:stop])


class Task(Protocol):
    """A source of rows. Everything that is drawn comes from the generator, so a seed makes a run repeatable."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens; every token is below it."""
        ...

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw `num_rows` rows of `length` tokens.

        Raises ValueError when the task cannot fill rows of that length.
        """
        ...
