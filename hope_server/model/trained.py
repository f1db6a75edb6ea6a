"""A HOPE model that was trained: what its folder holds beyond a base network's, made into a config and slow weights.

config.json holds the HopeConfig under `hope`, but for its `model`, whose fields stand beside it as in every converted
folder; model.safetensors holds the names of `Params.named`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hope_server.errors import CheckpointError, SettingsError
from hope_server.model.base_import import WEIGHT_DTYPES
from hope_server.model.config import HopeConfig, ModelConfig
from hope_server.model.levels import make_layout
from hope_server.model.memories import make_memories
from hope_server.model.params import BlockParams, Params
from hope_server.model.strict_read import read_fields
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams

Shapes = dict[str, tuple[int, ...]]

_ADVICE = "export the model again, or use the version that wrote it"


def read_hope(section: object, model: ModelConfig, where: str) -> HopeConfig:
    """Return the config that the section `hope` of a folder's config.json describes.

    where: what messages begin with. Raises CheckpointError, in one line, for what is unknown, mistyped or impossible.
    """
    try:
        if isinstance(section, Mapping) and "model" in section:
            raise SettingsError(f"{where}: hope: unknown key 'model'; the network's sizes stand beside the section")
        fields = read_fields(HopeConfig, section, f"{where}: hope", is_partial=True)
        return HopeConfig(model=model, **fields)
    except SettingsError as exc:
        reason = exc.message if exc.message.startswith(where) else f"{where}: hope: {exc.message}"
        raise CheckpointError(f"{reason}; {_ADVICE}") from exc


def read_params(path: Path, config: HopeConfig, dtype: torch.dtype) -> Params:
    """Return the slow weights in the safetensors file `path`, on the CPU, in `dtype`.

    Raises CheckpointError, in one line, when the file is damaged or its weights are not those of `config`: missing,
    unknown, of another shape, or not finite.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc}); copy or export the model again") from exc
    _check(found, config, path)
    return params_of(config, {name: tensor.to(dtype) for name, tensor in found.items()})


def expected_weights(config: HopeConfig) -> Shapes:
    """Return the names of `Params.named` and their shapes, for any family.

    The learned initial weights of levels, `levels.NAME`, are not among them: see `level_weights`.
    """
    model = config.model
    width, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes: Shapes = {"embed": (model.vocab_size, width), "norm": (width,)}
    if not model.tie_embeddings:
        shapes["head"] = (model.vocab_size, width)
    for index in range(model.num_layers):
        block: Shapes = {"attn_norm": (width,), "mlp_norm": (width,)}
        block |= {"gate_up": (2 * inner, width), "down": (width, inner)}
        if index in config.attention_blocks:
            block |= {"qkv": (queries + 2 * keys, width), "out": (width, queries)}
        if config.titans is not None and index in config.titans.blocks:
            block |= {f"titans.{name}": shape for name, shape in _titans_weights(config).items()}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def level_weights(config: HopeConfig) -> Shapes:
    """Return the names and shapes of the initial weights of levels that may have been learned."""
    return {f"levels.{spec.name}": (make_layout(spec, config.model).num_weights,) for spec in config.levels}


def params_of(config: HopeConfig, tensors: Mapping[str, Tensor]) -> Params:
    """Return the slow weights around tensors that have the names of `expected_weights`, and maybe `level_weights`."""
    blocks = []
    for index in range(config.model.num_layers):
        prefix = f"blocks.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        titans = {name.removeprefix("titans."): own.pop(name) for name in list(own) if name.startswith("titans.")}
        blocks.append(BlockParams(titans=_titans_params(titans) if titans else None, **own))
    levels = {name.removeprefix("levels."): tensors[name] for name in level_weights(config) if name in tensors}
    embed = tensors["embed"]
    return Params(embed, tensors.get("head", embed), tensors["norm"], tuple(blocks), levels)


def _titans_params(tensors: Mapping[str, Tensor]) -> TitansParams:
    initial = {name: tensor for name, tensor in tensors.items() if name.startswith("initial.")}
    own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name not in initial}
    return TitansParams(initial={name.removeprefix("initial."): tensor for name, tensor in initial.items()}, **own)


def _titans_weights(config: HopeConfig) -> Shapes:
    spec, width = config.titans, config.model.hidden_size
    assert spec is not None, "asked only where there are Titans blocks"
    layer = TitansLayer(spec, config.chunk_size, config.model.rms_norm_eps)
    heads, inner = spec.num_heads, spec.num_heads * spec.head_dim
    shapes: Shapes = {
        "conv": (3 * inner + layer.num_rates * heads, spec.conv_size),
        "qkv": (3 * inner, width),
        "rates": (layer.num_rates * heads, width),
        "rate_bias": (layer.num_rates * heads,),
        "out_norm": (spec.head_dim,),
        "out_gate": (inner, width),
        "out": (width, inner),
    }
    if spec.beside_attention:
        shapes["branch"] = (1,)
    return shapes | {f"initial.{name}": shape for name, shape in make_memories(spec).shapes().items()}


def _check(found: Mapping[str, Tensor], config: HopeConfig, path: Path) -> None:
    wanted = expected_weights(config)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; {_ADVICE}")
    wanted |= {name: shape for name, shape in level_weights(config).items() if name in found}
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} weights are unknown, {unknown[0]} first; {_ADVICE}")
    for name, tensor in found.items():
        if tuple(tensor.shape) != wanted[name]:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the configuration asks for {wanted[name]}; {_ADVICE}"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{path}: {name} is stored as {tensor.dtype}; use float32, bfloat16 or float16")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; export an earlier checkpoint of the run")
