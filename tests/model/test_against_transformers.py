"""With every inner learning rate at 0 a HOPE model is its base model: logits against transformers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import CONFIG, Bench, scripted

from hope_server.engine.tokenizer import Tokenizer
from hope_server.model.checkpoint import load_config, load_weights, resolve_model
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import fuse_params, random_weights
from hope_server.model.state import empty_state

_THEIRS = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def _transformers_model(config: ModelConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype):
    """The same network in transformers, with the same weights."""
    import transformers

    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            max_position_embeddings=config.max_position,
        )
    )
    state = {"model.embed_tokens.weight": weights["embed.weight"], "model.norm.weight": weights["norm.weight"]}
    state["lm_head.weight"] = weights.get("head.weight", weights["embed.weight"])
    for name, tensor in weights.items():
        if name.startswith("layers."):
            _, index, part, _ = name.split(".")
            state[f"model.layers.{index}.{_THEIRS[part]}.weight"] = tensor
    theirs.load_state_dict(state)
    return theirs.to(dtype).eval()


def _off(levels: tuple[LevelSpec, ...]) -> tuple[LevelSpec, ...]:
    return tuple(replace(level, lr=0.0) for level in levels)


@pytest.mark.parametrize("tied", [True, False])
def test_a_session_with_every_lr_at_zero_has_the_base_models_logits(tied: bool) -> None:
    """Reading, chunk replay, decode and consolidation at lr 0 give transformers' logits inside the window."""
    config = replace(CONFIG, levels=_off(CONFIG.levels), model=replace(CONFIG.model, tie_embeddings=tied))
    bench = Bench(config=config)
    tokens = torch.randint(0, 256, (60,)).tolist()
    run = bench.run(tokens[:37], generation=scripted(bench, tokens[37:]))
    bench.turn(run)
    theirs = _transformers_model(config.model, random_weights(config.model, 0, torch.float64), torch.float64)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    seen = torch.stack(run.generation.sampler.seen)
    assert len(seen) == 23
    # transformers norms and rotates in float32 whatever the model's dtype: its rounding (3e-6 measured), not ours.
    torch.testing.assert_close(seen, expected[36:59], rtol=0, atol=2e-5)


@pytest.mark.model
def test_the_default_model_has_the_base_models_logits() -> None:
    """SmolLM2 as converted by us, at lr 0 with default levels, against transformers on the same float32 weights."""
    cache = Path(os.environ.get("HOPE_CACHE_DIR", Path.home() / ".cache" / "hope"))
    folder = resolve_model("smollm2-135m-instruct", cache)
    config = load_config(folder)
    levels = _off(
        (LevelSpec("slow", tuple(range(4, 26))), LevelSpec("fast", (28,), schedule="online", update_period=64))
    )
    model = HopeModel(HopeConfig(config, WindowSpec(precision="model"), levels))
    tokens = torch.tensor(
        [Tokenizer.load(folder).encode("The capital of France is Paris, and the capital of Italy is")]
    )
    theirs = _transformers_model(config, load_weights(folder, torch.float32), torch.float32)
    with torch.no_grad():
        expected = theirs(tokens).logits[0]
    params = fuse_params(config, load_weights(folder, torch.float32))
    state = empty_state(model.memory, 1, torch.float32)
    for level in state.levels.values():
        level.num_writes += 1  # so that the unchanged fast weights are really computed with
    _, state = model.prefill(params, state, tokens[:, :9])
    for index in range(9, tokens.shape[1]):
        logits, state = model.decode(params, state, tokens[:, index], torch.tensor([True]))
    # float32 rounding through 30 blocks; 4e-5 was measured at 200 tokens.
    torch.testing.assert_close(logits[0], expected[-1], rtol=0, atol=5e-4)
    assert Tokenizer.load(folder).decode([int(logits.argmax())]).strip() == "Rome"
