"""Decoding steps by compiled operators: when they can be, and what one of them sees.

Shapes: B rows of all states together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hope_kernels.decoding import Heads, TokenAttention, can_compute

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params
from hope_server.model.sight import decode_sight, num_places_in_use
from hope_server.model.state import FastState
from hope_server.model.window import ring_places, ring_positions, visible

__all__ = ["can_decode_fused", "token_attention"]


def can_decode_fused(config: HopeConfig, params: Params, states: Sequence[FastState], active: torch.Tensor) -> bool:
    """Whether the operators can do the step: float32 windows on a CPU, attention in every block, every row active.

    Weights may be rounded: products are torch's.
    """
    window = states[0].window
    attends = config.titans is None and len(config.attention_blocks) == config.model.num_layers
    can = can_compute(window.keys, window.values, params.embed, params.norm)
    return attends and can and bool(active.all()) and len({state.window.keys.stride(0) for state in states}) == 1


def token_attention(config: HopeConfig, states: Sequence[FastState]) -> TokenAttention:
    """Attention of the next token of every row, wherever the states lie."""
    model = config.model
    positions = torch.cat([state.window.positions for state in states])
    num_places = num_places_in_use(config, positions + 1)
    sight = decode_sight(config, positions, torch.float32)
    held = ring_positions(config, positions, num_places)
    mask = visible(config, positions[:, None], held, torch.float32)[:, 0]
    is_rounded = config.window.precision == "bfloat16"
    heads = Heads(model.num_heads, model.num_kv_heads, model.head_dim, config.window.num_sinks, is_rounded)
    rings = [(state.window.keys, state.window.values) for state in states]
    near, far = (
        (pair[0].flatten(1), pair[1].flatten(1)) if pair else None for pair in (sight.angles, sight.far_angles)
    )
    assert near is not None, "every query is turned"
    return TokenAttention(heads, rings, ring_places(config, positions), near, far, mask)
