"""The rates that a token is written with, shared by all memories of a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Gates:
    """Rates of C tokens, [..., C] each.

    lr: step size, 0 or more; log_retention: log of the share of the old memory that is kept, -5 to 0; momentum: share
    of the past surprise that is kept, 0 to 1, or None where there is none.
    """

    lr: torch.Tensor
    log_retention: torch.Tensor
    momentum: torch.Tensor | None = None

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Gates:
        """The same kinds of rates, each changed."""
        momentum = None if self.momentum is None else change(self.momentum)
        return Gates(change(self.lr), change(self.log_retention), momentum)

    def with_lr(self, lr: torch.Tensor) -> Gates:
        """The same rates with another step size."""
        return Gates(lr, self.log_retention, self.momentum)
