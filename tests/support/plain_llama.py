"""A second, plain Llama to check the model against: one row, no fused weights, autograd as it is."""

from __future__ import annotations

import torch
from torch.nn import functional
from toys import MODEL

from hope_server.model.hope import HopeModel
from hope_server.model.params import random_weights

Weights = dict[str, torch.Tensor]
Past = list[tuple[torch.Tensor, torch.Tensor]]


def norm(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm without weights: the toy's are ones."""
    return x / (x.square().mean(-1, keepdim=True) + MODEL.rms_norm_eps).sqrt()


def turned(x: torch.Tensor, start: int) -> torch.Tensor:
    """Rotary positions of x [T, heads, d] from `start` on, as complex multiplication."""
    half = MODEL.head_dim // 2
    rates = MODEL.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(start, start + len(x), dtype=torch.float64)[:, None] * rates
    spun = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([spun.real, spun.imag], dim=-1)


def llama(weights: Weights, tokens: torch.Tensor, past: Past | None = None) -> tuple[torch.Tensor, Past]:
    """Logits [T, V] of a Llama over one row of tokens behind the keys and values of a past; and the new past."""
    start = len(past[0][0]) if past else 0
    hidden, grown = weights["embed.weight"][tokens], []
    for layer in range(MODEL.num_layers):
        matrix = {key: weights[f"layers.{layer}.{key}.weight"] for key in ("q", "k", "v", "o", "gate", "up", "down")}
        x = norm(hidden)
        query, key, value = ((x @ matrix[name].T).view(len(tokens), -1, MODEL.head_dim) for name in ("q", "k", "v"))
        query, key = turned(query, start), turned(key, start)
        if past:
            key, value = torch.cat([past[layer][0], key]), torch.cat([past[layer][1], value])
        grown.append((key.detach(), value.detach()))
        causal = torch.ones(len(tokens), len(key), dtype=torch.bool).tril(start)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), attn_mask=causal, enable_gqa=True
        )
        hidden = hidden + mixed.transpose(0, 1).flatten(1) @ matrix["o"].T
        x = norm(hidden)
        hidden = hidden + (functional.silu(x @ matrix["gate"].T) * (x @ matrix["up"].T)) @ matrix["down"].T
    return norm(hidden) @ weights["embed.weight"].T, grown


def merged(model: HopeModel, levels: dict[str, torch.Tensor]) -> Weights:
    """The toy's slow weights with the flat weights [P] of low-rank levels, by name, added in."""
    weights = random_weights(MODEL, 0, torch.float64)
    for name, flat in levels.items():
        for block, memory in model.memory.layouts[name].views(flat[None]).items():
            fast = {key: matrix[0] for key, matrix in memory.items()}
            in_gate, in_up = fast["in_gate_up"].chunk(2)
            for target, delta in (
                ("gate", fast["out_gate"] @ in_gate),
                ("up", fast["out_up"] @ in_up),
                ("down", fast["out_down"] @ fast["in_down"]),
            ):
                weights[f"layers.{block}.{target}.weight"] = weights[f"layers.{block}.{target}.weight"] + delta
    return weights


def chain_rule(model: HopeModel, name: str, flat: torch.Tensor, dense: Weights) -> torch.Tensor:
    """A low-rank level's gradient [P] at weights flat [P] from those of merged matrices: dB = dW A^T, dA = B^T dW."""
    layout = model.memory.layouts[name]
    views = layout.views(flat[None])
    found = {}
    for block, memory in views.items():
        fast = {key: matrix[0] for key, matrix in memory.items()}
        in_gate, in_up = fast["in_gate_up"].chunk(2)
        gate, up, down = (dense[f"layers.{block}.{target}.weight"] for target in ("gate", "up", "down"))
        found[block, "in_gate_up"] = torch.cat([fast["out_gate"].T @ gate, fast["out_up"].T @ up])
        found[block, "out_gate"], found[block, "out_up"] = gate @ in_gate.T, up @ in_up.T
        found[block, "in_down"], found[block, "out_down"] = fast["out_down"].T @ down, down @ fast["in_down"].T
    return torch.cat([found[place].flatten() for place in layout.places])
