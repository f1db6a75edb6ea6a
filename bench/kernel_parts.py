"""What `kernels.py` times of our own: a layer's memories by recurrence, by torch in chunks and fused; reads; a network.

Shapes: B rows, H heads, T tokens, C tokens of a chunk, K head size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from hope_kernels import dgd_memory, self_modifying
from hope_kernels.dgd_memory import Gates
from hope_kernels.dgd_memory.reference import advance_tokens
from torch.nn import functional

from hope_server.model.config import HopeConfig, ModelConfig, TitansSpec, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.memories import memory_layout
from hope_server.model.params import random_params
from hope_server.model.state import empty_state
from hope_server.model.titans import LOG_RETENTION, LR, MOMENTUM, TitansLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_HEADS, HEAD_DIM = 9, 64
SMOLLM2 = ModelConfig("135M", 49_152, 576, 1536, 30, 9, 3, 64, 100_000.0, 1e-5, 8192, True)
"""The shape of SmolLM2-135M; weights are drawn."""
GATE = 2e-5
"""Largest relative error of float32: roundings of 6e-8, which memories that make their own keys amplify."""


def seconds(run: Callable[[], object]) -> float:
    """This thread's own processor time for one run."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error in the root of the mean square."""
    return float((found.double() - exact).norm() / exact.norm())


@dataclass(frozen=True)
class MemoryCase:
    """Memories of a layer with raw inputs, of any shape: what `self_modifying.advance` gets."""

    memory: str
    num_rows: int
    chunk_size: int
    num_tokens: int
    has_momentum: bool = False

    def spec(self) -> TitansSpec:
        """The layer's spec: five memories a head."""
        kind = "mlp" if self.memory == "mlp" else "matrix"
        return TitansSpec((0,), NUM_HEADS, HEAD_DIM, memory=kind, hidden_size=HEAD_DIM, has_momentum=self.has_momentum)


