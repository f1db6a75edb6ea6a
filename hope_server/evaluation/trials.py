"""Suites of trials: each family is trained on each part of a task with each seed, then measured by probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from hope_server.evaluation.fit import FitSpec, Network, NetworkSpec, Probe, fit, measure
from hope_server.evaluation.outcome import Cell, Facts, Options, Outcome
from hope_server.evaluation.provenance import commit
from hope_server.evaluation.weights import fill, keep_weights, load_weights, weights_path
from hope_server.training.batch import Task

__all__ = ["QUICK_SEED", "Build", "Part", "TrialSuite", "choose_names"]

QUICK_SEED = 990_001
"""Draws the rows of quick runs; no training uses it."""

_QUICK_STEPS, _QUICK_FIT_SECONDS, _QUICK_MEASURE_SECONDS = 300, 26.0, 12.0
_QUICK_CELLS, _QUICK_ROWS = 8, 64


class Build(Protocol):
    """Makes a network with random slow weights for a column of the table."""

    def __call__(self, column: str, spec: NetworkSpec, vocab_size: int, seed: int, device: str) -> Network: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One task to train on, and how it is measured afterwards.

    lengths: of the training rows, in turn.
    """

    name: str
    task: Task
    lengths: tuple[int, ...]
    probes: tuple[Probe, ...]
    network: NetworkSpec
    fit: FitSpec


@dataclass(frozen=True, slots=True)
class TrialSuite:
    """A `Suite` of parts; `build` makes networks.

    defaults: the columns that run unless others are chosen. slow: those which, unless chosen, run with one seed.
    """

    name: str
    title: str
    about: str
    unit: str
    all_parts: tuple[Part, ...]
    columns: tuple[str, ...]
    defaults: tuple[str, ...]
    build: Build
    notes: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(part.name for part in self.all_parts)

    def plan(self, options: Options, done: Sequence[Outcome]) -> list[Cell]:
        """Return one cell for each chosen part, column and seed; when quick, those that fit into a minute."""
        if done:
            return []
        columns = choose_names("family", options.columns, self.columns, self.defaults)
        chosen = choose_names("part", options.parts, self.parts, self.parts)
        pairs = [(part, column) for part in self.all_parts if part.name in chosen for column in columns]
        if not options.is_quick:
            return [
                self._cell(part, column, seed, options)
                for part, column in pairs
                for seed in (options.seeds[:1] if column in self.slow and options.columns is None else options.seeds)
            ]
        if options.columns is None and options.parts is None:
            ready = [(part, column) for part, column in pairs if self._shipped(part, column, options)]
            pairs = ready or [
                (part, column) for part, column in pairs if part.name in chosen[: max(1, _QUICK_CELLS // len(columns))]
            ]
        num_trained = sum(self._shipped(part, column, options) is None for part, column in pairs)
        return [self._quick_cell(part, column, options, num_trained, len(pairs)) for part, column in pairs]

    def run(self, cell: Cell, options: Options) -> Outcome:
        """Train, or load what is shipped, and measure."""
        part = next(part for part in self.all_parts if part.name == cell.part)
        network = self.build(cell.column, part.network, part.task.vocab_size, cell.seed, options.device)
        shipped = self._shipped(part, cell.column, options) if options.is_quick else None
        spec = FitSpec(**cell.settings["fit"])
        if shipped is None:
            fitted = fit(network, part.task, part.lengths, spec, cell.seed)
            readout, facts = fitted.readout, self._fit_facts(fitted.steps, fitted.losses, fitted.seconds, spec)
            if fitted.is_diverged:
                facts["note"] = f"diverged after {fitted.steps} steps"
            elif not options.is_quick:
                self._keep(cell, network.tensors() | readout, facts, options)
        else:
            readout, facts = self._load(part, network, shipped)
        values: dict[str, float] = {}
        for probe in _probes(part, options):
            values |= measure(network, probe, cell.seed, readout, cell.settings["measure_seconds"])
        return Outcome(cell.part, cell.column, cell.seed, values, facts | _size_facts(network))

    def _cell(self, part: Part, column: str, seed: int, options: Options) -> Cell:
        spec = replace(part.fit, steps=options.steps or part.fit.steps)
        return Cell(part.name, column, seed, self._settings(part, spec, options) | {"measure_seconds": math.inf})

    def _quick_cell(self, part: Part, column: str, options: Options, num_trained: int, num_cells: int) -> Cell:
        seconds = _QUICK_FIT_SECONDS / max(1, num_trained)
        steps = min(options.steps or _QUICK_STEPS, part.fit.steps)
        settings = self._settings(part, replace(part.fit, steps=steps, max_seconds=seconds), options)
        share = _QUICK_MEASURE_SECONDS / num_cells / len(part.probes)
        return Cell(part.name, column, QUICK_SEED, settings | {"measure_seconds": share})

    def _settings(self, part: Part, spec: FitSpec, options: Options) -> Facts:
        return {
            "task": repr(part.task),
            "lengths": part.lengths,
            "network": asdict(part.network),
            "fit": asdict(spec),
            "probes": [repr(probe) for probe in _probes(part, options)],
            "is_quick": options.is_quick,
        }

    def _shipped(self, part: Part, column: str, options: Options) -> Path | None:
        path = weights_path(options.weights, self.name, part.name, column)
        return path if path.is_file() else None

    def _load(self, part: Part, network: Network, path: Path) -> tuple[dict[str, torch.Tensor], Facts]:
        shipped = load_weights(path)
        readout = {name: tensor for name, tensor in shipped.tensors.items() if name.startswith("readout.")}
        fill(
            network.tensors() | {name: torch.empty_like(tensor) for name, tensor in readout.items()}, shipped, path.stem
        )
        facts = shipped.facts
        origin = f"shipped: seed {facts['seed']}, {facts['steps']} steps, commit {facts['commit']}"
        return readout, {"steps": facts["steps"], "seconds": 0.0, "weights": origin}

    def _keep(self, cell: Cell, tensors: dict[str, torch.Tensor], facts: Facts, options: Options) -> None:
        path = options.work / self.name / cell.file_name()
        record = {"seed": cell.seed, "steps": facts["steps"], "commit": commit(), "settings": cell.settings}
        keep_weights(path.with_suffix(".safetensors"), tensors, record)

    @staticmethod
    def _fit_facts(steps: int, losses: list[float], seconds: float, spec: FitSpec) -> Facts:
        tail = losses[-50:]
        origin = "trained here" if steps >= spec.steps or spec.max_seconds == math.inf else "trained here, cut by time"
        return {"steps": steps, "seconds": seconds, "loss": sum(tail) / len(tail), "weights": origin}


def choose_names(
    what: str, asked: tuple[str, ...] | None, valid: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the chosen names in the order of `valid`. Raises ValueError, which lists the valid ones."""
    for name in asked or ():
        if name not in valid:
            raise ValueError(f"there is no {what} {name!r} here; valid are {', '.join(valid)}")
    return tuple(name for name in valid if name in (default if asked is None else asked))


def _probes(part: Part, options: Options) -> list[Probe]:
    if not options.is_quick:
        return list(part.probes)
    return [replace(probe, num_rows=min(probe.num_rows, _QUICK_ROWS)) for probe in part.probes]


def _size_facts(network: Network) -> Facts:
    num_params = sum(tensor.numel() for tensor in network.tensors().values())
    return {"parameters": num_params, "state bytes": network.state_bytes}
