"""What one evaluation consists of: cells (one training with its measurements) and their outcomes, kept as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Cell", "Facts", "Options", "Outcome", "Suite"]

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What `hope eval` was asked for.

    columns, parts: those to run, None for all. seeds: of training. lengths: test lengths in tokens, None for the task's
    own. steps: updates of each training, 0 for the task's own. out, work, weights: folders of reports, of finished
    cells, and of shipped weights. model, text: name or folder of a served model, and a text file, where a task has use
    for one. jobs: cells at once, one thread each. command: as it was typed.
    """

    task: str
    out: Path
    work: Path
    weights: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    columns: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    lengths: tuple[int, ...] | None = None
    steps: int = 0
    is_quick: bool = False
    is_fresh: bool = False
    keeps_weights: bool = False
    plots: bool = True
    jobs: int = 1
    device: str = "cpu"
    model: str = ""
    text: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of work: a part of the task, a column of its table, a seed, and all settings that decide the result."""

    part: str
    column: str
    seed: int
    settings: Facts = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How progress names it."""
        return f"{self.part} · {self.column} · seed {self.seed}"

    def file_name(self) -> str:
        """The name under which its outcome is kept; other settings have another name."""
        text = json.dumps([self.part, self.column, self.seed, self.settings], sort_keys=True, default=str)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell gave: a value for each condition, in the suite's unit; NaN where there is none.

    facts: what the report says besides: parameters, state bytes, updates, seconds, where the weights came from.
    """

    part: str
    column: str
    seed: int
    values: dict[str, float]
    facts: Facts

    def to_json(self) -> str:
        """One JSON object; numbers that JSON does not have become null."""
        return json.dumps(_finite(asdict(self)), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Read `to_json` back. Raises ValueError, KeyError or TypeError when the text is something else."""
        record = json.loads(text)
        values = {name: math.nan if value is None else float(value) for name, value in record["values"].items()}
        return cls(record["part"], record["column"], int(record["seed"]), values, dict(record["facts"]))


class Suite(Protocol):
    """A task of `hope eval`: its words for the report, its cells, and how one is run."""

    @property
    def name(self) -> str:
        """Its name on the command line and of its files."""
        ...

    @property
    def title(self) -> str:
        """The report's heading."""
        ...

    @property
    def about(self) -> str:
        """One or two sentences for the report."""
        ...

    @property
    def unit(self) -> str:
        """What the values are."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its table that may be chosen."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that may be chosen."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that a reader needs to judge the numbers."""
        ...

    def plan(self, options: Options, done: Sequence[Outcome]) -> list[Cell]:
        """Return the cells to run next, given those that are done; empty when the evaluation is complete.

        Raises ValueError, whose message lists what is valid, for options that cannot be met.
        """
        ...

    def run(self, cell: Cell, options: Options) -> Outcome:
        """Run one cell."""
        ...


def _finite(value: Any) -> Any:
    """The same tree with null for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
