"""A rank's side of the connector: fills pages before a step, copies them after it. Knows no store."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

from hope_vllm.codec import Shard
from hope_vllm.hope_config import read_config, titans_of
from hope_vllm.layer import HopeMemory
from hope_vllm.messages import Copies, StepOrders
from hope_vllm.shards import cut_state


class WorkerSide:
    """Reads and writes this rank's pages."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """After the ranks know each other."""
        self._config = vllm_config
        self._spec = titans_of(read_config(vllm_config.model_config.hf_config))
        self._rank, self._num_ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        self._layers: dict[str, HopeMemory] = {}
        self._copies: dict[str, dict[int, Shard]] = {}

    def find_layers(self) -> None:
        """Look up the layers with memories, once vLLM has given them their pages."""
        layers: dict[str, Any] = self._config.compilation_config.static_forward_context
        self._layers = {name: layer for name, layer in layers.items() if isinstance(layer, HopeMemory)}

    def load(self, orders: StepOrders) -> None:
        """Fill the pages of turns that begin in this step."""
        for layer in self._layers.values():
            layer.forget_loaded()
        chunk_size = read_config(self._config.model_config.hf_config).chunk_size if orders.loads else 1
        for load in orders.loads:
            for name, layer in self._layers.items():
                whole = load.state.blocks[layer.block]
                part = cut_state(whole, self._spec, self._rank, self._num_ranks)
                layer.write_slot(load.slots[name], part, load.state.num_tokens % chunk_size)

    def save(self, orders: StepOrders) -> None:
        """Copy the pages of turns that read their last token in this step."""
        for save in orders.saves:
            blocks, pending = {}, set()
            for name, layer in self._layers.items():
                blocks[layer.block], num_pending = layer.read_slot(save.slots[name])
                pending.add(num_pending)
            if len(pending) != 1:
                raise RuntimeError(f"blocks of one session stand at places {sorted(pending)} of a chunk")
            self._copies[save.request_id] = {self._rank: Shard(blocks, pending.pop())}

    def take_copies(self) -> Copies | None:
        """What was copied since the last call; None where nothing was."""
        if not self._copies:
            return None
        copies, self._copies = Copies(self._copies), {}
        return copies
