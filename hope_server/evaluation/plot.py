"""Draws an evaluation's outcomes: a panel for each part, a line for each family, bars for the spread over seeds."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hope_server.evaluation.outcome import Outcome, Suite

__all__ = ["draw_plot"]

_PANELS_A_ROW, _PANEL_INCHES = 3, (4.2, 3.4)
_LONGEST_LINE = 40
_TILTED_FROM = 4


def draw_plot(suite: Suite, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the plot as PNG. Raises ImportError without matplotlib and OSError when the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(outcome.part for outcome in outcomes))
    wide = min(_PANELS_A_ROW, len(parts))
    high = math.ceil(len(parts) / wide)
    figure = Figure(figsize=(_PANEL_INCHES[0] * wide, _PANEL_INCHES[1] * high), layout="constrained")
    FigureCanvasAgg(figure)
    for index, part in enumerate(parts):
        axes = figure.add_subplot(high, wide, index + 1)
        _draw_panel(axes, suite, part, [outcome for outcome in outcomes if outcome.part == part])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_panel(axes: Any, suite: Suite, part: str, outcomes: Sequence[Outcome]) -> None:
    conditions = list(dict.fromkeys(name for outcome in outcomes for name in outcome.values))
    for number, column in enumerate(suite.columns):
        rows = [outcome for outcome in outcomes if outcome.column == column]
        if not rows:
            continue
        points = []
        for place, condition in enumerate(conditions):
            values = [row.values[condition] for row in rows if math.isfinite(row.values.get(condition, math.nan))]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                points.append((place, statistics.fmean(values), spread))
        places, means, spreads = zip(*points, strict=True) if points else ((), (), ())
        axes.errorbar(places, means, yerr=spreads, label=column, color=f"C{number}", marker="o", ms=4, capsize=2)
    axes.set_title(part, fontsize=10)
    axes.set_ylabel(textwrap.fill(suite.unit, _LONGEST_LINE), fontsize=8)
    tilt = {"rotation": 30, "ha": "right"} if len(conditions) >= _TILTED_FROM else {}
    axes.set_xticks(range(len(conditions)), conditions, fontsize=8, **tilt)
    axes.grid(alpha=0.3)
