"""The HOPE model's forward pass: attention through the window, MLP blocks through the memory levels.

State goes in and comes out; a state that is passed in is donated (its buffers are reused for the state that is
returned).
Shapes: B rows, T tokens, D model width, H heads, U key-value heads, d head size, N ring places, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from hope_server.model.config import HopeConfig
from hope_server.model.levels import BlockMemory, mlp_block
from hope_server.model.params import BlockParams, Params
from hope_server.model.state import FastState, Memory, make_memory
from hope_server.model.vocabulary import log_probs_at
from hope_server.model.window import (
    Window,
    attend,
    ring_places,
    ring_positions,
    rotary_angles,
    rotate,
    visible,
)

KeyValue = tuple[torch.Tensor, torch.Tensor]
KeyValues = list[KeyValue]
"""New keys and values of each block, [B, U, T, d] each."""


@dataclass(slots=True)
class Sight:
    """What the tokens of one call see: rotations, the mask, and how much of the ring is in use.

    far_angles: rotation of the query as the sinks see it; None while every position is inside the first S + W.
    num_places: ring places that hold anything; mask [B, T, num_places + T], or [B, T, num_places] in `decode`; None in
    one segment behind nothing, where every token simply sees itself and those before it.
    """

    angles: tuple[torch.Tensor, torch.Tensor]
    far_angles: tuple[torch.Tensor, torch.Tensor] | None
    num_places: int
    mask: torch.Tensor | None


class HopeModel:
    """Computes a HopeConfig. Holds no session state and no slow weights; both are arguments."""

    def __init__(self, config: HopeConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.memory: Memory = make_memory(config, dtype)

    # -- what callers use ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, params: Params, state: FastState, tokens: torch.Tensor) -> tuple[torch.Tensor, FastState]:
        """Read tokens [B, T] (T at most the window) after what each row has seen; learns nothing.

        Returns the logits after the last token [B, V] and the state, its window moved on by T.
        """
        window, memories = state.window, self.memories(state)
        sight = self.sight(window, tokens.shape[1])
        last = len(params.blocks) - 1
        hidden, new = self.run_blocks(params, params.embed[tokens], window, memories, sight, range(last))
        # Of the last block only keys and values are kept, and the last token's prediction.
        query, far_query, own = self._project(hidden, params.blocks[last], sight)
        keys, values = _with_past(window, last, sight, own)
        mask = None if sight.mask is None else sight.mask[:, -1:]
        far_query = None if far_query is None else far_query[:, -1:]
        mixed = attend(query[:, -1:], far_query, self.config.window.num_sinks, keys, values, mask)
        hidden = self._finish(hidden[:, -1:], params.blocks[last], mixed, memories[last])
        self.append(window, [*new, own])
        return self.logits(params, hidden[:, 0]), state

    @torch.no_grad()
    def decode(
        self, params: Params, state: FastState, tokens: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, FastState]:
        """Read one token [B] in every active row (bool [B]); the others are computed and left as they were.

        Returns logits [B, V] (meaningless for inactive rows) and the state.
        """
        window = state.window
        sight = self._decode_sight(window, active)
        rows = active.nonzero()[:, 0]
        places = ring_places(self.config, window.positions)[rows]
        memories = self.memories(state)
        hidden = params.embed[tokens][:, None]
        num_sinks = self.config.window.num_sinks
        for index, block in enumerate(params.blocks):
            query, far_query, (key, value) = self._project(hidden, block, sight)
            window.keys[index, rows, :, places] = key[rows, :, 0]
            window.values[index, rows, :, places] = value[rows, :, 0]
            keys = window.keys[index, :, :, : sight.num_places]
            values = window.values[index, :, :, : sight.num_places]
            mixed = attend(query, far_query, num_sinks, keys, values, sight.mask)
            hidden = self._finish(hidden, block, mixed, memories[index])
        window.positions += active
        return self.logits(params, hidden[:, 0]), state

    @torch.no_grad()
    def read(
        self, params: Params, state: FastState, tokens: torch.Tensor, segments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, KeyValues]:
        """Compute tokens [B, T] without changing the state.

        segments [T]: tokens of different segments do not see each other, and each segment starts at the row's next
        position; None is one segment. Returns hidden states before the last norm [B, T, D] and the new keys and values.
        """
        sight = self.sight(state.window, tokens.shape[1], segments)
        hidden = params.embed[tokens]
        return self.run_blocks(params, hidden, state.window, self.memories(state), sight, range(len(params.blocks)))

    def logits(self, params: Params, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits [..., V] of hidden states [..., D]."""
        return functional.linear(self._norm(hidden, params.norm), params.head)

    def log_probs_at(
        self, params: Params, hidden: torch.Tensor, candidates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of candidates [n, K] after the first n of hidden [N, D]; logits [N - n, V] of the others.

        Differentiable once, in hidden.
        """
        return log_probs_at(self._norm(hidden, params.norm), params.head, candidates)

    def append(self, window: Window, new: KeyValues) -> None:
        """Write new keys and values of T tokens at each row's next positions and move the positions on."""
        tokens = new[0][0].shape[2]
        places = ring_places(self.config, window.positions[:, None] + torch.arange(tokens))
        for row in range(places.shape[0]):
            for index, (keys, values) in enumerate(new):
                window.keys[index, row, :, places[row]] = keys[row]
                window.values[index, row, :, places[row]] = values[row]
        window.positions += tokens

    # -- parts, also used by the learner -----------------------------------------------------------------------------

    def memories(
        self, state: FastState, leaves: dict[str, dict[int, BlockMemory]] | None = None
    ) -> list[list[BlockMemory]]:
        """The fast weights acting on each block; levels that no row has ever written are left out.

        leaves: by level name, matrices to use in place of the state's (the learner differentiates them).
        """
        out: list[list[BlockMemory]] = [[] for _ in range(self.config.model.num_layers)]
        for name, layout in self.memory.layouts.items():
            level = state.levels[name]
            found = (leaves or {}).get(name)
            if found is None and bool(level.num_writes.any()):
                found = layout.views(level.weights)
            for block, memory in (found or {}).items():
                out[block].append(memory)
        return out

    def sight(self, window: Window, tokens: int, segments: torch.Tensor | None = None) -> Sight:
        """What `tokens` new tokens of every row see; raises ValueError if a segment is longer than the window."""
        config = self.config
        dtype = window.keys.dtype
        offsets = torch.arange(tokens)
        if segments is not None:
            offsets = offsets - torch.searchsorted(segments, segments)
        longest = int(offsets.max()) + 1
        if longest > config.window.size:
            raise ValueError(f"{longest} tokens at once, the window holds {config.window.size}")
        positions = window.positions[:, None] + offsets
        num_places = self._num_places(window.positions)
        angles = rotary_angles(config, positions, dtype)
        if segments is None and num_places == 0:
            return Sight(angles, None, 0, None)
        held = ring_positions(config, window.positions - 1, num_places)
        mask = torch.cat(
            [visible(config, positions, held, dtype), visible(config, positions, positions, dtype)], dim=-1
        )
        if segments is not None:
            apart = segments[:, None] != segments[None, :]
            mask[:, :, num_places:].masked_fill_(apart, -torch.inf)
        return Sight(angles, self._far_angles(positions, dtype), num_places, mask)

    def run_blocks(
        self,
        params: Params,
        hidden: torch.Tensor,
        window: Window,
        memories: list[list[BlockMemory]],
        sight: Sight,
        blocks: range,
    ) -> tuple[torch.Tensor, KeyValues]:
        """Run some blocks over hidden [B, T, D]; differentiable. Returns hidden and the new keys and values."""
        new = []
        num_sinks = self.config.window.num_sinks
        for index in blocks:
            block = params.blocks[index]
            query, far_query, own = self._project(hidden, block, sight)
            new.append(own)
            keys, values = _with_past(window, index, sight, own)
            mixed = attend(query, far_query, num_sinks, keys, values, sight.mask)
            hidden = self._finish(hidden, block, mixed, memories[index])
        return hidden, new

    # -- private ---------------------------------------------------------------------------------------------------

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.config.model.rms_norm_eps)

    def _num_places(self, positions: torch.Tensor) -> int:
        sinks = self.config.window.num_sinks
        capacity = sinks + self.config.window.size + self.config.chunk_size
        return min(int(positions.max()), capacity)

    def _far_angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        furthest = self.config.window.num_sinks + self.config.window.size - 1
        if self.config.window.num_sinks == 0 or int(positions.max()) <= furthest:
            return None
        return rotary_angles(self.config, positions.clamp(max=furthest), dtype)

    def _decode_sight(self, window: Window, active: torch.Tensor) -> Sight:
        positions = window.positions
        dtype = window.keys.dtype
        num_places = self._num_places(positions + 1)
        held = ring_positions(self.config, torch.where(active, positions, positions - 1), num_places)
        queries = positions[:, None]
        mask = visible(self.config, queries, held, dtype)
        mask[~active] = 0.0
        return Sight(rotary_angles(self.config, queries, dtype), self._far_angles(queries, dtype), num_places, mask)

    def _project(
        self, hidden: torch.Tensor, block: BlockParams, sight: Sight
    ) -> tuple[torch.Tensor, torch.Tensor | None, KeyValue]:
        """Queries as the window and as the sinks see them [B, T, H, d]; keys and values as they are stored."""
        model = self.config.model
        projected = functional.linear(self._norm(hidden, block.attn_norm), block.qkv)
        heads = projected.view(*projected.shape[:2], model.num_heads + 2 * model.num_kv_heads, model.head_dim)
        turned = model.num_heads + model.num_kv_heads
        # Queries and keys turn together: half as many small operations.
        query, key = rotate(heads[:, :, :turned], sight.angles).split([model.num_heads, model.num_kv_heads], dim=2)
        value = heads[:, :, turned:]
        far_query = None if sight.far_angles is None else rotate(heads[:, :, : model.num_heads], sight.far_angles)
        if self.config.window.precision == "bfloat16":
            key, value = key.bfloat16().to(key.dtype), value.bfloat16().to(value.dtype)
        return query, far_query, (key.transpose(1, 2), value.transpose(1, 2))

    def _finish(
        self, hidden: torch.Tensor, block: BlockParams, mixed: torch.Tensor, memories: list[BlockMemory]
    ) -> torch.Tensor:
        """The rest of a block, given what its heads read [B, T, H d]: output projection, MLP."""
        hidden = hidden + functional.linear(mixed, block.out)
        return hidden + mlp_block(self._norm(hidden, block.mlp_norm), block, memories)


def _with_past(window: Window, index: int, sight: Sight, own: KeyValue) -> KeyValue:
    """The keys and values that a block's tokens see: those in the window, then their own."""
    if sight.num_places == 0:
        return own
    keys = torch.cat([window.keys[index, :, :, : sight.num_places], own[0]], dim=2)
    return keys, torch.cat([window.values[index, :, :, : sight.num_places], own[1]], dim=2)
