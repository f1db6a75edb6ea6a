"""A network with Titans branches in the Hugging Face layout: every weight under its name, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import MODEL, tokenizer_source

from hope_server.errors import CheckpointError
from hope_server.model.config import LevelSpec
from hope_server.model.families import family_config, retrofitted
from hope_server.model.hf_export import ARCHITECTURE, MARK, check_exportable, hugging_face_weights, write_folder
from hope_server.model.params import fuse_params, random_weights

CONFIG = family_config("retrofit", MODEL, titans={"blocks": (0,), "has_momentum": True})
PARAMS = retrofitted(fuse_params(MODEL, random_weights(MODEL, 0)), CONFIG, 0)


def write(target: Path, dtype: str = "float32") -> Path:
    """The toy with a branch, as a folder."""
    return write_folder(target, CONFIG, PARAMS, tokenizer_source(), dtype, "a" * 64)


def test_every_weight_is_there_once(tmp_path: Path) -> None:
    """Attention and MLPs split into what others call them, the branch's under `memory.`; none is left out."""
    stored = load_file(write(tmp_path) / "model.safetensors")

    own = PARAMS.blocks[0].titans
    assert own is not None
    prefix = "model.layers.0.memory."
    assert {name.removeprefix(prefix) for name in stored if name.startswith(prefix)} == set(own.named())
    assert sum(part.numel() for part in stored.values()) == sum(part.numel() for part in PARAMS.tensors())
    block = PARAMS.blocks[1]
    assert block.qkv is not None
    parts = [stored[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(torch.cat(parts), block.qkv)
    mlp = [stored[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(torch.cat(mlp), block.gate_up)


def test_memories_keep_their_precision() -> None:
    """Where the network is rounded to halves, its branches are not."""
    stored = hugging_face_weights(CONFIG, PARAMS, torch.bfloat16)

    kinds = {".memory." in name: tensor.dtype for name, tensor in stored.items()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_the_config_says_what_the_model_is(tmp_path: Path) -> None:
    """The architecture, the Titans spec, the chunk, and which weights sessions are bound to."""
    values = json.loads((write(tmp_path) / "config.json").read_text(encoding="utf-8"))

    assert values["architectures"] == [ARCHITECTURE] and values["model_type"] == "llama"
    assert values["hope"]["titans"]["blocks"] == [0] and values["hope"]["chunk_size"] == CONFIG.chunk_size
    assert values["hope_weights"] == "a" * 64
    assert (tmp_path / MARK).exists()


def test_a_base_network_is_a_plain_llama(tmp_path: Path) -> None:
    """Without branches nothing in the folder is ours."""
    params = fuse_params(MODEL, random_weights(MODEL, 0))
    write_folder(tmp_path, family_config("retrofit", MODEL), params, tokenizer_source(), "float32", "a" * 64)

    assert not any("memory" in name for name in load_file(tmp_path / "model.safetensors"))
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert values["architectures"] == ["LlamaForCausalLM"] and "hope" not in values


def test_what_has_no_such_layout_is_refused() -> None:
    """Levels, named in the message, and memories in place of attention."""
    levels = (LevelSpec("fast", (0,), schedule="online", update_period=64), LevelSpec("slow", (1,)))

    with pytest.raises(CheckpointError, match=r"\(fast, slow\), which only our own engine can write"):
        check_exportable(replace(CONFIG, levels=levels))
    with pytest.raises(CheckpointError, match="in place of attention"):
        check_exportable(family_config("hope", MODEL))
