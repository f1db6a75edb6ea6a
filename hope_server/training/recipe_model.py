"""The model part of a recipe: a family with its sizes and what differs from it, made into a HopeConfig."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hope_server.errors import SettingsError
from hope_server.model.config import CmsForm, HopeConfig, LevelSpec, ModelConfig, TitansSpec, WindowSpec
from hope_server.model.families import family_config
from hope_server.model.strict_read import read_fields

__all__ = ["Family", "ModelSpec", "make_config"]

Family = Literal["hope", "hope-attention", "transformer", "titans", "delta"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network to train. Sizes that are left out follow from the others.

    family: hope (self-modifying Titans, then MLPs with levels), hope-attention, and the baselines.
    titans: fields of TitansSpec that differ from the family's; blocks default to all. levels: as in LevelSpec.
    head_dim: hidden_size / num_heads if left out; intermediate_size: 8/3 of hidden_size, a multiple of 64.
    """

    family: Family
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    window: int = 512
    num_sinks: int = 4
    chunk_size: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position: int = 8192
    tie_embeddings: bool = True
    titans: dict[str, Any] = field(default_factory=dict)
    levels: tuple[LevelSpec, ...] = ()
    cms: CmsForm = "independent"


def make_config(spec: ModelSpec, name: str, vocab_size: int, where: str) -> HopeConfig:
    """Return the HopeConfig of a recipe's model; raises SettingsError for shapes and periods that cannot be."""
    _check_sizes(spec, where)
    head_dim = spec.head_dim or spec.hidden_size // spec.num_heads
    model = ModelConfig(
        name=name,
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size or -(-spec.hidden_size * 8 // 3 // 64) * 64,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads or spec.num_heads,
        head_dim=head_dim,
        rope_theta=spec.rope_theta,
        rms_norm_eps=spec.rms_norm_eps,
        max_position=spec.max_position,
        tie_embeddings=spec.tie_embeddings,
    )
    titans = read_fields(TitansSpec, spec.titans, f"{where}: model: titans", is_partial=True)
    window = WindowSpec(spec.window, spec.num_sinks)
    try:
        return family_config(spec.family, model, window, spec.chunk_size, titans, spec.levels, spec.cms)
    except SettingsError as exc:
        raise SettingsError(f"{where}: model: {exc.message}") from exc


def _check_sizes(spec: ModelSpec, where: str) -> None:
    sizes = {
        name: getattr(spec, name)
        for name in ("hidden_size", "num_layers", "num_heads", "window", "chunk_size", "max_position")
    } | {
        name: size
        for name in ("num_kv_heads", "head_dim", "intermediate_size")
        if (size := getattr(spec, name)) is not None
    }
    for name, size in sizes.items():
        if size < 1:
            raise SettingsError(f"{where}: model: {name} is {size}; it must be at least 1")
    if spec.head_dim is None and spec.hidden_size % spec.num_heads:
        raise SettingsError(
            f"{where}: model: hidden_size {spec.hidden_size} is no multiple of num_heads {spec.num_heads}; "
            "change one, or give head_dim"
        )
    if spec.num_kv_heads and spec.num_heads % spec.num_kv_heads:
        raise SettingsError(
            f"{where}: model: num_heads {spec.num_heads} is no multiple of num_kv_heads {spec.num_kv_heads}"
        )
    head_dim = spec.head_dim or spec.hidden_size // spec.num_heads
    if head_dim % 2:
        raise SettingsError(f"{where}: model: head_dim {head_dim} is odd; rotary positions turn pairs")
