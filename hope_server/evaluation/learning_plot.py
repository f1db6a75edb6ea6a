"""Draws what `hope bench learning` found: shares beside their floors and aims, every seed a dot, and the baselines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hope_server.evaluation.learning_bench import Found
    from hope_server.evaluation.learning_report import Row

__all__ = ["draw_learning"]

_SHARES = ("recall", "paraphrase", "many", "delay", "lessons", "update")
_LONGEST_LABEL = 52


def draw_learning(rows: Sequence[Row], found: Found, path: Path) -> None:
    """Write the plot as PNG. Raises ImportError without matplotlib and OSError when the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [row for row in rows if row.part in _SHARES and row.aim is not None and not row.is_low_good]
    shown = [(row, _values(row, found)) for row in shares]
    shown = [(row, values) for row, values in shown if values]
    height = 1.2 + 0.42 * max(3, len(shown))
    figure = Figure(figsize=(12.5 if found.baselines else 8.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    count = 2 if found.baselines else 1
    _draw_shares(figure.add_subplot(1, count, 1), shown)
    if found.baselines:
        _draw_baselines(figure.add_subplot(1, count, 2), found)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_shares(axes: Any, shown: Sequence[tuple[Row, list[float]]]) -> None:
    for place, (row, values) in enumerate(reversed(shown)):
        axes.barh(place, statistics.median(values), height=0.55, color="C0", alpha=0.55)
        axes.plot(values, [place] * len(values), "o", ms=4, color="C0")
        for wanted, colour in ((row.floor, "C3"), (row.aim, "C2")):
            if wanted is not None:
                axes.plot([wanted, wanted], [place - 0.4, place + 0.4], color=colour, lw=2)
    names = [row.label for row, _ in reversed(shown)]
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.set_xlim(0, 1.05)
    axes.set_title("median, seeds as dots; floor red, aim green", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def _draw_baselines(axes: Any, found: Found) -> None:
    bars = {"HOPE Server": [values["rank_accuracy"] for values in found.parts.get("recall", {}).values()]}
    for name, by_seed in found.baselines.items():
        bars[name] = [values.get("rank_accuracy", math.nan) for values in by_seed.values()]
    known = {name: [value for value in values if math.isfinite(value)] for name, values in bars.items()}
    known = {name: values for name, values in known.items() if values}
    for place, values in enumerate(reversed(list(known.values()))):
        axes.barh(place, statistics.median(values), height=0.55, color="C1", alpha=0.6)
        axes.plot(values, [place] * len(values), "o", ms=4, color="C1")
    axes.set_yticks(range(len(known)), list(reversed(known)), fontsize=8)
    axes.set_xlim(0, 1.05)
    axes.set_title("rank accuracy of 8 beside other ways", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def _values(row: Row, found: Found) -> list[float]:
    each = (values.get(row.name, math.nan) for values in found.parts.get(row.part, {}).values())
    return [value for value in each if math.isfinite(value)]


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
