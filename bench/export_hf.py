"""Writes a converted base network as a folder that transformers and vLLM read: the same weights under their names.

    python bench/export_hf.py FOLDER [--model NAME] [--dtype float32|bfloat16]

An exported folder is taken as it is when it was made of the same weights in the same type.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from machine import say
from safetensors.torch import save_file

from hope_server.model.checkpoint import (
    load_config,
    load_tokenizer_source,
    load_weights,
    resolve_model,
    weights_fingerprint,
)
from hope_server.model.config import ModelConfig
from hope_server.model.hf_import import hugging_face_name
from hope_server.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MARK = "exported.json"
"""Written last: what the folder was made of."""


def export(source: Path, target: Path, dtype: str = "float32") -> Path:
    """Write the converted folder `source` to `target` in the Hugging Face layout; returns `target`.

    Raises ValueError for another dtype than those of `DTYPES`, CheckpointError for a damaged source.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    made_of = {"sha256": weights_fingerprint(source), "dtype": dtype}
    if (target / MARK).exists() and json.loads((target / MARK).read_text(encoding="utf-8")) == made_of:
        return target
    config, tokenizer = load_config(source), load_tokenizer_source(source)
    target.mkdir(parents=True, exist_ok=True)
    (target / MARK).unlink(missing_ok=True)
    tensors = {
        hugging_face_name(name): tensor.to(DTYPES[dtype]).contiguous()
        for name, tensor in load_weights(source, torch.float32).items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    ends = list(tokenizer.eos_token_ids)
    _write(
        target / "config.json", _config(config, dtype) | {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends}
    )
    _write(target / "generation_config.json", {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends})
    (target / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    words: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.chat_template is not None:
        words["chat_template"] = tokenizer.chat_template
    _write(target / "tokenizer_config.json", words)
    _write(target / MARK, made_of)
    return target


def _config(config: ModelConfig, dtype: str) -> dict[str, object]:
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


def _write(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Export the model that is named."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--model", default=Settings().model, help="name or path of a base network")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights that are written")
    args = parser.parse_args()
    source = resolve_model(args.model, Settings.load().cache_dir)
    say(f"{source.name} is in {export(source, args.folder, args.dtype)} for transformers and vLLM, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
