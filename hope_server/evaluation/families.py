"""The families that are compared, at equal size, as configs of one and the same model code.

Sizes are made equal by the width of the MLP, the part that all families have. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import torch

from hope_server.evaluation.fit import NetworkSpec
from hope_server.model import families
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec
from hope_server.model.outer import InnerOptions
from hope_server.model.params import random_params
from hope_server.training.network import HopeNetwork

__all__ = ["ABLATIONS", "FAMILIES", "ablation_config", "build", "build_equal_state", "family_config"]

FAMILIES = {
    "hope": "self-modifying Titans and Continuum Memory System, no attention",
    "titans": "MLP memory with momentum and retention; keys, values and rates from slow projections",
    "delta": "gated delta rule, matrix memory",
    "transformer": "full attention",
    "swa": "sliding-window attention with as many state bytes as hope",
}
ABLATIONS = ("full", "-DGD", "-momentum", "-weight decay", "-CMS", "-inner k", "-inner v", "-inner q")
_DELTA_CHUNK = 16
_HEAD_STEP = 4
_TITANS_MATRIX = {"memory": "matrix", "is_residual": False, "reads": "current"}
"""Titans in the form that learns recall soonest: its MLPs, at equal state bytes, learn none in as many steps."""
INNER = InnerOptions(online_levels=True)
_Make = Callable[..., HopeConfig]


def build(column: str, spec: NetworkSpec, vocab_size: int, seed: int, device: str = "cpu") -> HopeNetwork:
    """Build a family, or an ablation of hope, with random slow weights. Raises ValueError for an unknown name."""
    make = ablation_config if column in ABLATIONS else family_config
    return _network_of(make(column, spec, vocab_size), spec, seed, device)


def build_equal_state(column: str, spec: NetworkSpec, vocab_size: int, seed: int, device: str = "cpu") -> HopeNetwork:
    """As `build`, with heads that give titans and delta as many state bytes as hope has."""
    return _network_of(family_config(column, spec, vocab_size, is_state_equal=True), spec, seed, device)


@lru_cache(maxsize=256)
def family_config(family: str, spec: NetworkSpec, vocab_size: int, *, is_state_equal: bool = False) -> HopeConfig:
    """Return the config of a family whose number of parameters is as near to hope's as the MLP allows.

    is_state_equal: the size of a head is chosen so that titans, then of matrix memories, and delta have about as many
    state bytes as hope; the window of swa is, always.
    """
    if family not in FAMILIES:
        raise ValueError(f"there is no family {family!r}; valid are {', '.join(FAMILIES)}")
    hope = _hope(spec, vocab_size)
    if family == "hope":
        return hope
    makers: dict[str, _Make] = {"titans": _titans, "delta": _delta, "transformer": _transformer, "swa": _transformer}
    make = makers[family]
    if is_state_equal and family in ("titans", "delta"):
        wanted = state_bytes(hope)
        sizes = [partial(make, head_dim=size) for size in range(_HEAD_STEP, spec.hidden_size + 1, _HEAD_STEP)]
        make = min(sizes, key=lambda sized: abs(state_bytes(sized(spec, vocab_size)) - wanted))
    config = _with_params(lambda mlp: make(replace(spec, mlp_size=mlp), vocab_size), num_params(hope))
    return _with_state(config, state_bytes(hope), spec) if family == "swa" else config


@lru_cache(maxsize=256)
def ablation_config(name: str, spec: NetworkSpec, vocab_size: int) -> HopeConfig:
    """Return hope with everything (momentum and self-made queries too), or without one part (NL Table 6)."""
    hope = _hope(spec, vocab_size)
    assert hope.titans is not None
    full = replace(hope.titans, adaptive=("k", "v", "q", "lr", "retention"), has_momentum=True)
    if name == "-CMS":
        return replace(hope, titans=full, levels=())
    if name.startswith("-inner "):
        kept = tuple(each for each in full.adaptive if each != name.removeprefix("-inner "))
        return replace(hope, titans=replace(full, adaptive=kept))
    changes: dict[str, dict[str, Any]] = {
        "full": {},
        "-DGD": {"dgd_scope": "none"},
        "-momentum": {"has_momentum": False},
        "-weight decay": {"has_retention": False, "adaptive": ("k", "v", "q", "lr")},
    }
    return replace(hope, titans=replace(full, **changes[name]))


def num_params(config: HopeConfig) -> int:
    """Slow weights of a config."""
    return sum(tensor.numel() for tensor in random_params(config, 0, torch.float32).named().values())


def state_bytes(config: HopeConfig) -> int:
    """Bytes that one row's fast state has, whatever it has read."""
    return HopeNetwork(config, random_params(config, 0, torch.float32), INNER).state_bytes


