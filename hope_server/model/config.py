"""What a HOPE model is: its base network, its attention window and its memory levels, all frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from hope_server.errors import SettingsError

BlockKind = Literal["low_rank", "dense", "residual"]
Schedule = Literal["online", "consolidation"]
Rule = Literal["sgd", "momentum", "adam"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Llama-family network: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position: int
    tie_embeddings: bool


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """The attention window.

    size: positions a token can see, itself included, besides the sinks.
    num_sinks: first positions of the session that stay visible for ever.
    precision: what stored keys and values are rounded to; they are computed with in the model's dtype.
    """

    size: int = 512
    num_sinks: int = 4
    precision: Literal["bfloat16", "model"] = "bfloat16"


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One level of the Continuum Memory System: fast weights over chosen MLP blocks (NL eq. 70-71, §7.3).

    kind: `low_rank` adds B A to gate, up and down; `dense` adds a full delta to down; `residual` adds
        a new two-layer MLP of hidden width `rank` beside the block.
    schedule: `online` levels are written every `update_period` tokens while the session streams;
        `consolidation` levels are written by replay of completed blocks of `update_period` tokens.
    rule, lr, betas: inner optimizer. lr 0 switches the level off exactly.
    norm_cap: largest Frobenius norm of the level's drift from its initial weights; a write that would pass it is
    scaled back.
    max_update_norm: gradient norm above which an online gradient is scaled down (surprise gate).
    """

    name: str
    blocks: tuple[int, ...]
    kind: BlockKind = "low_rank"
    rank: int = 16
    schedule: Schedule = "consolidation"
    update_period: int = 256
    rule: Rule = "adam"
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    norm_cap: float = 60.0
    max_update_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class HopeConfig:
    """A servable model: base network, window and levels. `chunk_size` is the online chunk in tokens."""

    model: ModelConfig
    window: WindowSpec = field(default_factory=WindowSpec)
    levels: tuple[LevelSpec, ...] = ()
    chunk_size: int = 64

    def __post_init__(self) -> None:
        """Refuse levels that cannot exist; raises SettingsError naming the level and the rule."""
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise SettingsError(f"level names must differ, got {names}")
        for level in self.levels:
            self._check_level(level)
        if self.window.size < self.chunk_size:
            raise SettingsError(f"window of {self.window.size} tokens is shorter than the chunk of {self.chunk_size}")

    def _check_level(self, level: LevelSpec) -> None:
        where = f"level {level.name!r}"
        if not level.name.isidentifier():
            raise SettingsError(f"{where}: the name must be a plain identifier")
        if not level.blocks or min(level.blocks) < 0 or max(level.blocks) >= self.model.num_layers:
            raise SettingsError(f"{where}: blocks must lie in 0..{self.model.num_layers - 1}, got {level.blocks}")
        if len(set(level.blocks)) != len(level.blocks):
            raise SettingsError(f"{where}: blocks repeat in {level.blocks}")
        if level.update_period < 1 or level.update_period % self.chunk_size:
            raise SettingsError(
                f"{where}: update_period {level.update_period} must be a multiple of "
                f"the chunk of {self.chunk_size} tokens"
            )
        if level.schedule == "consolidation" and 2 * level.update_period > self.window.size:
            raise SettingsError(
                f"{where}: a block of {level.update_period} tokens would leave the window of "
                f"{self.window.size} before it is consolidated; use at most half the window"
            )
        # Written so that NaN, which passes no comparison, does not pass.
        if not (level.rank >= 1 and 0 <= level.lr < math.inf and level.norm_cap > 0 and level.max_update_norm > 0):
            raise SettingsError(f"{where}: rank >= 1, lr >= 0, norm_cap > 0 and max_update_norm > 0 are required")
        if not all(0 <= beta < 1 for beta in level.betas):
            raise SettingsError(f"{where}: betas must lie in 0..1, 1 excluded, got {level.betas}")
