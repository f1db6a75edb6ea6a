"""Comparison of outer optimizers: the same small hope network, the same text, equal steps, each with its best lr.

First every lr of an optimizer's grid is tried with a seed of its own, then the best is run with the report's seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from hope_server.evaluation.fit import FitSpec, MakeOptimizer, NetworkSpec, Probe, fit, measure
from hope_server.evaluation.outcome import Cell, Facts, Options, Outcome
from hope_server.evaluation.trials import QUICK_SEED, Build, choose_names
from hope_server.optim.outer import make_optimizer
from hope_server.training.batch import Batch, Task

__all__ = ["OPTIMIZERS", "OptimizerSuite", "Tuned"]

TUNING_SEED = 77_000
_FINAL, _TUNING = "final", "tuning"
_CHECKPOINTS = 4
_QUICK_STEPS = 16


@dataclass(frozen=True, slots=True)
class Tuned:
    """An optimizer: its rule in `hope_server.optim`, and the lr's to choose from."""

    rule: str
    lrs: tuple[float, ...]


OPTIMIZERS = {
    "AdamW": Tuned("adamw", (4e-3, 8e-3, 1.6e-2, 3.2e-2)),
    "Muon": Tuned("muon", (5e-3, 1e-2, 2e-2, 4e-2)),
    "M3": Tuned("m3", (5e-3, 1e-2, 2e-2, 4e-2)),
    "Delta momentum": Tuned("delta_momentum", (1e-3, 3e-3, 1e-2, 3e-2)),
    "DMGD": Tuned("deep_momentum", (1e-3, 3e-3, 1e-2, 3e-2)),
}


@dataclass(frozen=True, slots=True)
class OptimizerSuite:
    """The `Suite`; `train` and `test` are the text, `network` and `fit` what is trained and for how long.

    Where an optimizer leaves parameters to Adam (vectors, embedding and head), those have the same lr as it.
    """

    train: Task
    test: Task
    build: Build
    network: NetworkSpec
    fit: FitSpec
    length: int
    optimizers: dict[str, Tuned]
    name: str = "optimizers"
    title: str = "Outer optimizers"
    about: str = (
        "One small hope network is trained on a text, byte by byte, by each optimizer for equally many steps; measured "
        "is the perplexity of text that was held out, after each quarter of the steps."
    )
    unit: str = "perplexity per byte (lower is better)"
    notes: tuple[str, ...] = (
        "Each optimizer's lr is the best of its grid, by the final perplexity of one training of all steps with seed "
        f"{TUNING_SEED}, which is none of the report's. Schedule, clipping and weight decay are the same for all.",
        "An lr at the edge of its grid is marked in the list of odd cells: the grid may be too narrow.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The optimizers."""
        return tuple(self.optimizers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The tuning of lr and the comparison itself."""
        return (_FINAL,)

    def plan(self, options: Options, done: Sequence[Outcome]) -> list[Cell]:
        """Return the cells that tune lr, then those that compare; when quick, the middle lr is taken as it is."""
        columns = choose_names("optimizer", options.columns, self.columns, self.columns)
        choose_names("part", options.parts, self.parts, self.parts)
        if any(outcome.part == _FINAL for outcome in done):
            return []
        if options.is_quick:
            middle = {column: sorted(self.optimizers[column].lrs)[1] for column in columns}
            return [self._cell(_FINAL, column, QUICK_SEED, lr, options) for column, lr in middle.items()]
        if not done:
            grid = sorted({lr for column in columns for lr in self.optimizers[column].lrs})
            return [
                self._cell(_TUNING, column, TUNING_SEED, lr, options)
                for lr in grid
                for column in columns
                if lr in self.optimizers[column].lrs
            ]
        best = {column: self._best(column, done) for column in columns}
        return [self._cell(_FINAL, column, seed, lr, options) for column, lr in best.items() for seed in options.seeds]

    def run(self, cell: Cell, options: Options) -> Outcome:
        """Train with one lr and measure the held-out perplexity on the way."""
        spec = FitSpec(**cell.settings["fit"])
        network = self.build("hope", self.network, self.train.vocab_size, cell.seed, options.device)
        probe = Probe("held out", _Plain(self.test), self.length, "perplexity", 32 if options.is_quick else 128)
        values: dict[str, float] = {}
        points = {max(1, spec.steps * quarter // _CHECKPOINTS) for quarter in range(1, _CHECKPOINTS + 1)}

        def look(step: int) -> None:
            if step in points:
                values[f"step {step}"] = measure(network, probe, cell.seed)["held out"]

        fitted = fit(
            network, self.train, (self.length,), spec, cell.seed, _maker(self.optimizers[cell.column], spec), look
        )
        facts: Facts = {
            "lr": spec.lr,
            "steps": fitted.steps,
            "seconds": fitted.seconds,
            "loss": math.nan if fitted.is_diverged else fitted.losses[-1],
            "parameters": sum(tensor.numel() for tensor in network.tensors().values()),
            "weights": "trained here",
        }
        if fitted.is_diverged:
            values |= {f"step {step}": math.nan for step in points}
            facts["note"] = f"lr {spec.lr:g} diverged after {fitted.steps} steps"
        elif options.is_quick:
            facts["note"] = f"lr {spec.lr:g} was taken as it is, not tuned"
        elif cell.part == _FINAL and spec.lr in _edges(self.optimizers[cell.column]):
            facts["note"] = f"lr {spec.lr:g} is the edge of its grid"
        label = f"lr {spec.lr:g}"
        if cell.part == _TUNING:
            values = {label: values[f"step {spec.steps}"]}
        return Outcome(cell.part, cell.column, cell.seed, values, facts)

    def _best(self, column: str, done: Sequence[Outcome]) -> float:
        tried = {
            outcome.facts["lr"]: next(iter(outcome.values.values())) for outcome in done if outcome.column == column
        }
        best: float = min(tried, key=lambda lr: (not math.isfinite(tried[lr]), tried[lr]))
        return best

    def _cell(self, part: str, column: str, seed: int, lr: float, options: Options) -> Cell:
        steps = options.steps or self.fit.steps
        if options.is_quick:
            steps = min(steps, _QUICK_STEPS)
        spec = replace(self.fit, lr=lr, steps=steps)
        settings: Facts = {
            "rule": self.optimizers[column].rule,
            "fit": asdict(spec),
            "network": asdict(self.network),
            "length": self.length,
            "text": repr(self.train),
            "is_quick": options.is_quick,
        }
        return Cell(part, column, seed, settings)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A task without its groups of positions: all of them are measured together."""

    task: Task

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        return self.task.sample(num_rows, length, generator)


def _maker(tuned: Tuned, spec: FitSpec) -> MakeOptimizer:
    def make(tensors: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return make_optimizer(tuned.rule, tensors, lr, weight_decay=spec.weight_decay)

    return make


def _edges(tuned: Tuned) -> tuple[float, float]:
    return min(tuned.lrs), max(tuned.lrs)
