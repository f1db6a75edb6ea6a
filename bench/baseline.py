"""The other side: transformers' Llama on the very tensors that our model computes with, and how fast it generates."""

from __future__ import annotations

import time

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from hope_server.model.config import ModelConfig
from hope_server.model.params import Params


class Clock:
    """A streamer of transformers that notes when each token came."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time of a token; the first call brings the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to write."""

    def seconds(self) -> tuple[float, float]:
        """Seconds to the first token, and from there to the last."""
        return self.times[1] - self.start, self.times[-1] - self.times[1]


def load_baseline(config: ModelConfig, params: Params) -> LlamaForCausalLM:
    """Build transformers' model around the tensors of `params`: nothing is copied, so both sides read the same."""
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=config.tie_embeddings,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    # Rotary tables are no weights: they must be computed, not left on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(settings)
    model.load_state_dict(_renamed(config, params), strict=True, assign=True)
    model.generation_config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)
    return model.eval()


def generate(model: LlamaForCausalLM, prompt: list[int], num_new: int) -> tuple[float, float]:
    """Greedily generate exactly `num_new` tokens; returns the seconds of `Clock`."""
    ids = torch.tensor([prompt])
    clock = Clock()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, eos_token_id=None, streamer=clock
        )
    return clock.seconds()


def _renamed(config: ModelConfig, params: Params) -> dict[str, torch.Tensor]:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    out = {
        "model.embed_tokens.weight": params.embed,
        "model.norm.weight": params.norm,
        "lm_head.weight": params.head,
    }
    for index, block in enumerate(params.blocks):
        query, key, value = block.qkv.split([queries, keys, keys])
        gate, up = block.gate_up.chunk(2)
        parts = {
            "input_layernorm": block.attn_norm,
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": block.out,
            "post_attention_layernorm": block.mlp_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.down,
        }
        out |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in parts.items()}
    return out