class Forms:
    """The forms of one case, on the same tensors."""

    def __init__(self, case: MemoryCase) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layer = TitansLayer(case.spec(), case.chunk_size, 1e-5)
        self.layout = memory_layout(case.spec(), case.chunk_size)
        self.chunk_size = case.chunk_size
        lead = (case.num_rows, NUM_HEADS)
        shapes = self.layout.shapes()
        self.memories = {name: 0.04 * torch.randn(*lead, *s, generator=generator) for name, s in shapes.items()}
        self.surprises = {name: torch.zeros_like(part) for name, part in self.memories.items() if case.has_momentum}
        drawn = [torch.randn(*lead, case.num_tokens, HEAD_DIM, generator=generator) for _ in range(3)]
        rates = torch.randn(*lead, case.num_tokens, self.layout.num_rates, generator=generator)
        rates[..., 1] -= 3
        self.inputs = [*(functional.normalize(part, dim=-1) for part in drawn), rates]

    def fused(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One call of the compiled operator, its guard on as in a server."""
        out, memories, _ = self_modifying.advance(
            self.layout, self.memories, self.surprises, *self.inputs, self.chunk_size
        )
        return out, memories

    def eager(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The layer's own form, chunk by chunk in torch, without the guard."""
        memories, surprises, outputs = self.memories, self.surprises, []
        for start in range(0, self.inputs[0].shape[2], self.chunk_size):
            parts = [part[:, :, start : start + self.chunk_size] for part in self.inputs]
            found, memories, surprises = self.layer._advance_one(memories, surprises, *parts)
            outputs.append(found)
        return torch.cat(outputs, dim=2), memories

    def recurrence(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Matrix memories token by token in torch, all rows and heads at once."""
        weights, momentum, outputs = self.memories["weights"], self.surprises.get("weights"), []
        start = {"weights": weights}
        for t in range(self.inputs[0].shape[2]):
            if t % self.chunk_size == 0:
                start = {"weights": weights}
            queries, keys, values, rates = self.layer._address(start, *(part[:, :, t : t + 1] for part in self.inputs))
            outputs.append(self.layer.memories.retrieve(start, "main", queries))
            residuals = self.layer.memories._residuals(start["weights"], keys, values)  # type: ignore[attr-defined]
            share = rates[..., MOMENTUM] if momentum is not None else None
            gates = Gates(rates[..., LR], rates[..., LOG_RETENTION], share)
            written = dgd_memory.write_token(weights, keys, residuals, gates, 1.0, momentum)
            weights, momentum = written.final()
        return torch.cat(outputs, dim=2), {"weights": weights}

    def gate(self) -> float:
        """The largest error of the fused form, its guard off, against float64: tokens for matrices, else chunks."""
        found, memories, _ = self_modifying.advance(
            self.layout, self.memories, self.surprises, *self.inputs, self.chunk_size, is_guarded=False
        )
        if "weights" not in self.memories:
            exact = object.__new__(Forms)
            exact.__dict__ = self.__dict__ | {
                "memories": {name: part.double() for name, part in self.memories.items()},
                "inputs": [part.double() for part in self.inputs],
            }
            out, wanted = exact.eager()
            return max([error(found, out), *(error(memories[name], part) for name, part in wanted.items())])
        worst = 0.0
        for row, head in ((0, 0), (-1, -1)):
            own = [part[row, head].double() for part in (self.memories["weights"], *self.inputs)]
            momentum = torch.zeros_like(own[0]) if self.surprises else None
            out, state, _ = advance_tokens(self.layout, own[0], momentum, *own[1:], self.chunk_size)
            worst = max(worst, error(found[row, head], out), error(memories["weights"][row, head], state))
        return worst


class Reads:
    """Decode: one token reads every memory of 30 layers of 9 heads, in some sessions at once."""

    def __init__(self, num_rows: int) -> None:
        self.layout = memory_layout(TitansSpec((0,), NUM_HEADS, HEAD_DIM))
        heads = 30 * NUM_HEADS
        self.weights = torch.randn(num_rows, heads, HEAD_DIM, self.layout.num_columns) / 25
        self.inputs = [functional.normalize(torch.randn(num_rows, heads, 1, HEAD_DIM), dim=-1) for _ in range(3)]
        self.rates = torch.randn(num_rows, heads, 1, self.layout.num_rates)
        self.target = torch.empty_like(self.weights)

    @property
    def num_bytes(self) -> int:
        """Bytes of state that a token reads."""
        return self.weights.numel() * 4

    def read(self) -> tuple[torch.Tensor, ...]:
        """What decoding does before a chunk is full."""
        return self_modifying.address(self.layout, {"weights": self.weights}, *self.inputs, self.rates)

    def gate(self) -> float:
        """Error of what is found, against float64."""
        weights = self.weights.double()[..., self.layout.columns("main")]
        query = self.inputs[0].double()
        return error(self.read()[0], query + query @ weights)

    def copy(self) -> None:
        """A plain copy of the same bytes: as many are read, as many are written."""
        self.target.copy_(self.weights)

    def sum(self) -> None:
        """A plain sum of the same numbers."""
        self.weights.sum()


class Network:
    """A network of the 135M shape: as it is, with memories beside attention in all blocks, and those left frozen."""

    def __init__(self, num_tokens: int) -> None:
        window = WindowSpec(size=max(512, num_tokens))
        self.plain_config = HopeConfig(SMOLLM2, window, (), 64)
        titans = TitansSpec(tuple(range(30)), NUM_HEADS, HEAD_DIM, beside_attention=True)
        self.titans_config = replace(self.plain_config, titans=titans)
        self.plain_params, self.titans_params = (
            random_params(config, 0) for config in (self.plain_config, self.titans_config)
        )
        self.plain = HopeModel(self.plain_config, params=self.plain_params)
        self.titans = HopeModel(self.titans_config, params=self.titans_params)
        self.tokens = torch.randint(0, SMOLLM2.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
        self.memory_seconds = 0.0

    def run_plain(self) -> None:
        """Read the tokens without memories."""
        self.plain.prefill(self.plain_params, empty_state(self.plain.memory, 1, torch.float32), self.tokens)

    def run_titans(self) -> None:
        """Read the tokens and write the memories; adds what the memories alone took to `memory_seconds`."""
        state = empty_state(self.titans.memory, 1, torch.float32)
        with self._watched():
            self.titans.prefill(self.titans_params, state, self.tokens)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        advance = self_modifying.advance
        self.memory_seconds = 0.0

        def timed(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            out = advance(*args, **options)
            self.memory_seconds += time.thread_time() - start
            return out

        self_modifying.advance = timed
        try:
            yield
        finally:
            self_modifying.advance = advance
