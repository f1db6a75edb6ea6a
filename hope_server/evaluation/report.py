"""Writes what an evaluation found: a page with a table, the raw numbers as JSON, and a plot."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hope_server.errors import StartupError
from hope_server.evaluation.outcome import Facts, Options, Outcome, Suite

__all__ = ["Report", "check_plots", "table", "write_report"]

_NO_VALUE = "–"


@dataclass(frozen=True, slots=True)
class Report:
    """A finished evaluation. commit, hardware: where the numbers come from. wall_seconds: of this run."""

    suite: Suite
    options: Options
    outcomes: Sequence[Outcome]
    commit: str
    hardware: str
    wall_seconds: float

    @property
    def name(self) -> str:
        """The name of the files: the task's, with `-quick` behind it for a quick run."""
        return f"{self.suite.name}-quick" if self.options.is_quick else self.suite.name


def check_plots() -> None:
    """Raise StartupError when plots cannot be made, before hours are spent on what they show."""
    if find_spec("matplotlib") is None:
        raise StartupError("plots need matplotlib; install it with `pip install hope-server[plots]`, or add --no-plot")


def write_report(report: Report) -> list[Path]:
    """Write NAME.md, NAME.json and, unless switched off, NAME.png into the folder of reports; return their paths.

    Raises StartupError when the folder cannot be written.
    """
    folder = report.options.out
    paths = [folder / f"{report.name}.{ending}" for ending in ("md", "json")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(page(report), encoding="utf-8")
        paths[1].write_text(raw(report), encoding="utf-8")
        if report.options.plots:
            from hope_server.evaluation.plot import draw_plot

            paths.append(folder / f"{report.name}.png")
            draw_plot(report.suite, report.outcomes, paths[2])
    except OSError as exc:
        raise StartupError(f"the report cannot be written to {folder} ({exc.strerror}); choose another --out") from exc
    return paths


def page(report: Report) -> str:
    """Return the report as Markdown."""
    suite, options = report.suite, report.options
    lines = [f"# {suite.title}", "", suite.about, ""]
    if options.is_quick:
        lines += ["**A quick run**: fewer rows, one seed; where a family was trained here it was for seconds only.", ""]
    lines += [f"Values: {suite.unit}; mean ± standard deviation over the seeds where there are several.", ""]
    lines += [*table(suite, report.outcomes), ""]
    if options.plots:
        lines += [f"![{suite.title}]({report.name}.png)", ""]
    lines += ["## Sizes and training", "", *_facts_table(report), "", "## How it was run", ""]
    lines += [f"- {note}" for note in [*suite.notes, *_odd_cells(report.outcomes), *_run_notes(report)]]
    return "\n".join(lines) + "\n"


def raw(report: Report) -> str:
    """Return everything as JSON: the run, and each outcome with its facts."""
    options = report.options
    record = {
        "task": report.suite.name,
        "unit": report.suite.unit,
        "is_quick": options.is_quick,
        "seeds": sorted({outcome.seed for outcome in report.outcomes}),
        "commit": report.commit,
        "hardware": report.hardware,
        "command": options.command,
        "wall_seconds": round(report.wall_seconds, 1),
        "outcomes": [json.loads(outcome.to_json()) for outcome in report.outcomes],
    }
    return json.dumps(record, indent=1) + "\n"


def table(suite: Suite, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines of a Markdown table: a row for each part and condition, a column for each family."""
    columns = [column for column in suite.columns if any(outcome.column == column for outcome in outcomes)]
    lines = [_row(["", "", *columns]), _row(["---", "---", *["---:"] * len(columns)])]
    for part in _unique(outcome.part for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.part == part]
        for index, condition in enumerate(_unique(name for outcome in rows for name in outcome.values)):
            cells = [
                _cell([row.values[condition] for row in rows if row.column == column and condition in row.values])
                for column in columns
            ]
            lines.append(_row(["" if index else part, condition, *cells]))
    return lines


def _cell(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "failed" if values else _NO_VALUE
    failed = f" ({len(values) - len(known)} failed)" if len(known) < len(values) else ""
    mean = statistics.fmean(known)
    spread = f" ± {_number(statistics.stdev(known), mean)}" if len(known) > 1 else ""
    return f"{_number(mean, mean)}{spread}{failed}"


def _number(value: float, beside: float) -> str:
    """A value with as many decimals as the one that it stands beside needs for two or three digits."""
    if abs(beside) >= 1000:
        return f"{value:,.0f}"
    if 1 <= abs(beside) < 10:
        return f"{value:.2f}"
    return f"{value:.2g}" if value and abs(beside) < 1 else f"{value:.1f}"


def _facts_table(report: Report) -> list[str]:
    names = [
        name
        for name in ("parameters", "state bytes", "steps", "seconds", "loss", "lr")
        if any(name in outcome.facts for outcome in report.outcomes)
    ]
    lines = [_row(["", "", *names, "weights"]), _row(["---", "---", *["---:"] * len(names), "---"])]
    for part in _unique(outcome.part for outcome in report.outcomes):
        for column in report.suite.columns:
            found = [each.facts for each in report.outcomes if (each.part, each.column) == (part, column)]
            if found:
                origin = "; ".join(_unique(str(facts.get("weights", "")) for facts in found))
                lines.append(_row([part, column, *(_mean_fact(found, name) for name in names), origin]))
    return lines


def _mean_fact(found: list[Facts], name: str) -> str:
    values = [float(facts[name]) for facts in found if isinstance(facts.get(name), int | float)]
    if not values:
        return _NO_VALUE
    mean = statistics.fmean(values)
    return f"{mean:,.0f}" if name in ("parameters", "state bytes", "steps", "seconds") else f"{mean:.3g}"


def _odd_cells(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        f"{outcome.part}, {outcome.column}, seed {outcome.seed}: {outcome.facts['note']}"
        for outcome in outcomes
        if outcome.facts.get("note")
    ]


def _run_notes(report: Report) -> list[str]:
    seeds = sorted({outcome.seed for outcome in report.outcomes})
    commits = _unique(str(outcome.facts.get("commit", report.commit)) for outcome in report.outcomes)
    total = math.fsum(float(outcome.facts.get("cell seconds", 0.0)) for outcome in report.outcomes)
    return [
        f"Seeds: {', '.join(map(str, seeds))}. Commit: {', '.join(commits)}.",
        f"Hardware: {report.hardware}; one thread a job, {report.options.jobs} at once, on {report.options.device}.",
        f"Command: `{report.options.command}`",
        f"Wall time: {report.wall_seconds:,.0f} s for this run, {total:,.0f} s for all its cells"
        " (those finished earlier are not run again).",
        f"Raw numbers and every setting: `{report.name}.json`.",
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
