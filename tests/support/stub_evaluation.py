"""A network and a suite small enough that a whole evaluation takes a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hope_server.evaluation.fit import FitSpec, NetworkSpec, Probe
from hope_server.evaluation.mad import MemorisationTask
from hope_server.evaluation.outcome import Options
from hope_server.evaluation.trials import Part, TrialSuite

TASK = MemorisationTask(num_tokens=9)


class TableNetwork:
    """Foretells the next token from the last two alone: one table for each. Learns a dictionary, and nothing else."""

    state_bytes = 8
    device = torch.device("cpu")

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._tables = {
            name: (0.01 * torch.randn(vocab_size, vocab_size, generator=generator)).requires_grad_()
            for name in ("last", "before")
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Both tables."""
        return self._tables

    def run(self, tokens: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The state is the last token of each row."""
        first = torch.zeros_like(tokens[:, :1]) if state is None else state
        before = torch.cat([first, tokens[:, :-1]], dim=1)
        return self._tables["last"][tokens] + self._tables["before"][before], tokens[:, -1:]

    def detached(self, state: torch.Tensor) -> torch.Tensor:
        """Tokens have no history."""
        return state


@dataclass
class Counted:
    """Builds networks, and counts them: one for each cell that was really run."""

    built: list[tuple[str, int]]

    def __call__(self, column: str, spec: NetworkSpec, vocab_size: int, seed: int, device: str) -> TableNetwork:
        self.built.append((column, seed))
        return TableNetwork(vocab_size, seed)


def stub_suite(built: list[tuple[str, int]] | None = None, steps: int = 60) -> TrialSuite:
    """Two parts, two columns; `built` collects what is run."""
    parts = tuple(
        Part(
            name,
            TASK,
            (8,),
            (Probe("8 tokens", TASK, 8, num_rows=20), Probe("whole rows", TASK, 8, "row", 20)),
            NetworkSpec(),
            FitSpec(steps=steps, batch_size=8, lr=0.1),
        )
        for name in ("easy", "same | again")
    )
    make = Counted(built if built is not None else [])
    return TrialSuite(
        "stub",
        "A stub",
        "About it.",
        "right, %",
        parts,
        ("left", "right", "spare"),
        ("left", "right"),
        make,
        ("A note.",),
    )


def stub_options(folder: Path, **changes: object) -> Options:
    """Options whose folders lie in `folder`; no plot."""
    base = {
        "task": "stub",
        "out": folder / "out",
        "work": folder / "work",
        "weights": folder / "weights",
        "seeds": (0, 1),
        "plots": False,
        "command": "hope eval stub",
    }
    return Options(**(base | changes))
