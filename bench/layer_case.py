"""What is timed of a memory layer, and the line protocol between `layers.py` and a side's own process.

Imported by every side, also in environments without our packages: standard library and torch only.
Shapes: B rows, T tokens, D model width.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

WIDTH, NUM_HEADS, HEAD_DIM = 576, 9, 64


@dataclass(frozen=True)
class Case:
    """A layer's shapes and forms.

    memory: "matrix", or "mlp" with HEAD_DIM hidden units. num_memories: ours a head, 5 that make keys, values, rates
    and hold what is remembered (HOPE), or that last one alone (Titans). form: of the peer, where it has several.
    is_narrow: the heads are rows of a model as wide as one head, so that the memories are nearly all there is to do.
    """

    memory: str
    num_rows: int
    num_tokens: int
    chunk_size: int
    num_memories: int = 5
    has_momentum: bool = False
    form: str = ""
    is_narrow: bool = False

    @property
    def width(self) -> int:
        """D."""
        return HEAD_DIM if self.is_narrow else WIDTH

    @property
    def num_heads(self) -> int:
        """H."""
        return 1 if self.is_narrow else NUM_HEADS

    def inputs(self, width: int | None = None, num_rows: int | None = None) -> torch.Tensor:
        """The input [B, T, D] of every side whose shapes are these."""
        generator = torch.Generator().manual_seed(self.chunk_size)
        rows = num_rows or self.num_rows * (NUM_HEADS if self.is_narrow else 1)
        return torch.randn(rows, self.num_tokens, width or self.width, generator=generator)


@dataclass(frozen=True)
class Faults:
    """What a layer does that it should not: relative differences of its output.

    other_rows: of a row, when another row of the batch has other content. split, split_inside: of the whole input, when
    it is given in two pieces with the state carried on, cut between two chunks, or inside one. None where the layer
    ends with an error.
    """

    other_rows: float
    split: float
    split_inside: float | None


def cuts(case: Case) -> tuple[int, int]:
    """Where an input is cut: between two chunks, and inside one."""
    return 2 * case.chunk_size, 2 * case.chunk_size + case.chunk_size // 2 + 1


class Side(ABC):
    """One implementation; a subclass says how it is built and run."""

    @abstractmethod
    def open(self, case: Case) -> None:
        """Build the layer and its inputs."""

    @abstractmethod
    def run(self) -> None:
        """Compute the case's tokens once, from an empty memory."""

    def gate(self) -> float:
        """Relative error of what is timed, on the tensors that are timed; 0 for a side that is not ours."""
        return 0.0

    @abstractmethod
    def faults(self) -> Faults:
        """Measure the faults of this case."""


def changed(x: torch.Tensor) -> torch.Tensor:
    """The same first row of x [B, T, D], other content in the others."""
    return torch.cat([x[:1], x[1:].flip(1)])


def serve(side: Side) -> None:
    """Answer the parent's requests until its end of the pipe is closed."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            side.open(Case(**request["case"]))
            answer: object = side.gate()
            side.run()
        elif request["do"] == "time":
            answer = _seconds(side.run, request["repeats"])
        else:
            answer = asdict(side.faults())
        print(json.dumps(answer), flush=True)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance of two outputs."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def _seconds(run: Callable[[], None], repeats: int) -> float:
    """Seconds of this thread's own processor time, the least of some repeats: other processes share the machine."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best
