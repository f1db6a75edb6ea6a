"""A run's report as one HTML page: the Markdown's tables, and plots inside the page, so that it needs no other host."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.report import Run, percentiles
from loadtests.sampler import Point, slope
from loadtests.shapes import users_at

_NUM_BINS = 30
_MIB = 2**20
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .7em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def page(run: Run, markdown: str) -> str:
    """Return the page."""
    plots = [
        ("Time to first token", lambda axes: _share_plot(axes, run, "ttft_ms", "seconds", 1e-3)),
        ("Time per output token", lambda axes: _share_plot(axes, run, "tpot_ms", "milliseconds", 1.0)),
        ("Turns and users", lambda axes: _load_plot(axes, run)),
        ("Server: resident memory", lambda axes: _memory_plot(axes, run)),
        ("Server: open files", lambda axes: _series_plot(axes, {"open files": run.samples.num_fds})),
        ("Server: turns and slots", lambda axes: _series_plot(axes, _gauges(run))),
    ]
    seconds = run.ended - run.began
    images = "\n".join(f"<h2>{title}</h2>\n{_image(draw, title, seconds)}" for title, draw in plots)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Load test {html.escape(run.name)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{markdown_to_html(markdown)}\n{images}\n</body></html>\n"
    )


def markdown_to_html(text: str) -> str:
    """Spell the little Markdown of our reports as HTML: headings, tables, list items, paragraphs."""
    out: list[str] = []
    rows: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
            continue
        if rows:
            out.append(_table(rows))
            rows = []
        if line.startswith("# "):
            out.append(f"<h1>{html.escape(line[2:])}</h1>")
        elif line.startswith("- "):
            out.append(f"<p>• {html.escape(line[2:])}</p>")
        elif line:
            out.append(f"<p>{html.escape(line)}</p>")
    return "\n".join(out)


def _table(rows: Sequence[str]) -> str:
    cells = [[html.escape(cell.strip()) for cell in row.strip("|").split("|")] for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in cells[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells[2:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _image(draw: Callable[[Axes], None], title: str, seconds: float) -> str:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("seconds since the start")
    axes.grid(alpha=0.3)
    draw(axes)
    axes.set_xlim(0, max(1.0, seconds))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize="small")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">'


def bins(points: Iterable[Point], seconds: float, num_bins: int = _NUM_BINS) -> list[tuple[float, list[float]]]:
    """Return the values of equal parts of the run: the middle of each part in seconds, and its values."""
    width = max(seconds, 1e-9) / num_bins
    found: list[list[float]] = [[] for _ in range(num_bins)]
    for at, value in points:
        if 0 <= at < seconds:
            found[min(num_bins - 1, int(at / width))].append(value)
    return [((index + 0.5) * width, values) for index, values in enumerate(found)]


def _points(run: Run, field: str, scale: float) -> list[Point]:
    answers = [answer for record in run.account.turns.values() for answer in record.answers]
    values: list[tuple[float, Any]] = [(answer.at - run.began, getattr(answer, field)) for answer in answers]
    return [(at, value * scale) for at, value in values if value is not None]


def _share_plot(axes: Axes, run: Run, field: str, unit: str, scale: float) -> None:
    parts = [part for part in bins(_points(run, field, scale), run.ended - run.began) if part[1]]
    for share in ("p50", "p95", "p99"):
        axes.plot([at for at, _ in parts], [percentiles(values)[share] for _, values in parts], label=share)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)


def _load_plot(axes: Axes, run: Run) -> None:
    seconds = run.ended - run.began
    parts = bins(_points(run, "total_ms", 1.0), seconds)
    width = seconds / len(parts)
    axes.plot([at for at, _ in parts], [len(values) / width for _, values in parts], label="answers a second")
    plan = run.plan
    users = [users_at(plan.shape, at, plan.seconds, plan.users) or 0 for at, _ in parts]
    other = axes.twinx()
    other.plot([at for at, _ in parts], users, color="gray", linestyle=":")
    other.set_ylabel("users wanted (dotted)")
    other.set_ylim(bottom=0)
    axes.set_ylim(bottom=0)


def _memory_plot(axes: Axes, run: Run) -> None:
    points = [(at, value / _MIB) for at, value in run.samples.rss_bytes]
    _series_plot(axes, {"resident memory": points})
    axes.set_ylabel("MiB")
    line = slope(points)
    if line is not None:
        axes.set_title(f"slope {line.per_hour:+.1f} MiB/h, {line.percent_per_hour:+.2f} %/h", fontsize="small")


def _series_plot(axes: Axes, series: dict[str, list[Point]]) -> None:
    for name, points in series.items():
        axes.plot([at for at, _ in points], [value for _, value in points], label=name)
    if any(series.values()):
        axes.set_ylim(bottom=0)


def _gauges(run: Run) -> dict[str, list[Point]]:
    names = ("hope_turns_running", "hope_turns_waiting", "hope_slots_hot", "hope_consolidation_jobs_waiting")
    return {name: run.samples.metrics.get(name, []) for name in names}
