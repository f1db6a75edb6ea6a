"""The chunk-parallel write of MLP memories: with gradients at the chunk's start, each layer is a linear memory.

Shapes: n memories that share keys, C tokens of the chunk, K key size, F hidden size, V value size; any leading ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from hope_kernels.dgd_memory.chunk import ChunkWrite
from hope_kernels.dgd_memory.chunk import write_chunk as write_linear
from hope_kernels.dgd_memory.gates import Gates

Scope = Literal["layer_input", "k_only", "none"]
Surprise = tuple[torch.Tensor, torch.Tensor]


def predict(
    first: torch.Tensor, second: torch.Tensor, inputs: torch.Tensor, *, is_residual: bool = True
) -> torch.Tensor:
    """Retrieve from memories: first [..., K, F], second [..., F, V], inputs [..., C, K]; returns [..., C, V].

    Source: NL eq. 89 with the GELU as its nonlinearity.
    """
    found = functional.gelu(inputs @ first) @ second
    return found + inputs if is_residual else found


@dataclass(frozen=True, slots=True)
class MlpWrite:
    """A chunk's write into both layers."""

    first: ChunkWrite
    second: ChunkWrite
    is_residual: bool

    def read(self, queries: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Read the memories as they are after tokens start.. with queries [..., n, C', K]; returns [..., n, C', V]."""
        found = self.second.read(functional.gelu(self.first.read(queries, start)), start)
        return found + queries if self.is_residual else found

    def final(self) -> tuple[torch.Tensor, torch.Tensor, Surprise | None]:
        """Both layers after the last token, and their momenta (None without momentum)."""
        first, first_surprise = self.first.final()
        second, second_surprise = self.second.final()
        if first_surprise is None or second_surprise is None:
            return first, second, None
        return first, second, (first_surprise, second_surprise)


def write_chunk(
    first: torch.Tensor,
    second: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    gates: Gates,
    *,
    objective: Literal["l2", "dot"] = "l2",
    dgd_scope: Scope = "layer_input",
    is_residual: bool = True,
    surprise: Surprise | None = None,
) -> MlpWrite:
    """Write C tokens into n MLP memories at once; exactly what `reference.write_tokens` does, differentiable.

    first [..., n, K, F], second [..., n, F, V], surprise of the same shapes; keys [..., C, K]; targets
    [..., n, C, V]: the targets; gates [..., C] shared by the n memories.
    """
    keys = keys[..., None, :, :]
    shared = gates.mapped(lambda rate: rate[..., None, :])
    before = keys @ first
    hidden = functional.gelu(before)
    error = -targets
    if objective == "l2":
        error = hidden @ second - targets + (keys if is_residual else 0.0)
    inner = through_gelu(before, error @ second.mT)
    first_surprise, second_surprise = surprise or (None, None)
    hidden_gates = shared.with_lr(shared.lr / (1 + hidden.square().sum(-1)))
    return MlpWrite(
        write_linear(first, keys, inner, shared, float(dgd_scope != "none"), first_surprise),
        write_linear(second, hidden, error, hidden_gates, float(dgd_scope == "layer_input"), second_surprise),
        is_residual,
    )


def through_gelu(inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient at the exact GELU's inputs, from that at its outputs; differentiable in both."""
    through: torch.Tensor = torch.ops.aten.gelu_backward(gradient, inputs)
    return through
