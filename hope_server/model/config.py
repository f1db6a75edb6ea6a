"""What a HOPE model is: its base network, its attention window and its memory levels, all frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from hope_server.errors import SettingsError

BlockKind = Literal["low_rank", "dense", "residual"]
Schedule = Literal["online", "consolidation"]
MemoryKind = Literal["matrix", "mlp"]
Objective = Literal["l2", "dot"]
DgdScope = Literal["layer_input", "k_only", "none"]
Reads = Literal["chunk_start", "current"]
Adaptive = Literal["k", "v", "q", "lr", "retention"]
CmsForm = Literal["independent", "sequential", "nested"]
Rule = Literal[
    "sgd",
    "momentum",
    "preconditioned",
    "delta_momentum",
    "deep_momentum",
    "feature_momentum",
    "muon",
    "adam",
    "adamw",
    "m3",
]
RESERVED_NAMES = ("window", "journal", "titans")
"""What a snapshot stores besides levels, by name; no level may have one of these."""


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
    rule, lr, betas: inner optimizer, by its name in `hope_server.optim`; betas are the shares of the past kept in its
        first moment and in its second. lr 0 switches the level off exactly.
    norm_cap: largest Frobenius norm of the level's drift from its initial weights; a write that would pass it is
    scaled back.
    max_update_norm: gradient norm above which an online gradient is scaled down (surprise gate).
    share: weight of a `residual` level's output in the block's sum, 1 / k for the mean of k levels (NL eq. 74).
    is_whitened: its steps are short in keys whitened by the network's statistics, which must be known of its blocks.
    gate: share of general text's tokens at which a whitened level keeps silent (`model/recognition.py`); 0 for none.
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
    share: float = 1.0
    is_whitened: bool = False
    gate: float = 0.0


@dataclass(frozen=True, slots=True)
class TitansSpec:
    """Self-modifying Titans in chosen blocks (NL eq. 76-93); the paper's form is the default.

    blocks: the blocks that have it, in place of attention, or with `beside_attention` as a gated branch beside it.
    num_heads, head_dim: memories are per head; keys and values have head_dim entries.
    memory: a matrix, or a residual MLP with `hidden_size` hidden units (NL eq. 89).
    objective: the inner loss, half the squared error (NL eq. 88) or the dot product (NL eq. 92).
    dgd_scope: which weights decay along their input: both layers along their own, the first along the key, or none.
    reads: the memory as it was at the chunk's start (NL eq. 90), or after the token's own write.
    adaptive: what memories of their own generate, besides the slow projection: keys, values, queries, rates.
    self_targets: the memories make their own targets out of the value (NL eq. 83-85), or the value is the target.
    has_retention, has_momentum: whether old memory decays, and whether past surprise carries on.
    is_residual: whether a matrix adds the query to what it retrieves, as the MLP always does.
    conv_size: window of the causal convolution behind the projections, 1 for none (NL §8.3).
    max_lr: the largest step size, 0 to 2; at chunk size 1 with the squared error, 1 reflects along the key.
    lr_range, retention_range: what training starts from in the first and the last head, even ratios between: step sizes
        as shares of max_lr; tokens until a share 1/e of the old memory is left.
    num_sums: heads, the first ones, that start as running sums: all of past surprise carries on, over a memory that
        keeps next to nothing of its own. They count exactly, as a memory that decays along its keys cannot, and take
        keys, values and rates from the slow weights alone.
    """

    blocks: tuple[int, ...]
    num_heads: int
    head_dim: int
    beside_attention: bool = False
    memory: MemoryKind = "matrix"
    hidden_size: int = 64
    objective: Objective = "l2"
    dgd_scope: DgdScope = "layer_input"
    reads: Reads = "chunk_start"
    adaptive: tuple[Adaptive, ...] = ("k", "v", "lr", "retention")
    self_targets: bool = True
    has_retention: bool = True
    has_momentum: bool = False
    is_residual: bool = True
    conv_size: int = 4
    max_lr: float = 1.0
    lr_range: tuple[float, float] = (0.5, 0.5)
    retention_range: tuple[float, float] = (32.0, 32_768.0)
    num_sums: int = 0


@dataclass(frozen=True, slots=True)
class HopeConfig:
    """A servable model: network, window, memory levels and Titans.

    chunk_size: tokens of an online chunk, of levels and Titans memories alike. cms: how the levels of one block act
    together (NL eq. 72-74).
    """

    model: ModelConfig
    window: WindowSpec = field(default_factory=WindowSpec)
    levels: tuple[LevelSpec, ...] = ()
    chunk_size: int = 64
    titans: TitansSpec | None = None
    cms: CmsForm = "independent"

    @property
    def attention_blocks(self) -> tuple[int, ...]:
        """The blocks that attend, in order."""
        titans = self.titans
        replaced = set() if titans is None or titans.beside_attention else set(titans.blocks)
        return tuple(block for block in range(self.model.num_layers) if block not in replaced)

    def __post_init__(self) -> None:
        """Refuse levels that cannot exist; raises SettingsError naming the level and the rule."""
        if self.chunk_size < 1:
            raise SettingsError(f"chunk_size must be at least 1, got {self.chunk_size}")
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise SettingsError(f"level names must differ, got {names}")
        for level in self.levels:
            self._check_level(level)
        self._check_nest()
        if self.titans is not None:
            self._check_titans(self.titans)
        if self.window.size < self.chunk_size:
            raise SettingsError(f"window of {self.window.size} tokens is shorter than the chunk of {self.chunk_size}")

    def _check_titans(self, titans: TitansSpec) -> None:
        last = self.model.num_layers - 1
        if not titans.blocks or list(titans.blocks) != sorted(set(titans.blocks) & set(range(last + 1))):
            raise SettingsError(f"titans: blocks must rise within 0..{last}, got {titans.blocks}")
        sizes = (titans.num_heads, titans.head_dim, titans.hidden_size, titans.conv_size)
        if min(sizes) < 1:
            raise SettingsError(f"titans: heads, head_dim, hidden_size and conv_size must be at least 1, got {sizes}")
        if len(set(titans.adaptive)) != len(titans.adaptive) or not set(titans.adaptive) <= set(get_args(Adaptive)):
            raise SettingsError(f"titans: adaptive must differ and be of {get_args(Adaptive)}, got {titans.adaptive}")
        if "retention" in titans.adaptive and not titans.has_retention:
            raise SettingsError("titans: retention cannot be adaptive where there is none; drop it from `adaptive`")
        if not 0 < titans.max_lr <= 2:
            raise SettingsError(f"titans: max_lr must lie in 0..2, got {titans.max_lr}")
        if len(titans.lr_range) != 2 or not all(0 < share < 1 for share in titans.lr_range):
            raise SettingsError(f"titans: lr_range must be two shares between 0 and 1, got {titans.lr_range}")
        if len(titans.retention_range) != 2 or not all(0 < tokens < math.inf for tokens in titans.retention_range):
            raise SettingsError(f"titans: retention_range must be two numbers of tokens, got {titans.retention_range}")
        if not 0 <= titans.num_sums <= titans.num_heads:
            raise SettingsError(f"titans: num_sums must lie in 0..{titans.num_heads}, got {titans.num_sums}")
        if titans.num_sums and not (titans.has_momentum and titans.has_retention):
            raise SettingsError("titans: heads that start as sums need momentum and retention; drop num_sums")
        choices = (
            ("memory", titans.memory, MemoryKind),
            ("objective", titans.objective, Objective),
            ("dgd_scope", titans.dgd_scope, DgdScope),
            ("reads", titans.reads, Reads),
        )
        for name, value, allowed in choices:
            if value not in get_args(allowed):
                raise SettingsError(f"titans: {name} must be one of {', '.join(get_args(allowed))}, got {value!r}")

    def _check_level(self, level: LevelSpec) -> None:
        where = f"level {level.name!r}"
        if level.name in RESERVED_NAMES:
            raise SettingsError(f"{where}: the name is taken by a part of every session; choose another")
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
        consolidates = level.schedule == "consolidation"
        if consolidates and self.attention_blocks and 2 * level.update_period > self.window.size:
            raise SettingsError(
                f"{where}: a block of {level.update_period} tokens would leave the window of "
                f"{self.window.size} before it is consolidated; use at most half the window"
            )
        # Written so that NaN, which passes no comparison, does not pass.
        if not (level.rank >= 1 and 0 <= level.lr < math.inf and level.norm_cap > 0 and level.max_update_norm > 0):
            raise SettingsError(f"{where}: rank >= 1, lr >= 0, norm_cap > 0 and max_update_norm > 0 are required")
        if not all(0 <= beta < 1 for beta in level.betas):
            raise SettingsError(f"{where}: betas must lie in 0..1, 1 excluded, got {level.betas}")
        for key, allowed in (("kind", BlockKind), ("schedule", Schedule), ("rule", Rule)):
            if (value := getattr(level, key)) not in get_args(allowed):
                raise SettingsError(f"{where}: {key} {value!r} is unknown; known are {', '.join(get_args(allowed))}")
        if level.is_whitened and (level.kind, level.schedule) != ("dense", "consolidation"):
            raise SettingsError(f"{where}: only a dense level that is written by consolidation can be whitened")
        if level.is_whitened and self.titans is not None:
            raise SettingsError(f"{where}: a network with Titans memories has no whitened levels")
        if not 0 <= level.gate < 1 or (level.gate and not level.is_whitened):
            raise SettingsError(f"{where}: gate {level.gate} must lie in 0..1, 1 excluded, and be 0 unless whitened")
        if not math.isfinite(level.share) or (level.share != 1 and level.kind != "residual"):
            raise SettingsError(
                f"{where}: share {level.share} must be finite, and 1 unless the level is residual: "
                f"a {level.kind} level is part of the block's own MLP"
            )

    def _check_nest(self) -> None:
        """A nested level's context is a whole number of its periods, more than one (NL eq. 72)."""
        if self.cms not in get_args(CmsForm):
            raise SettingsError(f"cms {self.cms!r} is unknown; known are {', '.join(get_args(CmsForm))}")
        online = sorted((level for level in self.levels if level.schedule == "online"), key=lambda x: -x.update_period)
        for slower, faster in pairwise(online):
            if self.cms == "nested" and (
                slower.update_period % faster.update_period or slower.update_period == faster.update_period
            ):
                raise SettingsError(
                    f"level {faster.name!r}: update_period {faster.update_period} must divide that of the next slower "
                    f"level {slower.name!r}, {slower.update_period}, and be less, for its context to end with it"
                )
