"""Reads a Llama-architecture GGUF file: metadata, byte-level BPE tokenizer and dequantised float32 weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BpeTokenizer
from torch import Tensor

from hope_server.errors import CheckpointError
from hope_server.model.base_import import BaseModel, Facts, Progress, TokenizerSource, check_config, check_tensors
from hope_server.model.config import ModelConfig

_TOP_NAMES = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight", "output.weight": "head.weight"}
_BLOCK_NAMES = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_CONTROL_TOKEN, _USER_TOKEN = 3, 4
# What the reader raises on a file that is cut off or is no GGUF at all: it checks little before it slices.
_READER_ERRORS = (ValueError, IndexError, KeyError, OverflowError, RecursionError, MemoryError)


def import_gguf(path: Path, name: str, progress: Progress) -> BaseModel:
    """Read the GGUF file at `path` as a model called `name`.

    progress: called with a stage and the fraction of that stage that is done, 0 to 1.
    Raises CheckpointError when the file is damaged or holds a network or tokenizer that cannot be served.
    """
    where = path.name
    progress("reading metadata", 0.0)
    try:
        reader = GGUFReader(path)
        metadata: dict[str, object] = {key: field.contents() for key, field in reader.fields.items()}
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}; check the path and its permissions") from exc
    except _READER_ERRORS as exc:
        raise CheckpointError(f"{path} is not a complete GGUF file; download or copy it again") from exc
    progress("reading metadata", 1.0)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config = _read_config(metadata, stored, name, where)
    tokenizer = _read_tokenizer(metadata, where)
    tensors = _read_tensors(stored, config, where, progress)
    check_tensors(config, tensors, where)
    return BaseModel(config, tokenizer, tensors)


def _read_config(metadata: dict[str, object], stored: dict[str, ReaderTensor], name: str, where: str) -> ModelConfig:
    facts = Facts(metadata, where)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{where}: architecture {architecture!r} is not supported; use a Llama-family model")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in stored:
        raise CheckpointError(f"{where}: scaled rotary positions are not supported; use a model without RoPE scaling")
    if facts.integer("llama.expert_count", 0):
        raise CheckpointError(f"{where}: mixtures of experts are not supported; use a dense model")
    width, num_heads = facts.integer("llama.embedding_length"), facts.integer("llama.attention.head_count")
    head_dim = facts.integer("llama.attention.key_length", width // max(num_heads, 1))
    if facts.integer("llama.rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{where}: rotary positions over a part of each head are not supported")
    epsilon = facts.number("llama.attention.layer_norm_rms_epsilon")
    theta = facts.number("llama.rope.freq_base", 10000.0)
    config = ModelConfig(
        name=name,
        vocab_size=len(facts.strings("tokenizer.ggml.tokens")),
        hidden_size=width,
        intermediate_size=facts.integer("llama.feed_forward_length"),
        num_layers=facts.integer("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=facts.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rope_theta=_shortest(theta),
        rms_norm_eps=_shortest(epsilon),
        max_position=facts.integer("llama.context_length"),
        tie_embeddings="output.weight" not in stored,
    )
    check_config(config, where)
    return config


def _shortest(value: float) -> float:
    # GGUF keeps 1e-5 as the float32 beside it; the shortest decimal of that float32 is the number that was meant.
    return float(str(np.float32(value)))


def _read_tensors(
    stored: dict[str, ReaderTensor], config: ModelConfig, where: str, progress: Progress
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for index, (source_name, tensor) in enumerate(stored.items()):
        name = _canonical_name(source_name, where)
        try:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except (NotImplementedError, ValueError) as exc:
            kind, advice = tensor.tensor_type.name, "use Q8_0 or F16"
            raise CheckpointError(
                f"{where}: {source_name} is stored as {kind}, which cannot be read; {advice}"
            ) from exc
        if name.endswith((".q.weight", ".k.weight")):
            values = _unpermute(values, config.num_heads if name.endswith(".q.weight") else config.num_kv_heads, where)
        # Plain float32 comes as a view of the read-only file and q, k as strided views; torch wants memory of its own.
        tensors[name] = torch.from_numpy(np.require(values, requirements=["C", "W", "O"]))
        progress("dequantising weights", (index + 1) / len(stored))
    return tensors


def _canonical_name(source_name: str, where: str) -> str:
    if source_name in _TOP_NAMES:
        return _TOP_NAMES[source_name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", source_name, re.ASCII)
    if match and match[2] in _BLOCK_NAMES:
        return f"layers.{int(match[1])}.{_BLOCK_NAMES[match[2]]}.weight"
    raise CheckpointError(f"{where}: the network has {source_name}, which a plain Llama has not; use another model")


def _unpermute(rows: np.ndarray[Any, Any], num_heads: int, where: str) -> np.ndarray[Any, Any]:
    # GGUF interleaves the two halves of every head's rotary pairs; (H * K, D) goes back to halves side by side.
    if rows.ndim != 2 or rows.shape[0] % (2 * num_heads):
        raise CheckpointError(f"{where}: attention weights of shape {rows.shape} do not divide into {num_heads} heads")
    half = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, half, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _read_tokenizer(metadata: dict[str, object], where: str) -> TokenizerSource:
    facts = Facts(metadata, where)
    kind, splitter = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or splitter not in ("smollm", "gpt-2"):
        raise CheckpointError(
            f"{where}: its tokenizer ({kind!r}, {splitter!r}) cannot be rebuilt from GGUF; "
            "use the model's folder with tokenizer.json and *.safetensors instead"
        )
    tokens = facts.strings("tokenizer.ggml.tokens")
    template = metadata.get("tokenizer.chat_template")
    eos = facts.integer("tokenizer.ggml.eos_token_id")
    return TokenizerSource(
        tokenizer_json=_build_bpe(tokens, metadata, splitter == "smollm", where),
        chat_template=template if isinstance(template, str) else None,
        eos_token_ids=(eos,),
        bos_token_id=facts.optional_token("tokenizer.ggml.bos_token_id"),
        pad_token_id=facts.optional_token("tokenizer.ggml.padding_token_id"),
    )


def _build_bpe(tokens: list[str], metadata: dict[str, object], single_digits: bool, where: str) -> str:
    types = metadata.get("tokenizer.ggml.token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [merge.partition(" ")[::2] for merge in Facts(metadata, where).strings("tokenizer.ggml.merges")]
    known = all(left in vocabulary and right in vocabulary and left + right in vocabulary for left, right in merges)
    if not known or len(vocabulary) != len(tokens) or not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(f"{where}: the tokenizer's lists contradict each other; download or copy the file again")
    bpe = BpeTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if single_digits else words
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    typed = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_TOKEN]
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in typed])
    return bpe.to_str()
