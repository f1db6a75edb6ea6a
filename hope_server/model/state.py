"""The fast state: every tensor that a session's next token depends on, with a leading row dimension.

Shapes: B rows, P weights of a level, C tokens of an online chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hope_server.model.cms import chain_order, contexts
from hope_server.model.config import HopeConfig
from hope_server.model.levels import LevelLayout, make_layout
from hope_server.model.memories import Weights
from hope_server.model.params import Params
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_state import TitansState
from hope_server.model.window import Window, empty_window

Logits = torch.Tensor
"""Next-token logits [B, V]."""


@dataclass(slots=True)
class LevelState:
    """One level's memory.

    weights [B, P]; moments: what its rule remembers, by name, [B, ...] each; accumulator [B, P], or [B, 0] where each
    chunk is written at once; num_writes [B] counts what has changed the weights, so that an unwritten level (0) costs
    and changes nothing.
    start [B, P] and num_steps [B, 1]: in a nested level, how far its start has moved from its initial weights, and the
    steps of its rule since it last began there; [B, 0] in others.
    """

    weights: torch.Tensor
    moments: dict[str, torch.Tensor]
    accumulator: torch.Tensor
    num_writes: torch.Tensor
    start: torch.Tensor
    num_steps: torch.Tensor

    @property
    def is_nested(self) -> bool:
        """Whether the level begins anew when its context ends."""
        return self.num_steps.shape[1] > 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name."""
        return {
            "weights": self.weights,
            **self.moments,
            "accumulator": self.accumulator,
            "num_writes": self.num_writes,
            "start": self.start,
            "num_steps": self.num_steps,
        }

    def clone(self, copy: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> LevelState:
        """An independent copy, of tensors that `copy` makes."""
        return self._each(copy)

    def rows(self, start: int, stop: int) -> LevelState:
        """A view of rows start..stop-1."""
        return self._each(lambda tensor: tensor[start:stop])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LevelState:
        return LevelState(
            change(self.weights),
            {name: change(tensor) for name, tensor in self.moments.items()},
            change(self.accumulator),
            change(self.num_writes),
            change(self.start),
            change(self.num_steps),
        )


@dataclass(slots=True)
class Past:
    """What the blocks know of the tokens before: the attention window, and the Titans memories by block."""

    window: Window
    titans: dict[int, TitansState]


@dataclass(slots=True)
class FastState:
    """What a session remembers in tensors.

    window: keys, values and positions; titans: memories by block; levels: by level name.
    pending [B, C] and pending_teaches [B, C]: tokens since the last chunk boundary, and whether each may teach;
    num_pending [B].
    """

    window: Window
    titans: dict[int, TitansState]
    levels: dict[str, LevelState]
    pending: torch.Tensor
    pending_teaches: torch.Tensor
    num_pending: torch.Tensor

    @property
    def past(self) -> Past:
        """What the blocks read of this state besides the levels: the same tensors."""
        return Past(self.window, self.titans)

    def empty_window(self) -> None:
        """Forget the last tokens: what is known from now on is known by weights alone."""
        self.window.positions.zero_()
        self.num_pending.zero_()
        for titans in self.titans.values():
            titans.tail.zero_()
            titans.tail_start.zero_()

    def rows(self, start: int, stop: int) -> FastState:
        """A view of rows start..stop-1: writes to it are writes to this state."""
        return FastState(
            self.window.rows(start, stop),
            {block: titans.at(slice(start, stop)) for block, titans in self.titans.items()},
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
        for block, titans in self.titans.items():
            out |= {f"titans.{block}.{key}": tensor for key, tensor in titans.tensors().items()}
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
            {block: titans.clone() for block, titans in self.titans.items()},
            {name: level.clone() for name, level in self.levels.items()},
            self.pending.clone(),
            self.pending_teaches.clone(),
            self.num_pending.clone(),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """The memories of a config and their initial weights (slow: shared by all sessions).

    layouts, initial: of each level by name; learned: levels whose initial weights were learned, so that they act before
    any write; titans: the layer that computes the Titans memories, None without them; titans_initial: of each Titans
    block.
    """

    config: HopeConfig
    layouts: dict[str, LevelLayout]
    initial: dict[str, torch.Tensor]
    learned: frozenset[str]
    titans: TitansLayer | None
    titans_initial: dict[int, Weights]


def make_memory(
    config: HopeConfig, dtype: torch.dtype, params: Params | None = None, *, is_compiled: bool = False
) -> Memory:
    """Lay out every memory of a config.

    params: where the learned initial weights are; a level that it has none for starts from drawn ones. is_compiled:
    see TitansLayer. Raises ValueError where a Titans block has none.
    """
    layouts = {spec.name: make_layout(spec, config.model) for spec in chain_order(config.levels, config.cms)}
    learned = {} if params is None else params.levels
    initial = {name: learned.get(name, layout.initial(dtype)) for name, layout in layouts.items()}
    names = frozenset(layouts.keys() & learned.keys())
    if config.titans is None:
        return Memory(config, layouts, initial, names, None, {})
    found = {} if params is None else {i: block.titans for i, block in enumerate(params.blocks) if block.titans}
    if set(found) != set(config.titans.blocks):
        raise ValueError(f"Titans memories of blocks {config.titans.blocks} need initial weights, got {sorted(found)}")
    layer = TitansLayer(config.titans, config.chunk_size, config.model.rms_norm_eps, is_compiled=is_compiled)
    return Memory(config, layouts, initial, names, layer, {i: titans.initial for i, titans in found.items()})


def empty_past(memory: Memory, num_rows: int, dtype: torch.dtype) -> Past:
    """What rows know that have seen nothing; differentiable in the initial memories, and not to be written in place."""
    layer = memory.titans
    titans = {i: layer.empty_state(initial, num_rows) for i, initial in memory.titans_initial.items()} if layer else {}
    return Past(empty_window(memory.config, num_rows, dtype), titans)


def empty_state(memory: Memory, num_rows: int, dtype: torch.dtype) -> FastState:
    """The state of sessions that have seen nothing: `num_rows` rows of the initial weights and an empty window."""
    config = memory.config
    levels = {}
    for name, layout in memory.layouts.items():
        levels[name] = _empty_level(memory, layout, num_rows, dtype)
    past = empty_past(memory, num_rows, dtype)
    return FastState(
        past.window,
        {block: titans.clone() for block, titans in past.titans.items()},
        levels,
        torch.zeros(num_rows, config.chunk_size, dtype=torch.long),
        torch.zeros(num_rows, config.chunk_size, dtype=torch.bool),
        torch.zeros(num_rows, dtype=torch.long),
    )


def _empty_level(memory: Memory, layout: LevelLayout, num_rows: int, dtype: torch.dtype) -> LevelState:
    spec, size, config = layout.spec, layout.num_weights, memory.config
    online = spec.schedule == "online"
    nested = spec.name in contexts(config.levels, config.cms)
    return LevelState(
        weights=memory.initial[spec.name].expand(num_rows, size).clone(),
        moments=layout.moments(num_rows, dtype) if online else {},
        accumulator=torch.zeros(
            num_rows, size if online and spec.update_period > config.chunk_size else 0, dtype=dtype
        ),
        num_writes=torch.zeros(num_rows, dtype=torch.long),
        start=torch.zeros(num_rows, size if nested else 0, dtype=dtype),
        num_steps=torch.zeros(num_rows, int(nested), dtype=torch.long),
    )


def reset_rows(memory: Memory, state: FastState) -> None:
    """Make every row of `state` that of a session that has seen nothing."""
    for tensor in state.tensors().values():
        tensor.zero_()
    for name, level in state.levels.items():
        level.weights.copy_(memory.initial[name].expand_as(level.weights))
    reset_titans(memory, state)


def reset_titans(memory: Memory, state: FastState) -> None:
    """Make every row's Titans memories those of a session that has seen nothing.

    Tokens of an unfinished chunk stay; they have to be read again from the chunk's start.
    """
    for block, titans in state.titans.items():
        for tensor in titans.surprises.values():
            tensor.zero_()
        for name, tensor in titans.memories.items():
            tensor.copy_(memory.titans_initial[block][name].expand_as(tensor))
