"""Reads a model folder in the Hugging Face layout: config.json, safetensors (one file or shards) and tokenizer.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hope_server.errors import CheckpointError
from hope_server.model.base_import import (
    BaseModel,
    Facts,
    Progress,
    TokenizerSource,
    check_config,
    check_tensors,
    parse_tokenizer,
)
from hope_server.model.config import ModelConfig

_TOP_NAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_TOP_THEIRS = {ours: theirs for theirs, ours in _TOP_NAMES.items()}
_LAYER_THEIRS = {ours: theirs for theirs, ours in _LAYER_NAMES.items()}
_MODEL_TYPES = ("llama", "mistral")


def hugging_face_name(name: str) -> str:
    """What the Hugging Face layout calls a canonical weight of ours. Raises KeyError where there is none."""
    if name in _TOP_THEIRS:
        return _TOP_THEIRS[name]
    _, index, part, _ = name.split(".")
    return f"model.layers.{index}.{_LAYER_THEIRS[part]}.weight"


def import_folder(folder: Path, name: str, progress: Progress) -> BaseModel:
    """Read the checkpoint in `folder` as a model called `name`, keeping the dtype of its weights.

    progress: called with a stage and the fraction of that stage that is done, 0 to 1.
    Raises CheckpointError when a file is missing or damaged, or the network cannot be served.
    """
    values = read_json(folder / "config.json")
    config = _read_config(values, name, folder)
    tokenizer = _read_tokenizer(values, config.vocab_size, folder)
    tensors: dict[str, Tensor] = {}
    shards = _shards(folder)
    for index, path in enumerate(shards):
        tensors |= _read_shard(path)
        progress("reading weights", (index + 1) / len(shards))
    if config.tie_embeddings:
        tensors.pop("head.weight", None)
    check_tensors(config, tensors, folder.name)
    return BaseModel(config, tokenizer, tensors)


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in the file `path`; raises CheckpointError when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc.strerror}); a model folder needs this file") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not valid JSON; download or copy it again") from exc
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} should hold a JSON object; download or copy it again")
    return values


def _read_config(values: dict[str, object], name: str, folder: Path) -> ModelConfig:
    where = f"{folder.name}/config.json"
    facts = Facts(values, where)
    _refuse_unsupported(values, where)
    width, num_heads = facts.integer("hidden_size"), facts.integer("num_attention_heads")
    rope = values.get("rope_parameters")
    rope_facts = Facts(rope if isinstance(rope, dict) else {}, where)
    config = ModelConfig(
        name=name,
        vocab_size=facts.integer("vocab_size"),
        hidden_size=width,
        intermediate_size=facts.integer("intermediate_size"),
        num_layers=facts.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=facts.integer("num_key_value_heads", num_heads),
        head_dim=facts.integer("head_dim", width // max(num_heads, 1)),
        rope_theta=rope_facts.number("rope_theta", facts.number("rope_theta", 10000.0)),
        rms_norm_eps=facts.number("rms_norm_eps", 1e-6),
        max_position=facts.integer("max_position_embeddings", 2048),
        tie_embeddings=values.get("tie_word_embeddings", False) is True,
    )
    check_config(config, where)
    return config


def _refuse_unsupported(values: dict[str, object], where: str) -> None:
    kind = values.get("model_type")
    if kind not in _MODEL_TYPES:
        raise CheckpointError(f"{where}: model type {kind!r} is not supported; use one of {', '.join(_MODEL_TYPES)}")
    if values.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{where}: activation {values['hidden_act']!r} is not supported; only silu is")
    for key in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config"):
        if values.get(key):
            raise CheckpointError(f"{where}: {key} is set, which is not supported; use a plain Llama-family checkpoint")
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        scaling = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        partial = rope.get("partial_rotary_factor", 1.0) if isinstance(rope, dict) else 1.0
        if scaling != "default" or partial != 1.0:
            raise CheckpointError(f"{where}: {key} ({scaling!r}) changes rotary positions, which is not supported")


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        files = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
        if not files or any(Path(file).name != file for file in files):
            raise CheckpointError(f"{index} does not list weight files; download or copy it again")
        return [folder / file for file in files]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if folder / "model.safetensors" in found:
        return [folder / "model.safetensors"]
    problem = "no *.safetensors" if not found else "several *.safetensors but no model.safetensors.index.json"
    raise CheckpointError(f"{folder} has {problem}; download the complete checkpoint in safetensors format")


def _read_shard(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            names = list(stored.keys())
            for source_name in names:
                if not source_name.endswith("rotary_emb.inv_freq"):
                    tensors[_canonical_name(source_name, path.name)] = stored.get_tensor(source_name)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path} is missing or incomplete ({exc}); download or copy it again") from exc
    return tensors


def _canonical_name(source_name: str, where: str) -> str:
    if source_name in _TOP_NAMES:
        return _TOP_NAMES[source_name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.weight", source_name, re.ASCII)
    if match is None or match[2] not in _LAYER_NAMES:
        raise CheckpointError(f"{where}: the network has {source_name}, which a plain Llama has not; use another model")
    return f"layers.{int(match[1])}.{_LAYER_NAMES[match[2]]}.weight"


def _read_tokenizer(values: dict[str, object], vocab_size: int, folder: Path) -> TokenizerSource:
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path} cannot be read; the model needs its tokenizer in this format") from exc
    meta = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    tokenizer = parse_tokenizer(text, vocab_size, folder.name)
    bos, eos, pad = (tokenizer.token_to_id(_text(meta.get(f"{role}_token"))) for role in ("bos", "eos", "pad"))
    eos_ids = [*_ids(generation.get("eos_token_id")), *_ids(values.get("eos_token_id")), *_ids(eos)]
    if not eos_ids:
        raise CheckpointError(f"{folder}: config.json has no eos_token_id; add the id of the token that ends a reply")
    bos_ids = [*_ids(values.get("bos_token_id")), *_ids(bos)]
    pad_ids = [*_ids(values.get("pad_token_id")), *_ids(pad)]
    return TokenizerSource(
        tokenizer_json=text,
        chat_template=_template(meta, folder),
        eos_token_ids=tuple(dict.fromkeys(eos_ids)),
        bos_token_id=bos_ids[0] if bos_ids else None,
        pad_token_id=pad_ids[0] if pad_ids else None,
    )


def _optional_json(path: Path) -> dict[str, object]:
    return read_json(path) if path.exists() else {}


def _ids(value: object) -> list[int]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _text(token: object) -> str:
    # tokenizer_config.json writes a token as its text or as an object with the text under "content".
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _template(meta: dict[str, object], folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{path} cannot be read; copy it again") from exc
    template = meta.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
