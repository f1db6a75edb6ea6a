"""What the tokens of one call see: rotations, masks, and how much of the attention window is in use.

Shapes: B rows, T tokens, N ring places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hope_server.model.config import HopeConfig
from hope_server.model.fold import Fold
from hope_server.model.state import FastState
from hope_server.model.window import ring_places, ring_positions, rotary_angles, visible

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Sight:
    """What the tokens of one call see.

    far_angles: rotation of the query as the sinks see it; None while every position is inside the first S + W.
    num_places: ring places that hold anything; mask [B, T, num_places + T]; None in one segment behind nothing, where
    every token simply sees itself and those before it. segments [T], as in `HopeModel.sight`. fold: what segments see
    in place of the mask, in `HopeModel.branch_sight`.
    """

    angles: Angles
    far_angles: Angles | None
    num_places: int
    mask: torch.Tensor | None
    segments: torch.Tensor | None = None
    fold: Fold | None = None


@dataclass(slots=True)
class Stretch:
    """Rows of one state among all rows of a decoding step, and what their next tokens see.

    part: its rows among all; rows: those of them that are active, counted from its first, and their ring places
    [active]. pending [B]: tokens of each row's unfinished chunk. mask [B, 1, num_places]; sees_far: as `Sight`'s
    far_angles are there or not.
    """

    state: FastState
    part: slice
    active: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    pending: torch.Tensor
    num_places: int
    mask: torch.Tensor
    sees_far: bool


def num_places_in_use(config: HopeConfig, positions: torch.Tensor) -> int:
    """Ring places that hold anything when rows are at positions [B]."""
    capacity = config.window.num_sinks + config.window.size + config.chunk_size
    return min(int(positions.max()), capacity)


def far_angles(config: HopeConfig, positions: torch.Tensor, dtype: torch.dtype) -> Angles | None:
    """How queries at positions [B, T] are turned towards the sinks; None where no turn differs from the usual one."""
    if not _sees_far(config, positions):
        return None
    return rotary_angles(config, positions.clamp(max=config.window.num_sinks + config.window.size - 1), dtype)


def decode_sight(config: HopeConfig, positions: torch.Tensor, dtype: torch.dtype) -> Sight:
    """The rotations of one token of every row, at positions [B]."""
    queries = positions[:, None]
    return Sight(rotary_angles(config, queries, dtype), far_angles(config, queries, dtype), 0, None)


def row_slices(states: Sequence[FastState]) -> list[slice]:
    """Where each state's rows lie among all."""
    out, first = [], 0
    for state in states:
        out.append(slice(first, first + len(state.window.positions)))
        first = out[-1].stop
    return out


def stretches(config: HopeConfig, states: Sequence[FastState], active: torch.Tensor) -> list[Stretch]:
    """The states' rows one behind the other, those that are active [B] reading one token."""
    out = []
    for state, part in zip(states, row_slices(states), strict=True):
        window = state.window
        positions = window.positions
        reads = active[part]
        rows = reads.nonzero()[:, 0]
        num_places = num_places_in_use(config, positions + 1)
        held = ring_positions(config, torch.where(reads, positions, positions - 1), num_places)
        mask = visible(config, positions[:, None], held, window.keys.dtype)
        mask[~reads] = 0.0
        places = ring_places(config, positions)[rows]
        pending = positions % config.chunk_size
        out.append(Stretch(state, part, reads, rows, places, pending, num_places, mask, _sees_far(config, positions)))
    return out


def _sees_far(config: HopeConfig, positions: torch.Tensor) -> bool:
    sinks = config.window.num_sinks
    return sinks > 0 and int(positions.max()) >= sinks + config.window.size
