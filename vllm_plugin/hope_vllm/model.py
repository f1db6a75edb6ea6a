"""A Llama whose chosen blocks have a Titans branch beside their attention."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from hope_vllm.hope_config import read_config, titans_of
from hope_vllm.layer import HopeMemory, page_layout
from hope_vllm.setup import check_connector


class HopeDecoderLayer(LlamaDecoderLayer):
    """A block: attention and, where the model has one, its Titans branch over the same normalised input; then the MLP.

    Source: NL §7.3.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        """As vLLM makes its blocks."""
        super().__init__(vllm_config, prefix, config)
        hope, block = read_config(vllm_config.model_config.hf_config), extract_layer_index(prefix)
        self.memory = HopeMemory(hope, block, f"{prefix}.memory") if block in titans_of(hope).blocks else None

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the block over a step's tokens [T, D]; returns what it adds and the sum so far, as Llama does."""
        if residual is None:
            residual = hidden_states
            normed = self.input_layernorm(hidden_states)
        else:
            normed, residual = self.input_layernorm(hidden_states, residual)
        # Before attention, which may write over its input.
        remembered = None if self.memory is None else self.memory(normed)
        mixed = self.self_attn(positions=positions, hidden_states=normed)
        if remembered is not None:
            mixed = mixed + remembered
        normed, residual = self.post_attention_layernorm(mixed, residual)
        return self.mlp(normed), residual


class HopeForCausalLM(LlamaForCausalLM, HasInnerState, IsHybrid):
    """The model as vLLM's registry knows it; its folder is written by `hope_server.model.hf_export`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """As vLLM makes its models. Raises CheckpointError for a folder without memories, UnsupportedSetup."""
        check_connector(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=HopeDecoderLayer)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """As `IsHybrid` has it: the parts of a page."""
        return _layout(vllm_config)[0]

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """As `IsHybrid` has it."""
        return _layout(vllm_config)[1]


def _layout(vllm_config: VllmConfig) -> tuple[tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]:
    config = read_config(vllm_config.model_config.hf_config)
    return page_layout(config, vllm_config.parallel_config.tensor_parallel_size)
