"""A network small enough to be trained in a test: a token's embedding, and a decaying sum of those before it."""

from __future__ import annotations

from typing import Any

import torch


class TinyNetwork:
    """A Network of 2 V D + 1 weights whose state is one vector a row."""

    def __init__(self, vocab_size: int, width: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._tensors = {
            name: (torch.randn(vocab_size, width, generator=generator) * 0.5).requires_grad_()
            for name in ("embed", "out")
        } | {"decay": torch.zeros(1, requires_grad=True)}

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The leaves."""
        return self._tensors

    def run(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Read tokens [B, T]; return logits [B, T, V] and the sum [B, D]."""
        inputs = self._tensors["embed"][tokens]
        share = torch.sigmoid(self._tensors["decay"])
        total = torch.zeros_like(inputs[:, 0]) if state is None else state
        sums = []
        for step in range(tokens.shape[1]):
            total = share * total + inputs[:, step]
            sums.append(total)
        return torch.stack(sums, 1) @ self._tensors["out"].T, total

    def detached(self, state: Any) -> Any:
        """The sum without its history."""
        return state.detach()


class CopyTask:
    """Random tokens; the token before is to be said. From row number `broken_at` on, weights are infinite."""

    def __init__(self, vocab_size: int = 7, broken_at: int | None = None) -> None:
        self.vocab_size = vocab_size
        self._broken_at = broken_at
        self.num_rows = 0

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Any:
        """Draw rows."""
        from hope_server.training.batch import Batch

        tokens = torch.randint(self.vocab_size, (num_rows, length), generator=generator)
        weights = torch.ones(num_rows, length)
        weights[:, 0] = 0
        self.num_rows += num_rows
        if self._broken_at is not None and self.num_rows > self._broken_at:
            weights *= torch.inf
        return Batch(tokens, tokens.roll(1, 1), weights)


class SilentWatcher:
    """A Watcher that keeps what it hears and calls `on_step` after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.paths: list[Any] = []
        self.on_step: Any = None

    def step(self, progress: Any, steps: int, metrics: Any) -> None:
        """Keep the loss."""
        self.losses.append(metrics["loss"])
        if self.on_step is not None:
            self.on_step(progress.step)

    def evaluated(self, progress: Any, metrics: Any) -> None:
        """Keep the measurement."""
        self.evaluations.append(dict(metrics))

    def saved(self, path: Any) -> None:
        """Keep the path."""
        self.paths.append(path)
