"""Writes what `hope bench learning` found: medians over seeds beside floors and aims, a page, raw numbers, a plot."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from hope_server.errors import StartupError
from hope_server.evaluation.learning_bench import Found, LearningOptions, settings_of
from hope_server.evaluation.learning_room import Values
from hope_server.evaluation.learning_trials import Sizes
from hope_server.evaluation.provenance import commit, hardware

__all__ = ["Row", "lines", "rows", "summary", "write_learning_report"]

_NO_VALUE = "–"
NAME = "learning"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: which value of which part it is, and what is wanted of it.

    key: its name in the last line of `--json`, empty for a line that is only in the table. floor, aim: None where the
    value is only reported. is_low_good: whether less is better. digits: decimals that are shown.
    """

    label: str
    part: str
    name: str
    key: str = ""
    floor: float | None = None
    aim: float | None = None
    is_low_good: bool = False
    digits: int = 2

    def verdict(self, value: float) -> str:
        """Return `aim`, `floor` or `missed`: the best that a value reaches; nothing for what is only reported."""
        if not math.isfinite(value) or self.aim is None:
            return ""
        return next(
            (
                name
                for name, wanted in (("aim", self.aim), ("floor", self.floor))
                if wanted is not None and (value <= wanted if self.is_low_good else value >= wanted)
            ),
            "missed",
        )