def _network_of(config: HopeConfig, spec: NetworkSpec, seed: int, device: str) -> HopeNetwork:
    params = random_params(config, seed, torch.float32)
    return HopeNetwork(config, params, INNER, device, is_compiled=spec.is_compiled)


def _network(spec: NetworkSpec, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        name="evaluation",
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.mlp_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_heads,
        head_dim=spec.hidden_size // spec.num_heads,
        rope_theta=10_000.0,
        rms_norm_eps=spec.norm_eps,
        max_position=max(spec.max_length, spec.chunk_size),
        tie_embeddings=False,
    )


def _recurrent(
    family: str,
    spec: NetworkSpec,
    vocab_size: int,
    levels: tuple[LevelSpec, ...] = (),
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> HopeConfig:
    """A family without attention, whose window holds nothing."""
    network, window = _network(spec, vocab_size), WindowSpec(spec.chunk_size, 0, "model")
    titans = {"hidden_size": 2 * network.head_dim, **changes}
    return families.family_config(family, network, window, spec.chunk_size, titans, levels)


def _hope(spec: NetworkSpec, vocab_size: int) -> HopeConfig:
    blocks = tuple(range(spec.num_layers))
    levels = tuple(
        LevelSpec(
            f"level{index}",
            blocks,
            kind="residual",
            rank=spec.level_rank,
            schedule="online",
            update_period=period,
            rule="sgd",
            lr=spec.level_lr,
        )
        for index, period in enumerate(spec.level_periods)
    )
    return _recurrent("hope", spec, vocab_size, levels, {"reads": "current", **dict(spec.hope)})


def _titans(spec: NetworkSpec, vocab_size: int, head_dim: int | None = None) -> HopeConfig:
    changes = {} if head_dim is None else {**_TITANS_MATRIX, "head_dim": head_dim}
    return _recurrent("titans", spec, vocab_size, changes=changes)


def _delta(spec: NetworkSpec, vocab_size: int, head_dim: int | None = None) -> HopeConfig:
    """Its chunks are a matter of speed alone: with the decay along the key, eq. 92 is exact at any chunk size."""
    changes = {} if head_dim is None else {"head_dim": head_dim}
    spec = replace(spec, chunk_size=max(spec.chunk_size, _DELTA_CHUNK))
    return _recurrent("delta", spec, vocab_size, changes=changes)


def _transformer(spec: NetworkSpec, vocab_size: int) -> HopeConfig:
    return _attention(_network(spec, vocab_size), spec.max_length)


def _attention(model: ModelConfig, window: int) -> HopeConfig:
    """Attention writes nothing: a chunk of one token keeps its ring as small as its window."""
    return families.family_config("transformer", model, WindowSpec(window, 0, "model"), 1)


def _with_params(make: Callable[[int], HopeConfig], wanted: int) -> HopeConfig:
    """The config whose MLP width brings the number of parameters nearest to `wanted`, width a multiple of 4."""
    base, step = num_params(make(4)), num_params(make(8)) - num_params(make(4))
    return make(4 * max(1, round(1 + (wanted - base) / step)))


def _with_state(config: HopeConfig, wanted: int, spec: NetworkSpec) -> HopeConfig:
    """The attention config whose window has at most `wanted` state bytes, and at least one token."""

    base = state_bytes(_attention(config.model, 1))
    step = state_bytes(_attention(config.model, 2)) - base
    return _attention(config.model, max(1, min(spec.max_length, 1 + (wanted - base) // step)))
