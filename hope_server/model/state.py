"""The fast state: every tensor that a session's next token depends on, with a leading row dimension.

Shapes: B rows, P weights of a level, C tokens of an online chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.model.config import HopeConfig
from hope_server.model.levels import LevelLayout, make_layout
from hope_server.model.window import Window, empty_window

Logits = torch.Tensor
"""Next-token logits [B, V]."""


@dataclass(slots=True)
class LevelState:
    """One level's memory.

    weights [B, P]; first_moment, second_moment and accumulator [B, P] or [B, 0] where the level's rule has none;
    num_writes [B] counts updates, so that an unwritten level (0) costs and changes nothing.
    """

    weights: torch.Tensor
    first_moment: torch.Tensor
    second_moment: torch.Tensor
    accumulator: torch.Tensor
    num_writes: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name."""
        return {
            "weights": self.weights,
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
            "accumulator": self.accumulator,
            "num_writes": self.num_writes,
        }

    def clone(self) -> LevelState:
        """An independent copy."""
        return LevelState(**{name: tensor.clone() for name, tensor in self.tensors().items()})

    def rows(self, start: int, stop: int) -> LevelState:
        """A view of rows start..stop-1."""
        return LevelState(**{name: tensor[start:stop] for name, tensor in self.tensors().items()})


@dataclass(slots=True)
class FastState:
    """What a session remembers in tensors.

    window: keys, values and positions; levels: by level name.
    pending [B, C] and pending_teaches [B, C]: tokens since the last chunk boundary, and whether each may teach;
    num_pending [B].
    """

    window: Window
    levels: dict[str, LevelState]
    pending: torch.Tensor
    pending_teaches: torch.Tensor
    num_pending: torch.Tensor

    def rows(self, start: int, stop: int) -> FastState:
        """A view of rows start..stop-1: writes to it are writes to this state."""
        return FastState(
            self.window.rows(start, stop),
            {name: level.rows(start, stop) for name, level in self.levels.items()},
            self.pending[start:stop],
            self.pending_teaches[start:stop],
            self.num_pending[start:stop],
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by a dotted name; window keys and values have rows in dimension 1, all others in dimension 0."""
        out = {
            "window.keys": self.window.keys,
            "window.values": self.window.values,
            "window.positions": self.window.positions,
            "pending.tokens": self.pending,
            "pending.teaches": self.pending_teaches,
            "pending.num": self.num_pending,
        }
        for name, level in self.levels.items():
            out |= {f"level.{name}.{key}": tensor for key, tensor in level.tensors().items()}
        return out

    def copy_(self, other: FastState) -> None:
        """Overwrite this state with another of the same shape."""
        mine, theirs = self.tensors(), other.tensors()
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])

    def clone(self) -> FastState:
        """An independent copy."""
        return FastState(
            Window(self.window.keys.clone(), self.window.values.clone(), self.window.positions.clone()),
            {name: level.clone() for name, level in self.levels.items()},
            self.pending.clone(),
            self.pending_teaches.clone(),
            self.num_pending.clone(),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """The levels of a config with their layouts and initial weights (slow: shared by all sessions)."""

    config: HopeConfig
    layouts: dict[str, LevelLayout]
    initial: dict[str, torch.Tensor]


def make_memory(config: HopeConfig, dtype: torch.dtype) -> Memory:
    """Lay out every level of a config and draw its initial weights."""
    layouts = {spec.name: make_layout(spec, config.model) for spec in config.levels}
    return Memory(config, layouts, {name: layout.initial(dtype) for name, layout in layouts.items()})


def empty_state(memory: Memory, num_rows: int, dtype: torch.dtype) -> FastState:
    """The state of sessions that have seen nothing: `num_rows` rows of the initial weights and an empty window."""
    config = memory.config
    levels = {}
    for name, layout in memory.layouts.items():
        spec, size = layout.spec, layout.num_weights
        online = spec.schedule == "online"
        accumulates = online and spec.update_period > config.chunk_size
        widths = (
            size if online and spec.rule in ("momentum", "adam") else 0,
            size if online and spec.rule == "adam" else 0,
            size if accumulates else 0,
        )
        first, second, accumulator = (torch.zeros(num_rows, width, dtype=dtype) for width in widths)
        weights = memory.initial[name].expand(num_rows, size).clone()
        levels[name] = LevelState(weights, first, second, accumulator, torch.zeros(num_rows, dtype=torch.long))
    return FastState(
        empty_window(config, num_rows, dtype),
        levels,
        torch.zeros(num_rows, config.chunk_size, dtype=torch.long),
        torch.zeros(num_rows, config.chunk_size, dtype=torch.bool),
        torch.zeros(num_rows, dtype=torch.long),
    )


def reset_rows(memory: Memory, state: FastState) -> None:
    """Make every row of `state` that of a session that has seen nothing."""
    for tensor in state.tensors().values():
        tensor.zero_()
    for name, level in state.levels.items():
        level.weights.copy_(memory.initial[name].expand_as(level.weights))
