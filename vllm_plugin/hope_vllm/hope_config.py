"""What a served model is: the HopeConfig in its folder's config.json, and the name that binds states to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from hope_server.errors import CheckpointError
from hope_server.model.config import HopeConfig, ModelConfig, TitansSpec
from hope_server.model.hf_export import check_exportable
from hope_server.model.memories import make_memories
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_state import TitansState
from hope_server.model.trained import read_hope

STATE_FORMAT = 1
"""Of stored states; another number is another fingerprint, so that no version reads what it does not know."""
_WHERE = "config.json"


def read_config(hf_config: Any) -> HopeConfig:
    """Return the HopeConfig that transformers' config of a model folder holds.

    Raises CheckpointError for a model that has no memories, or such that this engine cannot write.
    """
    section = getattr(hf_config, "hope", None)
    if section is None:
        raise CheckpointError(f"{_WHERE} has no section `hope`; export the model with `hope serve --engine vllm`")
    rope = getattr(hf_config, "rope_parameters", None) or {}
    model = ModelConfig(
        name="vllm",
        vocab_size=hf_config.vocab_size,
        hidden_size=hf_config.hidden_size,
        intermediate_size=hf_config.intermediate_size,
        num_layers=hf_config.num_hidden_layers,
        num_heads=hf_config.num_attention_heads,
        num_kv_heads=hf_config.num_key_value_heads,
        head_dim=hf_config.head_dim,
        rope_theta=float(rope.get("rope_theta", getattr(hf_config, "rope_theta", 10000.0))),
        rms_norm_eps=hf_config.rms_norm_eps,
        max_position=hf_config.max_position_embeddings,
        tie_embeddings=hf_config.tie_word_embeddings,
    )
    config = read_hope(section, model, _WHERE)
    check_exportable(config)
    if config.titans is None:
        raise CheckpointError(f"{_WHERE}: the model has no Titans branch, so its sessions could not learn")
    return config


def titans_of(config: HopeConfig) -> TitansSpec:
    """The spec of a model that `read_config` let pass."""
    assert config.titans is not None, "read_config refuses models without"
    return config.titans


def model_fingerprint(hf_config: Any) -> str:
    """Name all that a stored state's meaning depends on: slow weights, tokenizer, memories, chunk, format.

    The number of ranks is no part of it: states are cut anew when they are loaded. Raises CheckpointError.
    """
    config, digest = read_config(hf_config), getattr(hf_config, "hope_weights", None)
    if not isinstance(digest, str) or not digest:
        raise CheckpointError(f"{_WHERE} does not say which weights the folder has; export the model again")
    parts = ["hope-vllm", STATE_FORMAT, digest, config.chunk_size, asdict(titans_of(config))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def make_layer(config: HopeConfig, spec: TitansSpec) -> TitansLayer:
    """The layer that computes a rank's heads; `spec` is as `shards.spec_of_rank` gives it."""
    return TitansLayer(spec, config.chunk_size, config.model.rms_norm_eps)


def empty_row(config: HopeConfig, spec: TitansSpec, device: str = "meta") -> TitansState:
    """One row of one block's state with all tensors as they are named and shaped, and nothing in them."""
    shapes = make_memories(spec).shapes()
    initial = {name: torch.zeros(shape, dtype=torch.float32, device=device) for name, shape in shapes.items()}
    return make_layer(config, spec).empty_state(initial, 1).clone()
