"""What can end a training run besides wrong settings.

HopeError
└── TrainingDiverged    training_diverged    NaN or infinite loss or gradient: `step`, `what`, `checkpoint`
"""

from __future__ import annotations

from pathlib import Path

from hope_server.errors import HopeError

__all__ = ["TrainingDiverged"]


class TrainingDiverged(HopeError):
    """The loss or the gradient is NaN or infinite; the weights of the last good checkpoint are as they were."""

    code = "training_diverged"

    def __init__(self, step: int, what: str, checkpoint: Path | None) -> None:
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been written yet"
        super().__init__(
            f"the {what} is not finite at step {step:,}; {kept}; use a smaller lr, or clip the gradient more"
        )
        self.step = step
        self.what = what
        self.checkpoint = checkpoint