def rows(sizes: Sizes) -> list[Row]:
    """Return the lines of the table for a run of these sizes."""
    n, few, many = sizes.facts, sizes.fewer, sizes.many
    kept = {2_048: "", 8_192: "kept_after_8k", 32_768: ""}
    part, quarter = f"{n} facts told in chat turns", max(2, n // 4)
    out = [
        Row(f"{part}: rank accuracy of 8", "recall", "rank_accuracy", "rank_accuracy_32", 0.97, 1.0),
        Row("the same, exact match of the free answer", "recall", "exact", "exact_match_32", 0.90, 1.0),
        Row("the same, nats per token of the answer", "recall", "logprob"),
        Row("paraphrased questions: rank accuracy", "paraphrase", "rank_accuracy", "paraphrase_32", 0.80, 0.95),
        Row("the same, exact match of the free answer", "paraphrase", "exact"),
        Row(f"{many} facts by `learn`: rank accuracy", "many", "rank_accuracy", "rank_accuracy_128", 0.85, 0.98),
        Row("the same, exact match of the free answer", "many", "exact"),
        Row("the same, seconds of learning", "many", "seconds", digits=0),
    ]
    for delay in sizes.delays:
        label = f"share of it kept after {delay:,} tokens of unrelated reading"
        wanted = (0.9, 1.0) if delay == 8_192 else (None, None)
        out.append(Row(label, "delay", f"kept_{delay}", kept.get(delay, ""), *wanted))
    lessons = f"four lessons of {sizes.lesson} facts: the first one at the end, rank accuracy"
    out += [
        Row(lessons, "lessons", "first", "first_lesson_kept", 0.95, 1.0),
        Row("the same, all lessons", "lessons", "all"),
        Row(f"{quarter} of {n} facts updated: new value wins", "update", "updated", "updated_facts", 0.85, 1.0),
        Row("the same, the facts that were not updated", "update", "others"),
        Row("loss on unrelated text, mean, %", "damage", "mean", "unrelated_loss_change_percent", 1.5, 0.0, True),
        Row("multiple-choice sets, mean change, points", "choices", "mean", "choice_accuracy_change_points", -1.0, 0.0),
        Row("never-taught facts: top candidate rises by", "false_memory", "rise", "false_memory", 0.05, 0.0, True, 3),
        Row("bytes of memories and levels", "recall", "state_bytes", "state_bytes", 8e6, 2e6, True, 0),
        Row(
            "seconds of learning for a chat turn of 60 words",
            "cost",
            "learn_seconds_per_turn",
            "learn_seconds_per_turn",
            10.0,
            2.0,
            True,
            1,
        ),
        Row("seconds that a turn takes longer than a stateless one", "cost", "added_latency_seconds"),
        Row(f"{n} facts in a list, one pass: tokens/s learned", "cost", "one_pass_tokens_per_second", digits=1),
        Row("the same, rank accuracy", "cost", "one_pass"),
    ]
    for count in dict.fromkeys((few, n)):
        for how, words in (("list", "in a list by `learn`"), ("prose", "in prose by `learn`"), ("chat", "in a chat")):
            if (how, count) != ("chat", n):
                start = f"{how}_{count}"
                out.append(Row(f"{count} facts told {words}: rank accuracy", "tellings", f"{start}_rank_accuracy"))
                out.append(Row("the same, exact match of the free answer", "tellings", f"{start}_exact"))
                if how != "chat":
                    rate = f"{start}_tokens_per_second"
                    out.append(Row("the same, tokens/s learned thoroughly", "tellings", rate, digits=1))
    return out


_NAMES = {
    "no_memory": "no memory",
    "in_prompt": "everything said in the prompt",
    "retrieval": "retrieval into the prompt: all-MiniLM-L6-v2, 4 statements",
    "plain_sgd": "plain test-time SGD: one online pass",
    "fine_tuning": "fine-tuning of every weight: transformers, AdamW",
    "sillage": "sillage 1.9.2: three readings",
}
_COLUMNS = {
    "rank_accuracy": "rank accuracy",
    "logprob": "nats per token",
    "exact": "exact",
    "paraphrase": "paraphrased, rank",
    "loss_change_percent": "unrelated loss, %",
    "state_bytes": "bytes",
    "seconds": "seconds to learn",
}


def values_of(row: Row, found: Found) -> list[float]:
    """Return a row's finite values over the seeds."""
    each = (values.get(row.name, math.nan) for values in found.parts.get(row.part, {}).values())
    return [value for value in each if math.isfinite(value)]


def summary(options: LearningOptions, found: Found) -> dict[str, float | int | str | None]:
    """Return the object of `--json`: medians over seeds by key, None where a part was left out; then what it was of."""
    out: dict[str, float | int | str | None] = {}
    for row in rows(options.sizes):
        if row.key:
            values = values_of(row, found)
            out[row.key] = _plain(statistics.median(values), row.digits) if values else None
    out.setdefault("kept_after_8k", None)
    return {
        **out,
        "num_facts": options.sizes.facts,
        "num_facts_many": options.sizes.many,
        "num_seeds": len(options.seeds),
        "is_quick": options.is_quick,
    }


def _plain(value: float, digits: int) -> float | int:
    return round(value, 6) if digits else round(value)


def lines(options: LearningOptions, found: Found) -> list[str]:
    """Return the tables as lines of Markdown, with a line for each thing that was left out."""
    names = ["measure", "median", "over seeds", "floor", "aim", ""]
    out = [_line(names), _line(["---", "---:", "---", "---:", "---:", "---"])]
    for row in rows(options.sizes):
        values = values_of(row, found)
        if row.part not in found.parts:
            continue
        median = statistics.median(values) if values else math.nan
        spread = f"{_number(min(values), row)} to {_number(max(values), row)}" if len(values) > 1 else ""
        cells = [row.label, _number(median, row), spread, _wanted(row, row.floor), _wanted(row, row.aim)]
        out.append(_line([*cells, row.verdict(median)]))
    if found.baselines:
        out += ["", *_baseline_lines(options, found)]
    if found.missing:
        out += ["", *(f"- left out: {each}" for each in found.missing)]
    return out


def _baseline_lines(options: LearningOptions, found: Found) -> list[str]:
    out = [
        _line([f"{options.sizes.facts} facts, medians over seeds", *_COLUMNS.values()]),
        _line(["---", *["---:"] * len(_COLUMNS)]),
    ]
    ours: dict[int, Values] = {}
    renamed = (
        ("recall", "rank_accuracy", "rank_accuracy"),
        ("recall", "logprob", "logprob"),
        ("recall", "exact", "exact"),
        ("recall", "state_bytes", "state_bytes"),
        ("recall", "teach_seconds", "seconds"),
        ("paraphrase", "rank_accuracy", "paraphrase"),
        ("damage", "mean", "loss_change_percent"),
    )
    for part, name, column in renamed:
        for seed, values in found.parts.get(part, {}).items():
            ours.setdefault(seed, {})[column] = values.get(name, math.nan)
    for name, by_seed in {"HOPE Server, told in a chat": ours, **found.baselines}.items():
        cells = [_median(column, by_seed.values()) for column in _COLUMNS]
        if by_seed:
            out.append(_line([_NAMES.get(name, name), *cells]))
    return out


def _median(column: str, found: Iterable[Values]) -> str:
    values = [each[column] for each in found if math.isfinite(each.get(column, math.nan))]
    if not values:
        return _NO_VALUE
    median = statistics.median(values)
    return f"{median:,.0f}" if column in ("state_bytes", "seconds") else f"{median:.2f}"


def _wanted(row: Row, wanted: float | None) -> str:
    if wanted is None:
        return ""
    return f"{'≤' if row.is_low_good else '≥'} {_number(wanted, row)}"


def _number(value: float, row: Row) -> str:
    return f"{value:,.{row.digits}f}" if math.isfinite(value) else _NO_VALUE


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(options: LearningOptions, found: Found, *, has_plot: bool) -> str:
    """Return the report as Markdown."""
    sizes = options.sizes
    kind = (
        "**A quick run**: fewer facts, one seed; it shows that everything works, and no more.\n\n"
        if (options.is_quick)
        else ""
    )
    where = f"the server at {options.url}" if options.url else "a server of its own"
    notes = [
        "Facts are invented anew for each seed (`learning_facts.py`); every question is asked of the weights alone,"
        " over HTTP, with the attention window emptied and nothing of what was told in the request.",
        "Rank accuracy: the right answer of eight has the highest mean log-probability per token; ties count as wrong."
        f" Free answers: greedy, {sizes.free} at most in one measure.",
        f"Damage: {sizes.windows} windows of each of five held-out texts, and {sizes.choices} items of each"
        " multiple-choice set, the same before and after.",
        f"Seeds: {', '.join(map(str, options.seeds))}. Commit: {commit()}. Measured on {where}.",
        f"Hardware: {hardware('cpu')}. Settings: {_settings()}.",
        f"Command: `{options.command}`",
        f"Wall time of this run: {found.wall_seconds:,.0f} s; parts that were finished earlier are not run again.",
        f"Raw numbers: `{report_name(options)}.json`.",
    ]
    plot = f"![What was learned]({report_name(options)}.png)\n\n" if has_plot else ""
    body = "\n".join(lines(options, found))
    return f"# What a session learns\n\n{kind}{body}\n\n{plot}" + "\n".join(f"- {note}" for note in notes) + "\n"


def _settings() -> str:
    given = settings_of(os.environ)
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "the defaults"


def report_name(options: LearningOptions) -> str:
    """Return the name of the files."""
    return f"{NAME}-quick" if options.is_quick else NAME


def write_learning_report(options: LearningOptions, found: Found) -> list[Path]:
    """Write page, raw numbers and, where matplotlib is there, a plot; return their paths.

    Raises StartupError when the folder cannot be written.
    """
    has_plot = find_spec("matplotlib") is not None and any(values_of(row, found) for row in rows(options.sizes))
    paths = [options.out / f"{report_name(options)}.{ending}" for ending in ("md", "json", "png")]
    record = {
        "summary": summary(options, found),
        "commit": commit(),
        "hardware": hardware("cpu"),
        "settings": settings_of(os.environ),
        "command": options.command,
        "seeds": options.seeds,
        "sizes": asdict(options.sizes),
        "parts": found.parts,
        "baselines": found.baselines,
        "missing": found.missing,
        "wall_seconds": round(found.wall_seconds, 1),
    }
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(page(options, found, has_plot=has_plot), encoding="utf-8")
        paths[1].write_text(json.dumps(_finite(record), indent=1) + "\n", encoding="utf-8")
        if has_plot:
            from hope_server.evaluation.learning_plot import draw_learning

            draw_learning(rows(options.sizes), found, paths[2])
    except OSError as exc:
        raise StartupError(
            f"the report cannot be written to {options.out} ({exc.strerror}); choose another --out"
        ) from exc
    return paths if has_plot else paths[:2]


def _finite(value: object) -> object:
    """The same tree with null for every number that is not finite."""
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
