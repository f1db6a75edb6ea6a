"""Writes a converted model as a folder in the Hugging Face layout, which transformers and vLLM read.

A base network becomes a plain Llama. A network with Titans branches beside its attention becomes one that only the
plugin `hope-vllm` serves: its config.json has the section `hope` and its blocks have weights under `memory.`, always in
float32, as memories add up many small writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.model.base_import import TokenizerSource
from hope_server.model.config import HopeConfig, ModelConfig
from hope_server.model.hf_import import hugging_face_name
from hope_server.model.params import BlockParams, Params

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ARCHITECTURE = "HopeForCausalLM"
"""What a model with memories is called in config.json."""
MARK = "exported.json"
"""Written last: what the folder was made of."""
_LAYOUT = 1


def export(source: Path, target: Path, dtype: str = "float32") -> Path:
    """Write the converted folder `source` to `target` in the Hugging Face layout; returns `target`.

    A folder that was made of the same weights in the same type is left as it is.
    Raises ValueError for another dtype than those of `DTYPES`, CheckpointError for a damaged source and for a HOPE
    model that cannot be written so.
    """
    # Imported late: what reads models is not installed in vLLM's environment, which needs only the rest of this module.
    from hope_server.model.checkpoint import (
        load_config,
        load_hope,
        load_params,
        load_tokenizer_source,
        weights_fingerprint,
    )

    _check_dtype(dtype)
    digest = weights_fingerprint(source)
    made_of = {"sha256": digest, "dtype": dtype, "layout": _LAYOUT}
    if (target / MARK).exists() and json.loads((target / MARK).read_text(encoding="utf-8")) == made_of:
        return target
    config = load_hope(source) or HopeConfig(load_config(source))
    params = load_params(source, torch.float32)
    return write_folder(target, config, params, load_tokenizer_source(source), dtype, digest)


def write_folder(
    target: Path, config: HopeConfig, params: Params, tokenizer: TokenizerSource, dtype: str, digest: str
) -> Path:
    """Write slow weights as the folder `target` in the Hugging Face layout, and return it.

    digest: names the weights, config and tokenizer; sessions learned with them are bound to it. Raises as `export`.
    """
    _check_dtype(dtype)
    check_exportable(config)
    target.mkdir(parents=True, exist_ok=True)
    (target / MARK).unlink(missing_ok=True)
    save_file(hugging_face_weights(config, params, DTYPES[dtype]), target / "model.safetensors", {"format": "pt"})
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(tokenizer.eos_token_ids)}
    _write(target / "config.json", _llama_config(config.model, dtype) | ends | _hope_config(config, digest))
    _write(target / "generation_config.json", ends)
    (target / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    words: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.chat_template is not None:
        words["chat_template"] = tokenizer.chat_template
    _write(target / "tokenizer_config.json", words)
    _write(target / MARK, {"sha256": digest, "dtype": dtype, "layout": _LAYOUT})
    return target


def check_exportable(config: HopeConfig) -> None:
    """Raise CheckpointError, in one line, for a HOPE model that has no such layout."""
    if config.levels:
        names = ", ".join(level.name for level in config.levels)
        raise CheckpointError(
            f"the model has levels of the Continuum Memory System ({names}), which only our own engine can write "
            "(docs/adr/0017); serve it without --engine vllm"
        )
    if len(config.attention_blocks) != config.model.num_layers:
        raise CheckpointError(
            "the model has Titans memories in place of attention; vLLM's Llama attends in every block, so only "
            "branches beside attention (family `retrofit`) can be written"
        )


def hugging_face_weights(config: HopeConfig, params: Params, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return every slow weight under the name that the Hugging Face layout has for it, `memory.` for a branch's."""
    model = config.model
    own = {"embed.weight": params.embed, "norm.weight": params.norm}
    if not model.tie_embeddings:
        own["head.weight"] = params.head
    for index, block in enumerate(params.blocks):
        own |= {f"layers.{index}.{name}.weight": tensor for name, tensor in _split(model, block).items()}
    out = {hugging_face_name(name): tensor.to(dtype).contiguous() for name, tensor in own.items()}
    for index, block in enumerate(params.blocks):
        for name, tensor in ({} if block.titans is None else block.titans.named()).items():
            out[f"model.layers.{index}.memory.{name}"] = tensor.float().contiguous()
    return out


def _split(model: ModelConfig, block: BlockParams) -> dict[str, torch.Tensor]:
    """The canonical weights of a block that attends, out of the fused ones."""
    assert block.qkv is not None, "check_exportable"
    assert block.out is not None, "as above"
    queries, shared = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    q, k, v = block.qkv.split([queries, shared, shared])
    gate, up = block.gate_up.chunk(2)
    parts = {"attn_norm": block.attn_norm, "q": q, "k": k, "v": v, "o": block.out, "mlp_norm": block.mlp_norm}
    return parts | {"gate": gate, "up": up, "down": block.down}


def _llama_config(config: ModelConfig, dtype: str) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": dtype,
    }


def _hope_config(config: HopeConfig, digest: str) -> dict[str, object]:
    """What config.json has beyond a plain Llama's; nothing for a base network."""
    if config.titans is None:
        return {}
    hope = {key: value for key, value in asdict(replace(config, levels=())).items() if key != "model"}
    return {"architectures": [ARCHITECTURE], "hope": hope, "hope_weights": digest}


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")


def _write(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
