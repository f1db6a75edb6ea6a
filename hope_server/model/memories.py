"""The memories of a self-modifying Titans layer: one per head for keys, values, rates and for what is remembered.

Two kinds with one interface. Every tensor of a memory has the rows and heads first.
Shapes: B rows, H heads, C tokens, K head size (keys and values alike), F hidden units, n memories of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from hope_kernels import dgd_memory, mlp_memory
from hope_kernels.dgd_memory import ChunkWrite, Gates, Layout, TokenWrite
from hope_kernels.dgd_memory.layout import MAIN

from hope_server.model.config import TitansSpec

Weights = dict[str, torch.Tensor]
"""The weights of all memories of a layer by name, [B, H, ...] each; [H, ...] for the learned initial ones."""


class Write(Protocol):
    """A chunk's write into every memory of a layer."""

    def read(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Read the main memory after tokens start.. with queries [B, H, n, K]; returns [B, H, n, K]."""

    def final(self) -> tuple[Weights, Weights]:
        """All memories after the chunk, and their momenta (empty without momentum)."""


class Memories(Protocol):
    """What a layer does with its memories."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of `Weights`, without rows."""

    def clear_main(self, weights: Weights) -> None:
        """Make the main memory retrieve nothing but what its residual path adds, in place."""

    def retrieve(self, weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """M_name(inputs): [B, H, C, K], or [B, H, C, 1] for a rate, from inputs [B, H, C, K]."""

    def write(
        self, weights: Weights, surprise: Weights, keys: torch.Tensor, values: torch.Tensor, gates: Gates
    ) -> Write:
        """Write a chunk of keys and values [B, H, C, K] with gates [B, H, C] into every memory."""


def make_memories(spec: TitansSpec) -> Memories:
    """The memories that a spec names."""
    return MatrixMemories(spec) if spec.memory == "matrix" else MlpMemories(spec)


def memory_layout(spec: TitansSpec, chunk_size: int = 1) -> Layout:
    """How a spec's memories lie and are written, for operators that do a layer's work in single calls."""
    is_mlp, squared = spec.memory == "mlp", spec.objective == "l2"
    return Layout(
        spec.head_dim,
        tuple(spec.adaptive),
        is_residual=spec.is_residual or is_mlp,
        squared=squared,
        delta=spec.dgd_scope != "none",
        self_targets=spec.self_targets,
        has_retention=spec.has_retention,
        has_momentum=spec.has_momentum,
        max_lr=spec.max_lr,
        lr_share=1 / chunk_size if spec.dgd_scope == "none" and squared else 1.0,
        num_sums=spec.num_sums,
        hidden_size=spec.hidden_size if is_mlp else 0,
        hidden_delta=spec.dgd_scope == "layer_input",
        reads_current=spec.reads == "current",
    )


class MatrixMemories:
    """Matrix memories M(z) = z + z W, side by side in one tall matrix [B, H, K, n K + rates], for they share keys."""

    def __init__(self, spec: TitansSpec) -> None:
        self._spec = spec
        self._layout = memory_layout(spec)
        self._main_residual = float(spec.is_residual)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One tall matrix."""
        return {name: (self._spec.num_heads, *shape) for name, shape in self._layout.shapes().items()}

    def clear_main(self, weights: Weights) -> None:
        """As `Memories.clear_main`."""
        weights["weights"][..., self._layout.columns(MAIN)] = 0.0

    def retrieve(self, weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """As `Memories.retrieve`. Source: NL eq. 76-80, 86."""
        found = inputs @ weights["weights"][..., self._layout.columns(name)]
        if name in ("lr", "retention") or (name == MAIN and not self._spec.is_residual):
            return found
        return found + inputs

    def write(
        self, weights: Weights, surprise: Weights, keys: torch.Tensor, values: torch.Tensor, gates: Gates
    ) -> MatrixWrite:
        """As `Memories.write`. Source: NL eq. 92 and 93, targets of eq. 83-85."""
        matrix = weights["weights"]
        write = dgd_memory.write_token if keys.shape[-2] == 1 else dgd_memory.write_chunk
        written = write(
            matrix,
            keys,
            self._residuals(matrix, keys, values),
            gates,
            float(self._spec.dgd_scope != "none"),
            surprise.get("weights"),
        )
        return MatrixWrite(written, self._layout.columns(MAIN), self._spec.is_residual)

    def _residuals(self, matrix: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Gradient of each token's loss at the memories' outputs [B, H, C, columns], at the chunk's start."""
        squared, own = self._spec.objective == "l2", self._spec.self_targets
        if own:
            found = (keys - values if squared else -values) @ matrix
            return found + self._beside(keys - values if squared else -values, self._main_residual)
        found = keys @ matrix if squared else torch.zeros_like(keys @ matrix)
        error = found + (self._beside(keys, self._main_residual) if squared else 0.0) - self._beside(values, 1.0)
        if self._layout.rates:
            # A rate has no value of its own to aim at: its target is always what it makes of the value.
            rates = slice(self._layout.num_vector_columns, self._layout.num_columns)
            error = torch.cat(
                [error[..., : rates.start], ((keys if squared else 0.0) - values) @ matrix[..., rates]], dim=-1
            )
        return error

    def _beside(self, inputs: torch.Tensor, main_share: float) -> torch.Tensor:
        """What the residual paths add in each column, for inputs [B, H, C, K]."""
        parts = [inputs] * (len(self._layout.vectors) - 1) + [main_share * inputs]
        return torch.cat([*parts, inputs.new_zeros(*inputs.shape[:-1], len(self._layout.rates))], dim=-1)


@dataclass(frozen=True, slots=True)
class MatrixWrite:
    """A chunk's write into a tall matrix."""

    written: ChunkWrite | TokenWrite
    main: slice
    is_residual: bool

    def read(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """As `Write.read`."""
        found = self.written.columns(self.main).read(queries, start)
        return found + queries if self.is_residual else found

    def final(self) -> tuple[Weights, Weights]:
        """As `Write.final`."""
        weights, surprise = self.written.final()
        return {"weights": weights}, {} if surprise is None else {"weights": surprise}


class MlpMemories:
    """MLP memories M(z) = z + W1 gelu(W2 z) (NL eq. 89); rates have one output and no residual path."""

    def __init__(self, spec: TitansSpec) -> None:
        self._spec = spec
        self._layout = memory_layout(spec)
        self._vectors, self._rates = self._layout.vectors, self._layout.rates

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Both layers of the vector memories, and of the rate memories where there are any."""
        return {name: (self._spec.num_heads, *shape) for name, shape in self._layout.shapes().items()}

    def clear_main(self, weights: Weights) -> None:
        """As `Memories.clear_main`."""
        weights["second"][..., self._vectors.index(MAIN), :, :] = 0.0

    def retrieve(self, weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """As `Memories.retrieve`. Source: NL eq. 89."""
        if name in self._rates:
            index, prefix = self._rates.index(name), "rate_"
        else:
            index, prefix = self._vectors.index(name), ""
        first, second = weights[f"{prefix}first"][..., index, :, :], weights[f"{prefix}second"][..., index, :, :]
        return mlp_memory.predict(first, second, inputs, is_residual=not prefix)

    def write(
        self, weights: Weights, surprise: Weights, keys: torch.Tensor, values: torch.Tensor, gates: Gates
    ) -> MlpWrites:
        """As `Memories.write`. Source: NL eq. 88-90 for both layers."""
        vectors = self._write_group("", weights, surprise, keys, values, gates)
        rates = self._write_group("rate_", weights, surprise, keys, values, gates) if self._rates else None
        return MlpWrites(vectors, rates, self._vectors.index(MAIN))

    def _write_group(
        self,
        prefix: str,
        weights: Weights,
        surprise: Weights,
        keys: torch.Tensor,
        values: torch.Tensor,
        gates: Gates,
    ) -> mlp_memory.MlpWrite:
        first, second = weights[f"{prefix}first"], weights[f"{prefix}second"]
        targets = values[..., None, :, :]
        if prefix or self._spec.self_targets:
            targets = mlp_memory.predict(first, second, targets, is_residual=not prefix)
        else:
            targets = targets.expand(*first.shape[:-2], *targets.shape[-2:])
        momenta = (surprise[f"{prefix}first"], surprise[f"{prefix}second"]) if surprise else None
        return mlp_memory.write_chunk(
            first,
            second,
            keys,
            targets,
            gates,
            objective=self._spec.objective,
            dgd_scope=self._spec.dgd_scope,
            is_residual=not prefix,
            surprise=momenta,
        )


@dataclass(frozen=True, slots=True)
class MlpWrites:
    """A chunk's write into MLP memories: of vectors, and of rates."""

    vectors: mlp_memory.MlpWrite
    rates: mlp_memory.MlpWrite | None
    main: int

    def read(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """As `Write.read`."""
        main = replace(
            self.vectors, first=self.vectors.first.select(self.main), second=self.vectors.second.select(self.main)
        )
        return main.read(queries, start)

    def final(self) -> tuple[Weights, Weights]:
        """As `Write.final`."""
        weights: Weights = {}
        surprise: Weights = {}
        for prefix, group in (("", self.vectors), ("rate_", self.rates)):
            if group is None:
                continue
            weights[f"{prefix}first"], weights[f"{prefix}second"], momenta = group.final()
            if momenta is not None:
                surprise[f"{prefix}first"], surprise[f"{prefix}second"] = momenta
        return weights, surprise
