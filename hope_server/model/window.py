"""The attention window: the last tokens' keys and values in a ring, the first few (sinks) for ever.

Ring place of position p: p for sinks, else S + (p - S) mod R. R exceeds the window by one chunk, so that an unfinished
chunk can be replayed from its start. Keys are stored rotated by their absolute position; only distances matter to
rotary attention, so positions inside the window never leave the trained range. Sinks are seen from the re-indexed
distance (at most S + W - 1) through a second rotation of the query.

Shapes: L layers, B rows, H heads, U key-value heads, G = H / U, T tokens, N ring places, d head size.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from hope_kernels.products import product_of_pairs
from torch.nn import functional

from hope_server.model.config import HopeConfig


@dataclass(slots=True)
class Window:
    """Keys and values [L, B, U, N, d] of the L blocks that attend, and the next position of every row [B]."""

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor

    def rows(self, start: int, stop: int) -> Window:
        """A view of rows start..stop-1."""
        return Window(self.keys[:, start:stop], self.values[:, start:stop], self.positions[start:stop])


def ring_capacity(config: HopeConfig) -> int:
    """Places in the ring, sinks included."""
    return config.window.num_sinks + config.window.size + config.chunk_size


def empty_window(config: HopeConfig, num_rows: int, dtype: torch.dtype) -> Window:
    """A window in which nothing was seen yet."""
    model = config.model
    shape = (len(config.attention_blocks), num_rows, model.num_kv_heads, ring_capacity(config), model.head_dim)
    return Window(_untouched(shape, dtype), _untouched(shape, dtype), torch.zeros(num_rows, dtype=torch.long))


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that cost no memory until they are written: a row that is never seated is never resident."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if not num_bytes:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


def ring_places(config: HopeConfig, positions: torch.Tensor) -> torch.Tensor:
    """The ring place of each position, same shape."""
    sinks = config.window.num_sinks
    ring = ring_capacity(config) - sinks
    return torch.where(positions < sinks, positions, sinks + (positions - sinks) % ring)


def ring_positions(config: HopeConfig, last: torch.Tensor, num_places: int) -> torch.Tensor:
    """The position held by each of the first places when `last` [B] was written last; -1: empty. [B, num_places]."""
    sinks = config.window.num_sinks
    ring = ring_capacity(config) - sinks
    place = torch.arange(num_places)
    last = last[:, None]
    held = last - (last - place) % ring
    held = torch.where(held >= sinks, held, torch.full_like(held, -1))
    return torch.where(place < sinks, torch.where(place <= last, place, -1), held)


def rotary_angles(config: HopeConfig, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [..., 1, d] for positions [...], computed in float64 so that far positions stay exact."""
    size = config.model.head_dim
    rates = config.model.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions[..., None].double() * rates
    angles = torch.cat([angles, angles], dim=-1)[..., None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate x [B, T, heads, d] by angles of shape [B, T, 1, d]."""
    cos, sin = angles
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def attend(
    query: torch.Tensor,
    far_query: torch.Tensor | None,
    num_sinks: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax attention with grouped heads.

    query [B, T, H, d]; far_query, of the same shape, is the query as the first num_sinks keys see it (None: the same);
    keys, values [B, U, n, d]; mask [B, T, n] is 0 or -inf and is added to the scores. Without a mask the queries are
    those of all n tokens or of the last one, each sees what is not after it, and there is no far_query.
    Returns [B, T, H d].
    """
    rows, tokens, heads, size = query.shape
    if mask is None or (far_query is None and not _is_online_pass(query)):
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys,
            values,
            attn_mask=None if mask is None else mask[:, None],
            is_causal=mask is None and tokens > 1,
            enable_gqa=True,
        )
        return mixed.transpose(1, 2).reshape(rows, tokens, heads * size)
    shared = keys.shape[1]
    group = heads // shared

    def grouped(x: torch.Tensor) -> torch.Tensor:
        x = x / math.sqrt(size)
        return x.view(rows, tokens, shared, group, size).permute(0, 2, 3, 1, 4).reshape(rows, shared, -1, size)

    scores = product_of_pairs(grouped(query), keys)
    if far_query is not None:
        scores[..., :num_sinks] = product_of_pairs(grouped(far_query), keys[:, :, :num_sinks])
    scores = scores.view(rows, shared, group, tokens, -1)
    scores += mask[:, None, None]
    weights = scores.softmax(dim=-1)
    mixed = product_of_pairs(weights.view(rows, shared, group * tokens, -1), values.transpose(2, 3))
    return mixed.view(rows, shared, group, tokens, size).permute(0, 3, 1, 2, 4).reshape(rows, tokens, heads * size)


def _is_online_pass(query: torch.Tensor) -> bool:
    """Whether a chunk's gradient goes through here: torch's attention takes twice the time of plain products for it."""
    return query.requires_grad and query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type)


def visible(
    config: HopeConfig, query_positions: torch.Tensor, key_positions: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The additive mask [B, T, n] of queries at [B, T] over keys at [B, n] (-1: nothing there)."""
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    near = (key > query - config.window.size) | (key < config.window.num_sinks)
    seen = (key >= 0) & (key <= query) & near
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf)
