"""Importing checkpoints: what is read, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from tokenizers import Tokenizer

from hope_server.errors import CheckpointError
from hope_server.model.checkpoint import load_config, load_tokenizer_source, load_weights, resolve_model
from hope_server.model.hf_import import hugging_face_name

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_gguf_float_weights_are_read_exactly(gguf, tmp_path, toy_config, toy_weights):
    """Unquantised weights come back bit for bit, with q and k rows in the order rotary positions expect."""
    folder = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), tmp_path / "cache")
    loaded = load_weights(folder, torch.float32)
    expected = toy_weights
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert load_config(folder) == toy_config


def test_gguf_quantised_weights_are_close(gguf, tmp_path, toy_weights):
    """Q8_0 weights differ from the originals by at most half a step of their block."""
    gguf.kind = GGMLQuantizationType.Q8_0
    folder = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), tmp_path / "cache")
    loaded = load_weights(folder, torch.float32)
    for name, expected in toy_weights.items():
        # A block's step is its largest value / 127; rounding errs by half of it, float16 scales by 2**-11 of the value.
        limit = expected.abs().max() * (0.5 / 127 + 2**-11)
        assert (loaded[name] - expected).abs().max() <= limit


def test_gguf_tokenizer_is_rebuilt(gguf, tmp_path):
    """Special ids, template and a tokenizer that merges and splits digits come from the metadata."""
    folder = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), tmp_path / "cache")
    source = load_tokenizer_source(folder)
    assert (source.eos_token_ids, source.bos_token_id, source.pad_token_id) == ((2,), 1, 2)
    assert source.chat_template == TEMPLATE
    tokenizer = Tokenizer.from_str(source.tokenizer_json)
    assert tokenizer.encode("hell12<|im_end|>").tokens == ["he", "ll", "1", "2", "<|im_end|>"]


def test_folder_keeps_its_dtype(hf_folder, tmp_path, toy_config, toy_weights):
    """A bfloat16 folder is stored as bfloat16, and every weight gets its canonical name."""
    folder = resolve_model(str(hf_folder), tmp_path / "cache")
    loaded = load_weights(folder, torch.bfloat16)
    assert all(torch.equal(loaded[name], value.bfloat16()) for name, value in toy_weights.items())
    assert (folder / "model.safetensors").stat().st_size < 2.2 * sum(value.numel() for value in loaded.values())
    assert load_weights(folder, torch.float32)["layers.0.q.weight"].dtype == torch.float32
    assert load_config(folder) == toy_config


def test_folder_gathers_special_tokens(hf_folder, tmp_path):
    """Ids that end a reply come from the generation config, the config and the tokenizer's config, each once."""
    source = load_tokenizer_source(resolve_model(str(hf_folder), tmp_path / "cache"))
    assert (source.eos_token_ids, source.bos_token_id, source.chat_template) == ((2, 0), 1, TEMPLATE)


def test_folder_template_file_wins(hf_folder, tmp_path):
    """A chat_template.jinja beside the weights is preferred to the template in tokenizer_config.json."""
    (hf_folder / "chat_template.jinja").write_text("{{ 'other' }}")
    assert load_tokenizer_source(resolve_model(str(hf_folder), tmp_path / "cache")).chat_template == "{{ 'other' }}"


def test_shards_are_joined(hf_folder, tmp_path, toy_weights, toy_hf_weights, refusal):
    """Weights split over several files by an index are read as one network."""
    weights = toy_hf_weights
    halves = [dict(list(weights.items())[:7]), dict(list(weights.items())[7:])]
    index = {}
    for number, half in enumerate(halves):
        save_file(half, hf_folder / f"part-{number}.safetensors")
        index |= dict.fromkeys(half, f"part-{number}.safetensors")
    (hf_folder / "model.safetensors").unlink()
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load_weights(resolve_model(str(hf_folder), tmp_path / "cache"), torch.bfloat16).keys() == toy_weights.keys()
    (hf_folder / "part-1.safetensors").unlink()
    assert "part-1.safetensors is missing" in refusal(hf_folder, tmp_path / "cache2")


def test_untied_head_is_kept(hf_folder, tmp_path, toy_config, toy_hf_weights):
    """A network with its own output matrix keeps it, and one that ties ignores a stored copy."""
    head = {"lm_head.weight": torch.ones(toy_config.vocab_size, 32, dtype=torch.bfloat16)}
    save_file(toy_hf_weights | head, hf_folder / "model.safetensors")
    assert "head.weight" not in load_weights(resolve_model(str(hf_folder), tmp_path / "cache"), torch.bfloat16)
    change_json(hf_folder / "config.json", tie_word_embeddings=False)
    folder = resolve_model(str(hf_folder), tmp_path / "cache")
    assert load_weights(folder, torch.bfloat16)["head.weight"].sum() == toy_config.vocab_size * 32
    assert load_config(folder).tie_embeddings is False


