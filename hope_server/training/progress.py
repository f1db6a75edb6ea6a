"""Shows how a training run goes: one live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hope_server.training.checkpoints import Progress as RunProgress

__all__ = ["LiveWatcher", "watch"]

_SECONDS_BETWEEN_LINES = 20.0
_SMOOTHING = 0.9


class LiveWatcher:
    """A Watcher that writes to a console."""

    def __init__(self, console: Console, bars: Progress, seconds_between_lines: float = _SECONDS_BETWEEN_LINES) -> None:
        self._console = console
        self._bars = bars
        self._bar: TaskID | None = None
        self._patience = seconds_between_lines
        self._last_line = float("-inf")
        self._loss_sum = self._weight = 0.0

    def step(self, progress: RunProgress, steps: int, metrics: Mapping[str, float]) -> None:
        """Show step, smoothed loss in nats, rate and speed."""
        self._loss_sum = _SMOOTHING * self._loss_sum + metrics["loss"]
        self._weight = _SMOOTHING * self._weight + 1
        speed = f"{metrics['tokens per second']:,.0f} tokens/s"
        text = (
            f"loss {self._loss_sum / self._weight:.4f}  lr {metrics['lr']:.2e}  length {metrics['length']:.0f}  {speed}"
        )
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = self._bars.add_task(text, total=steps)
            self._bars.update(self._bar, completed=progress.step, description=text)
        elif time.monotonic() - self._last_line >= self._patience or progress.step == steps:
            self._last_line = time.monotonic()
            self._say(f"step {progress.step:,} of {steps:,}  {text}")

    def evaluated(self, progress: RunProgress, metrics: Mapping[str, float]) -> None:
        """Show what was measured."""
        self._say(f"step {progress.step:,}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def saved(self, path: Path) -> None:
        """Show where the checkpoint is."""
        self._say(f"saved {path}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


@contextmanager
def watch(console: Console) -> Iterator[LiveWatcher]:
    """Yield a watcher that shows one run on `console`."""
    bars = Progress(
        TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bars:
        yield LiveWatcher(console, bars)
