"""The HOPE model's forward pass: attention through the window, Titans memories, MLP blocks through the memory levels.

State goes in and comes out; a state that is passed in is donated (its buffers are reused for the state that is
returned).
Shapes: B rows, T tokens, D model width, H heads, U key-value heads, d head size, N ring places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from hope_kernels import decoding
from torch.nn import functional

from hope_server.model.config import HopeConfig
from hope_server.model.decoding import can_decode_fused, token_attention
from hope_server.model.fold import Fold
from hope_server.model.levels import BlockMemory, mlp_block, mlp_stretches
from hope_server.model.linear import linear, linear_in_columns
from hope_server.model.mixing import TokensRead, mix_titans
from hope_server.model.params import BlockParams, Params
from hope_server.model.sight import (
    Sight,
    Stretch,
    decode_sight,
    far_angles,
    num_places_in_use,
    row_slices,
    stretches,
)
from hope_server.model.state import FastState, Memory, Past, empty_past, make_memory
from hope_server.model.vocabulary import log_probs_at
from hope_server.model.window import Window, attend, ring_places, ring_positions, rotary_angles, rotate, visible

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a block's tokens, [B, U, T, d] each."""


class HopeModel:
    """Computes a HopeConfig. Holds no session state and no slow weights; both are arguments."""

    def __init__(
        self,
        config: HopeConfig,
        dtype: torch.dtype = torch.float32,
        params: Params | None = None,
        *,
        is_guarded: bool = True,
        is_compiled: bool = False,
    ) -> None:
        """Lay the model out.

        params: where the learned initial weights of memories are; needed where the config has Titans blocks.
        is_guarded: refuse Titans writes that explode, as a server must; training wants to see them.
        is_compiled: compile the work of a Titans chunk in training.
        """
        self.config = config
        self._is_guarded = is_guarded
        self.memory: Memory = make_memory(config, dtype, params, is_compiled=is_compiled)
        self._ring = {block: place for place, block in enumerate(config.attention_blocks)}

    # -- what callers use ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, params: Params, state: FastState, tokens: torch.Tensor) -> tuple[torch.Tensor, FastState]:
        """Read tokens [B, T] (T at most the window) after what each row has seen; learns nothing.

        Returns the logits after the last token [B, V] and the state, its window moved on by T.
        """
        past, memories = state.past, self.memories(state)
        sight = self.sight(past.window, tokens.shape[1])
        last = len(params.blocks) - 1
        hidden, new = self.run_blocks(params, params.embed[tokens], past, memories, sight, range(last))
        block = params.blocks[last]
        if block.titans is not None:
            hidden, more = self.run_blocks(params, hidden, past, memories, sight, range(last, last + 1))
            hidden, new = hidden[:, -1:], [*new, *more]
        else:
            # Of the last block only keys and values are kept, and the last token's prediction.
            query, far_query, own = self._project(self._norm(hidden, block.attn_norm), block, sight)
            keys, values = self._with_past(past.window, last, sight, own)
            mask = None if sight.mask is None else sight.mask[:, -1:]
            far_query = None if far_query is None else far_query[:, -1:]
            mixed = attend(query[:, -1:], far_query, self.config.window.num_sinks, keys, values, mask)
            hidden = self._finish(hidden[:, -1:], block, _attended(block, mixed), memories[last])
            new = [*new, TokensRead(own, None, tokens.shape[1])]
        self.append(past, new)
        return self.logits(params, hidden[:, 0]), state

    @torch.no_grad()
    def decode(
        self, params: Params, state: FastState, tokens: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, FastState]:
        """Read one token [B] in every active row (bool [B]); the others are computed and left as they were.

        Returns logits [B, V] (meaningless for inactive rows) and the state.
        """
        return self.decode_stretches(params, [state], tokens, active), state

    @torch.no_grad()
    def decode_stretches(
        self, params: Params, states: Sequence[FastState], tokens: torch.Tensor, active: torch.Tensor
    ) -> torch.Tensor:
        """Do the same with rows of several states, one behind the other: slow weights are read once for all rows.

        Returns the logits.
        """
        if can_decode_fused(self.config, params, states, active):
            return self._decode_fused(params, states, tokens)
        parts = stretches(self.config, states, active)
        memories = [self.memories(state) for state in states]
        positions = torch.cat([state.window.positions for state in states])
        sight = decode_sight(self.config, positions, states[0].window.keys.dtype)
        hidden = params.embed[tokens][:, None]
        for index, block in enumerate(params.blocks):
            mixed = []
            normed = self._norm(hidden, block.attn_norm)
            if block.qkv is not None:
                mixed.append(_attended(block, self._decode_attention(normed, block, index, sight, parts)))
            if block.titans is not None and self.memory.titans is not None:
                step = partial(self.memory.titans.step, block.titans)
                found = [step(normed[p.part], p.state.titans[index], p.pending, p.active) for p in parts]
                mixed.append(torch.cat(found))
            hidden = hidden + _summed(mixed)
            own = [(p.part, memory[index]) for p, memory in zip(parts, memories, strict=True)]
            hidden = hidden + mlp_stretches(self._norm(hidden, block.mlp_norm), block, own, self.config.cms)
        for part in parts:
            part.state.window.positions += part.active
        return self.logits(params, hidden[:, 0])

    @torch.no_grad()
    def read(
        self, params: Params, state: FastState, tokens: torch.Tensor, segments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[TokensRead]]:
        """Compute tokens [B, T] without changing the state.

        segments [T]: tokens of different segments do not see each other, and each segment starts at the row's next
        position; None is one segment. Returns hidden states before the last norm [B, T, D] and what each block read.
        """
        sight = self.sight(state.window, tokens.shape[1], segments)
        hidden = params.embed[tokens]
        return self.run_blocks(params, hidden, state.past, self.memories(state), sight, range(len(params.blocks)))

    def logits(self, params: Params, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits [..., V] of hidden states [..., D]."""
        return linear(self._norm(hidden, params.norm), params.head)

    def log_probs_at(
        self, params: Params, hidden: torch.Tensor, candidates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of candidates [n, K] after the first n of hidden [N, D]; logits [N - n, V] of the others.

        Differentiable once, in hidden.
        """
        return log_probs_at(self._norm(hidden, params.norm), params.head, candidates)

    def empty_past(self, num_rows: int, dtype: torch.dtype) -> Past:
        """What rows know that have seen nothing, to be read only."""
        return empty_past(self.memory, num_rows, dtype)

    def append(self, past: Past, new: list[TokensRead]) -> None:
        """Take over what the blocks read of T tokens, each row's next ones, in place; the positions move on."""
        window = past.window
        tokens = new[0].num_tokens
        places = ring_places(self.config, window.positions[:, None] + torch.arange(tokens))
        for index, read in enumerate(new):
            if read.attention is not None:
                keys, values = read.attention
                ring = self._ring[index]
                for row in range(places.shape[0]):
                    window.keys[ring, row, :, places[row]] = keys[row]
                    window.values[ring, row, :, places[row]] = values[row]
            if read.titans is not None:
                past.titans[index].copy_(read.titans)
        window.positions += tokens

    # -- parts, also used by the learner -----------------------------------------------------------------------------

    def memories(
        self, state: FastState, leaves: dict[str, dict[int, BlockMemory]] | None = None
    ) -> list[list[BlockMemory]]:
        """The fast weights acting on each block; drawn levels that no row has ever written are left out, as they add 0.

        leaves: by level name, matrices to use in place of the state's (the learner differentiates them).
        """
        out: list[list[BlockMemory]] = [[] for _ in range(self.config.model.num_layers)]
        for name, layout in self.memory.layouts.items():
            level = state.levels[name]
            found = (leaves or {}).get(name)
            if found is None and (name in self.memory.learned or bool(level.num_writes.any())):
                found = layout.views(level.weights)
            for block, memory in (found or {}).items():
                out[block].append(memory)
        return out

    def initial_memories(self, leaves: dict[str, dict[int, BlockMemory]] | None = None) -> list[list[BlockMemory]]:
        """The level weights acting on each block in a session that has seen nothing, for one row.

        leaves: by level name, matrices to use in place of the initial ones.
        """
        out: list[list[BlockMemory]] = [[] for _ in range(self.config.model.num_layers)]
        for name, layout in self.memory.layouts.items():
            found = (leaves or {}).get(name)
            if found is None and name in self.memory.learned:
                found = layout.views(self.memory.initial[name][None])
            for block, memory in (found or {}).items():
                out[block].append(memory)
        return out

    def sight(self, window: Window, tokens: int, segments: torch.Tensor | None = None) -> Sight:
        """What `tokens` new tokens of every row see.

        Raises ValueError if a segment is longer than the window, which only rows that have seen nothing may read.
        """
        config = self.config
        dtype = window.keys.dtype
        offsets = torch.arange(tokens)
        if segments is not None:
            offsets = offsets - torch.searchsorted(segments, segments)
        positions = window.positions[:, None] + offsets
        num_places = num_places_in_use(self.config, window.positions)
        longest = int(offsets.max()) + 1
        if self._ring and longest > config.window.size and num_places:
            raise ValueError(f"{longest} tokens at once, the window holds {config.window.size}")
        angles = rotary_angles(config, positions, dtype)
        if not self._ring or (segments is None and num_places == 0 and longest <= config.window.size):
            return Sight(angles, None, 0, None, segments)
        held = ring_positions(config, window.positions - 1, num_places)
        mask = torch.cat(
            [visible(config, positions, held, dtype), visible(config, positions, positions, dtype)], dim=-1
        )
        if segments is not None:
            apart = segments[:, None] != segments[None, :]
            mask[:, :, num_places:].masked_fill_(apart, -torch.inf)
        return Sight(angles, far_angles(self.config, positions, dtype), num_places, mask, segments)

    def branch_sight(self, window: Window, segments: torch.Tensor, sees_first: torch.Tensor) -> Sight:
        """What tokens of segments [T] see: their own and, where flagged, the first segment, as if they stood behind it.

        window: empty, of one row. sees_first: flag of each segment, bool. For blocks that attend only.
        """
        dtype, is_first = window.keys.dtype, segments == segments[0]
        is_branch = sees_first[segments] & ~is_first
        offsets = torch.arange(len(segments)) - torch.searchsorted(segments, segments)
        positions = (offsets + int(is_first.sum()) * is_branch)[None]
        angles = rotary_angles(self.config, positions, dtype)
        if int(positions.max()) < self.config.window.size:
            return Sight(angles, None, 0, None, segments, Fold.of(segments, sees_first, dtype))
        apart = (segments[:, None] != segments) & ~(is_branch[:, None] & is_first)
        mask = visible(self.config, positions, positions, dtype).masked_fill_(apart, -torch.inf)
        return Sight(angles, far_angles(self.config, positions, dtype), 0, mask, segments)

    def run_blocks(
        self,
        params: Params,
        hidden: torch.Tensor,
        past: Past,
        memories: list[list[BlockMemory]],
        sight: Sight,
        blocks: range,
    ) -> tuple[torch.Tensor, list[TokensRead]]:
        """Run some blocks over hidden [B, T, D]; differentiable. Returns hidden and what each block read.

        Source: NL eq. 94-97.
        """
        new = []
        for index in blocks:
            hidden, read = self.run_block(params.blocks[index], index, hidden, past, memories[index], sight)
            new.append(read)
        return hidden, new

    def run_block(
        self,
        block: BlockParams,
        index: int,
        hidden: torch.Tensor,
        past: Past,
        memories: list[BlockMemory],
        sight: Sight,
    ) -> tuple[torch.Tensor, TokensRead]:
        """Run one block over hidden [B, T, D]; differentiable."""
        parts: list[torch.Tensor] = []
        normed = self._norm(hidden, block.attn_norm)
        own, titans = None, None
        if block.qkv is not None:
            query, far_query, own = self._project(normed, block, sight)
            if sight.fold is not None:
                mixed = sight.fold.attend(query, *own)
            else:
                keys, values = self._with_past(past.window, index, sight, own)
                mixed = attend(query, far_query, self.config.window.num_sinks, keys, values, sight.mask)
            parts.append(_attended(block, mixed))
        if block.titans is not None and self.memory.titans is not None:
            pending = past.window.positions % self.config.chunk_size
            state = past.titans[index]
            written, titans = mix_titans(
                self.memory.titans, block.titans, normed, state, pending, sight.segments, is_guarded=self._is_guarded
            )
            parts.append(written)
        read = TokensRead(own, titans, hidden.shape[1])
        return self._finish(hidden, block, _summed(parts), memories), read

    # -- private ---------------------------------------------------------------------------------------------------

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        eps = self.config.model.rms_norm_eps
        if decoding.can_compute(x, weight):
            return decoding.add_norm(x.reshape(-1, x.shape[-1]).contiguous(), None, weight, eps).view(x.shape)
        return functional.rms_norm(x, weight.shape, weight, eps)

    def _decode_attention(
        self, normed: torch.Tensor, block: BlockParams, index: int, sight: Sight, parts: Sequence[Stretch]
    ) -> torch.Tensor:
        """What one token of every row attends to [B, 1, H d]; writes keys and values of those that are active."""
        query, far_query, (key, value) = self._project(normed, block, sight)
        ring, num_sinks = self._ring[index], self.config.window.num_sinks
        mixed = []
        for part in parts:
            window = part.state.window
            window.keys[ring, part.rows, :, part.places] = key[part.part][part.rows, :, 0]
            window.values[ring, part.rows, :, part.places] = value[part.part][part.rows, :, 0]
            keys = window.keys[ring, :, :, : part.num_places]
            values = window.values[ring, :, :, : part.num_places]
            far = far_query[part.part] if far_query is not None and part.sees_far else None
            mixed.append(attend(query[part.part], far, num_sinks, keys, values, part.mask))
        return torch.cat(mixed)

    def _decode_fused(self, params: Params, states: Sequence[FastState], tokens: torch.Tensor) -> torch.Tensor:
        """`decode_stretches` with what lies between its products in single calls."""
        attention = token_attention(self.config, states)
        memories = list(zip(row_slices(states), (self.memories(state) for state in states), strict=True))
        eps = self.config.model.rms_norm_eps
        hidden, added = params.embed[tokens], None
        for index, block in enumerate(params.blocks):
            assert block.qkv is not None, "asked only of models whose blocks all attend"
            projected = linear(decoding.add_norm(hidden, added, block.attn_norm, eps), block.qkv)
            assert block.out is not None, "as above"
            mixed = linear_in_columns(attention.attend(self._ring[index], projected), block.out)
            normed = decoding.add_norm(hidden, mixed, block.mlp_norm, eps)
            own = [(part, of_blocks[index]) for part, of_blocks in memories]
            added = mlp_stretches(normed[:, None], block, own, self.config.cms)[:, 0]
        for state in states:
            state.window.positions += 1
        return linear(decoding.add_norm(hidden, added, params.norm, eps), params.head)

    def _project(
        self, normed: torch.Tensor, block: BlockParams, sight: Sight
    ) -> tuple[torch.Tensor, torch.Tensor | None, KeyValue]:
        """Queries as the window and as the sinks see them [B, T, H, d]; keys and values as they are stored."""
        model = self.config.model
        assert block.qkv is not None, "asked only of blocks that attend"
        projected = linear(normed, block.qkv)
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
        """The rest of a block, given what its token mixers add [B, T, D]: the MLP."""
        hidden = hidden + mixed
        return hidden + mlp_block(self._norm(hidden, block.mlp_norm), block, memories, self.config.cms)

    def _with_past(self, window: Window, index: int, sight: Sight, own: KeyValue) -> KeyValue:
        """The keys and values that a block's tokens see: those in the window, then their own."""
        if sight.num_places == 0:
            return own
        ring = self._ring[index]
        keys = torch.cat([window.keys[ring, :, :, : sight.num_places], own[0]], dim=2)
        return keys, torch.cat([window.values[ring, :, :, : sight.num_places], own[1]], dim=2)


def _attended(block: BlockParams, mixed: torch.Tensor) -> torch.Tensor:
    """Project what the heads read [B, T, H d]."""
    assert block.out is not None, "asked only of blocks that attend"
    return linear(mixed, block.out)


def _summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """What a block's one or two token mixers add together."""
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