def test_cut_off_gguf_is_refused_everywhere(gguf, tmp_path, refusal):
    """A GGUF file cut at any place is refused as incomplete."""
    whole = gguf.write(tmp_path / "toy.gguf").read_bytes()
    for length in [*range(0, 64, 7), *range(64, len(whole), len(whole) // 40), len(whole) - 32]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        assert "complete" in refusal(tmp_path / "cut.gguf")


def test_damaged_gguf_never_escapes_as_another_error(gguf, tmp_path, toy_weights):
    """A flipped byte in the metadata either does no harm or is refused as a checkpoint error."""
    whole = gguf.write(tmp_path / "toy.gguf").read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 6000, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            folder = resolve_model(str(path), tmp_path / "cache")
            assert load_weights(folder, torch.float32).keys() == toy_weights.keys()


def drop(name: str):
    return lambda file: file.tensors.pop(name)


def put(name: str, rows: np.ndarray):
    return lambda file: file.tensors.update({name: rows.astype(np.float32)})


GGUF_REFUSALS = {
    "missing weight": (drop("blk.1.ffn_up.weight"), "layers.1.up.weight first"),
    "wrong shape": (put("blk.0.ffn_up.weight", np.zeros((63, 32))), "layers.0.up.weight has shape (63, 32)"),
    "heads do not divide": (put("blk.0.attn_q.weight", np.zeros((30, 32))), "do not divide into 4 heads"),
    "bias": (put("blk.0.attn_q.bias", np.zeros(32)), "blk.0.attn_q.bias"),
    "rope factors": (put("rope_freqs.weight", np.zeros(4)), "scaled rotary"),
    "not finite": (put("output_norm.weight", np.full(32, np.nan)), "norm.weight holds NaN"),
    "architecture": (lambda file: setattr(file, "architecture", "gemma2"), "'gemma2' is not supported"),
    "scaling": (lambda file: file.texts.update({"llama.rope.scaling.type": "yarn"}), "scaled rotary"),
    "experts": (lambda file: file.integers.update({"llama.expert_count": 8}), "experts"),
    "partial rotary": (lambda file: file.integers.update({"llama.rope.dimension_count": 4}), "a part of each head"),
    "missing fact": (lambda file: file.integers.pop("llama.block_count"), "llama.block_count is missing"),
    "endless layers": (lambda file: file.integers.update({"llama.block_count": 2**31}), "layers is 2147483648"),
    "no heads": (lambda file: file.integers.update({"llama.attention.head_count_kv": 0}), "heads is 0"),
    "tokenizer": (lambda file: file.texts.update({"tokenizer.ggml.model": "llama"}), "tokenizer.json"),
    "unknown merge": (lambda file: setattr(file, "merges", ["h q"]), "contradict"),
    "eos outside": (lambda file: file.integers.update({"tokenizer.ggml.eos_token_id": 99999}), "exceed the vocabulary"),
}


@pytest.mark.parametrize("case", GGUF_REFUSALS)
def test_unsupported_gguf_is_refused(case, gguf, tmp_path, refusal):
    """Each network or tokenizer that would be computed wrongly is refused with the reason."""
    change, reason = GGUF_REFUSALS[case]
    change(gguf)
    assert reason in refusal(gguf.write(tmp_path / "toy.gguf"))


CONFIG_REFUSALS = [
    ({"model_type": "qwen3_moe"}, "'qwen3_moe' is not supported"),
    ({"hidden_act": "gelu"}, "'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"sliding_window": 4096}, "sliding_window"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters"),
    ({"hidden_size": "wide"}, "hidden_size should be an integer"),
    ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ({"intermediate_size": 48}, "has shape"),
    ({"num_key_value_heads": 3}, "cannot share"),
    ({"vocab_size": 100}, "the tokenizer has ids up to"),
    ({"tie_word_embeddings": False}, "head.weight first"),
    ({"rope_theta": float("inf")}, "out of range"),
]


@pytest.mark.parametrize(("values", "reason"), CONFIG_REFUSALS)
def test_unsupported_config_is_refused(values, reason, hf_folder, tmp_path, refusal):
    """Each setting of a Hugging Face config that would change the mathematics is refused by name."""
    change_json(hf_folder / "config.json", **values)
    assert reason in refusal(hf_folder)


def test_rope_parameters_are_read(hf_folder, tmp_path):
    """The rotary base is found where newer configs keep it."""
    change_json(hf_folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert load_config(resolve_model(str(hf_folder), tmp_path / "cache")).rope_theta == 5e5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff\xfe garbage"])
def test_broken_folder_is_refused(name, content, hf_folder, tmp_path, refusal):
    """A folder without one of its files, or with garbage in its place, is refused in one line."""
    (hf_folder / name).unlink()
    if content is not None:
        (hf_folder / name).write_bytes(content)
    assert refusal(hf_folder)


def test_integer_weights_are_refused(hf_folder, tmp_path, toy_hf_weights, refusal):
    """Weights in a dtype that cannot be served are refused by name."""
    save_file(toy_hf_weights | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, hf_folder / "model.safetensors")
    assert "norm.weight is stored as torch.int8" in refusal(hf_folder)


def test_several_files_need_an_index(hf_folder, tmp_path, refusal):
    """Several weight files without an index are refused rather than guessed at."""
    (hf_folder / "model.safetensors").rename(hf_folder / "a.safetensors")
    shutil.copy(hf_folder / "a.safetensors", hf_folder / "b.safetensors")
    assert "no model.safetensors.index.json" in refusal(hf_folder)


def test_a_weight_without_a_name_of_theirs_is_an_error() -> None:
    """Names go back as they came; a tensor that is not known is not left out silently."""
    assert hugging_face_name("embed.weight") == "model.embed_tokens.weight"
    assert hugging_face_name("layers.12.gate.weight") == "model.layers.12.mlp.gate_proj.weight"
    with pytest.raises(KeyError):
        hugging_face_name("layers.0.memory.weight")
