"""What a training run tells: metrics as JSON lines, as TensorBoard events, and as a plot of the loss.

TensorBoard events need tensorboardX, plots need matplotlib: both come with the extra `plots`, and are left out without.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MetricsLog", "missing_extras", "plot_losses", "read_metrics"]

METRICS_FILE, PLOT_FILE = "metrics.jsonl", "loss.png"
_EXTRAS = ("tensorboardX", "matplotlib")


def missing_extras() -> tuple[str, ...]:
    """Return the optional packages for events and plots that are not installed."""
    return tuple(name for name in _EXTRAS if importlib.util.find_spec(name) is None)


class MetricsLog:
    """Writes the metrics of one run below a folder; a resumed run goes on in the same files."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Open the log; lines of steps after `first_step`, which a resumed run makes again, are dropped.

        Raises OSError when the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE
        kept = [line for line in read_metrics(self._path) if line["step"] <= first_step] if first_step else []
        self._file = self._path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(line) + "\n" for line in kept)
        self._events = _event_writer(folder / "events", first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step; what is not finite becomes null in JSON."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; one that was cut off while it was written is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def plot_losses(metrics: list[dict[str, Any]], title: str, path: Path) -> bool:
    """Draw training loss, smoothed, and evaluated losses over steps as a PNG; False without matplotlib or data."""
    losses = [(line["step"], line["loss"]) for line in metrics if line.get("loss") is not None]
    if not losses or "matplotlib" in missing_extras():
        return False
    figure_type = importlib.import_module("matplotlib.figure").Figure
    figure = figure_type(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [step for step, _ in losses]
    axes.plot(steps, [loss for _, loss in losses], color="0.8", linewidth=0.8, label="loss of a step")
    axes.plot(steps, _smoothed([loss for _, loss in losses]), label="smoothed")
    evaluated = [(line["step"], line["eval loss"]) for line in metrics if line.get("eval loss") is not None]
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), marker="o", markersize=3, label="on rows not trained on")
    axes.set(xlabel="step", ylabel="loss (nats)", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


def _smoothed(values: list[float], share: float = 0.95) -> list[float]:
    smooth, weight, out = 0.0, 0.0, []
    for value in values:
        smooth = share * smooth + (1 - share) * value
        weight = share * weight + (1 - share)
        out.append(smooth / weight)
    return out


def _event_writer(folder: Path, first_step: int) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    writer = importlib.import_module("tensorboardX").SummaryWriter
    return writer(str(folder), purge_step=first_step + 1 if first_step else None)
