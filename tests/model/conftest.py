"""Small checkpoints, GGUF and Hugging Face, that a test may change before they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hope_server.errors import CheckpointError
from hope_server.model.base_import import expected_shapes
from hope_server.model.checkpoint import resolve_model
from hope_server.model.config import ModelConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
CONFIG = ModelConfig(
    name="toy",
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    max_position=128,
    tie_embeddings=True,
)
GGUF_NAMES = {"embed": "token_embd", "norm": "output_norm", "head": "output"} | {
    f"layers.{layer}.{ours}": f"blk.{layer}.{theirs}"
    for layer in range(CONFIG.num_layers)
    for ours, theirs in {
        "attn_norm": "attn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    }.items()
}
HF_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"} | {
    f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
    for layer in range(CONFIG.num_layers)
    for ours, theirs in {
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }.items()
}


def make_weights(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """The row order of llama.cpp's converter, written as that converter writes it."""
    shape = (num_heads, 2, rows.shape[0] // num_heads // 2, rows.shape[1])
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


class GgufFile:
    """A small GGUF file whose facts and tensors a test may change before it is written."""

    def __init__(self) -> None:
        self.architecture = "llama"
        self.integers = {
            "llama.block_count": 2,
            "llama.context_length": 128,
            "llama.embedding_length": 32,
            "llama.feed_forward_length": 64,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 2,
        }
        self.texts = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.chat_template": TEMPLATE,
        }
        self.merges = ["h e", "l l"]
        self.kind = GGMLQuantizationType.F32
        self.tensors = {}
        for name, tensor in make_weights().items():
            rows = tensor.numpy()
            rows = permute(rows, 4) if ".q." in name else permute(rows, 2) if ".k." in name else rows
            self.tensors[GGUF_NAMES[name.removesuffix(".weight")] + ".weight"] = rows

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.architecture)
        for key, number in self.integers.items():
            writer.add_uint32(key, number)
        for key, text in self.texts.items():
            writer.add_string(key, text)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
        writer.add_token_merges(self.merges)
        for name, rows in self.tensors.items():
            if rows.ndim == 2 and self.kind != GGMLQuantizationType.F32:
                writer.add_tensor(name, quantize(rows, self.kind), raw_dtype=self.kind)
            else:
                writer.add_tensor(name, np.ascontiguousarray(rows))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@pytest.fixture
def gguf() -> GgufFile:
    """A GGUF file, not written yet."""
    return GgufFile()


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A model folder in the Hugging Face layout, bfloat16, one file of weights."""
    folder = tmp_path / "toy"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    meta = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(meta))
    bpe = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(TOKENS)}, merges=[("h", "e"), ("l", "l")])
    )
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    bpe.save(str(folder / "tokenizer.json"))
    save_file(hf_weights(), folder / "model.safetensors")
    return folder


def hf_weights() -> dict[str, torch.Tensor]:
    named = {HF_NAMES[name.removesuffix(".weight")] + ".weight": value for name, value in make_weights().items()}
    return {name: value.bfloat16() for name, value in named.items()}


@pytest.fixture
def toy_config() -> ModelConfig:
    """The configuration that every toy checkpoint describes."""
    return CONFIG


@pytest.fixture
def toy_weights() -> dict[str, torch.Tensor]:
    """The float32 weights of the toy checkpoints under canonical names."""
    return make_weights()


@pytest.fixture
def toy_hf_weights() -> dict[str, torch.Tensor]:
    """The bfloat16 weights of the Hugging Face folder under its names."""
    return hf_weights()


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[Path | str], str]:
    """Resolve a model that must be refused; returns the message, which must be one line."""

    def resolve(source: Path | str, cache: Path | None = None) -> str:
        with pytest.raises(CheckpointError) as caught:
            resolve_model(str(source), cache or tmp_path / "cache")
        assert "\n" not in caught.value.message
        return caught.value.message

    return resolve
