"""The one module of this plugin that sees tensors and snapshots: a session's state by ranks, and back, exactly.

Each tensor-parallel rank's heads are a stored level of their own (`rank.0`, `rank.1`, …), all of them in one commit, so
no reader ever finds the heads of two versions. Whoever loads them joins them and cuts them for its own ranks.
What waits for its chunk to end is stored as far as there is any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hope_memory.snapshot import Array, Level, Snapshot

from hope_server.errors import StateCorrupt
from hope_server.model.config import HopeConfig
from hope_vllm.errors import ShardMissing
from hope_vllm.hope_config import STATE_FORMAT, empty_row, titans_of
from hope_vllm.shards import Tensors, join_states, spec_of_rank

_PENDING_PARTS = ("keys", "values", "rates")
_MAX_RANKS = 256


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's heads of one session: tensors of each block without rows, and the tokens of the unfinished chunk."""

    blocks: dict[int, Tensors]
    num_pending: int


@dataclass(frozen=True, slots=True)
class State:
    """All heads of one session. num_tokens: read since its first; info: the public part of what was stored."""

    blocks: dict[int, Tensors]
    num_tokens: int
    info: dict[str, Any] = field(default_factory=dict)


class StateCodec:
    """Encodes and decodes the states of one model."""

    def __init__(self, config: HopeConfig, fingerprint: str) -> None:
        """fingerprint: as `hope_config.model_fingerprint` gives it."""
        self.config = config
        self.fingerprint = fingerprint

    def encode(self, shards: Sequence[Shard], num_tokens: int, info: dict[str, Any]) -> Snapshot:
        """Copy all ranks' shards into a snapshot.

        num_tokens: read since the session's first. Raises StateCorrupt where ranks stand at different places.
        """
        pending = num_tokens % self.config.chunk_size
        if any(shard.num_pending != pending for shard in shards):
            found = sorted({shard.num_pending for shard in shards})
            raise StateCorrupt(f"ranks stand at places {found} of a chunk, the session at {pending}; nothing was kept")
        levels = {}
        for rank, shard in enumerate(shards):
            arrays = {
                f"{block}.{name}": _array(part)
                for block, tensors in shard.blocks.items()
                for name, part in _used(tensors, pending).items()
            }
            levels[_level_name(rank)] = Level(arrays)
        sizes = {name: level.num_bytes for name, level in levels.items()}
        meta = {
            "format": STATE_FORMAT,
            "ranks": len(shards),
            "info": {**info, "num_tokens": num_tokens, "state_bytes": sizes},
        }
        return Snapshot(self.fingerprint, meta, levels)

    def decode(self, snapshot: Snapshot) -> State:
        """Return the state that a snapshot holds, all heads together. Raises StateCorrupt, ShardMissing."""
        try:
            num_ranks, num_tokens = int(snapshot.meta["ranks"]), int(snapshot.info["num_tokens"])
            if snapshot.meta["format"] != STATE_FORMAT or not 1 <= num_ranks <= _MAX_RANKS or num_tokens < 0:
                raise ValueError("an unknown format")
            parts = [self._rank(snapshot, rank, num_ranks, num_tokens) for rank in range(num_ranks)]
            spec = titans_of(self.config)
            blocks = {block: join_states([part[block] for part in parts], spec) for block in spec.blocks}
            return State(blocks, num_tokens, snapshot.info)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise StateCorrupt(f"the stored state lacks or misshapes a part: {type(exc).__name__}: {exc}") from exc

    def _rank(self, snapshot: Snapshot, rank: int, num_ranks: int, num_tokens: int) -> dict[int, Tensors]:
        level = snapshot.levels.get(_level_name(rank))
        if level is None:
            raise ShardMissing(rank, num_ranks)
        spec, pending = spec_of_rank(titans_of(self.config), rank, num_ranks), num_tokens % self.config.chunk_size
        template = {name: tensor[0] for name, tensor in empty_row(self.config, spec).tensors().items()}
        out = {}
        for block in spec.blocks:
            whole = {name: torch.zeros(tensor.shape, dtype=torch.float32) for name, tensor in template.items()}
            for name, part in _used(whole, pending).items():
                _fill(part, level.arrays[f"{block}.{name}"])
            out[block] = whole
        return out


def _level_name(rank: int) -> str:
    return f"rank.{rank}"


def _used(tensors: Tensors, pending: int) -> Tensors:
    """A block's tensors as views, cut to the tokens that wait for their chunk to end."""
    return {name: part[:, :pending] if name in _PENDING_PARTS else part for name, part in tensors.items()}


def _array(tensor: torch.Tensor) -> Array:
    """An Array over a private copy of the tensor's bytes."""
    kept = tensor.detach().to("cpu", torch.float32).contiguous().clone()
    return Array("float32", tuple(kept.shape), kept.flatten().view(torch.uint8).numpy().data)


def _fill(target: torch.Tensor, array: Array) -> None:
    """Copy without broadcasting: a part of another shape is a fault."""
    if array.dtype != "float32" or array.shape != tuple(target.shape):
        raise ValueError(f"{array.dtype} {array.shape} instead of float32 {tuple(target.shape)}")
    if len(array.data):
        target.copy_(torch.frombuffer(bytearray(array.data), dtype=torch.float32).reshape(array.shape))
