"""The Titans branch of a block as a layer of vLLM: its heads of this rank, with states in vLLM's pages.

The layer itself is `hope_server.model.titans.TitansLayer`, whose operators are those of `hope_kernels`: nothing of the
update rules is written here a second time. This module only says which rows of a step go on from which page.
A chunk's keys, values and rates are part of the state and its memories are written where the chunk ends, counted from
the session's first token; so a turn may be cut into steps in any way, or begun anew, and nothing changes.
Shapes: T tokens of a step, D model width, R rows of a step, S slots.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from hope_kernels.products import fast_products
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from hope_server.model.config import HopeConfig
from hope_server.model.titans_params import TitansParams
from hope_server.model.titans_state import TitansState
from hope_vllm.hope_config import empty_row, make_layer, titans_of
from hope_vllm.metadata import HopeMetadata
from hope_vllm.names import OPERATOR
from hope_vllm.shards import Tensors, cut_weight, spec_of_rank

PENDING = "pending"
"""The last part of a page: tokens of the row's unfinished chunk."""


def page_layout(config: HopeConfig, num_ranks: int) -> tuple[tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]:
    """Shapes and dtypes of the parts of a page: the tensors of one row of one block's state, then PENDING."""
    row = empty_row(config, spec_of_rank(titans_of(config), 0, num_ranks))
    parts = [tensor[0] for tensor in row.tensors().values() if tensor.numel()]
    shapes = (*(tuple(part.shape) for part in parts), (1,))
    return shapes, (*(torch.float32 for _ in parts), torch.int32)


class HopeMemory(nn.Module, MambaBase):
    """One block's Titans branch."""

    def __init__(self, config: HopeConfig, block: int, prefix: str) -> None:
        """block: its number in the model; prefix: its name in vLLM. Raises ValueError for ranks that do not fit."""
        super().__init__()
        self.block, self._prefix = block, prefix
        self._rank, self._num_ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        self._whole = titans_of(config)
        self._spec = spec_of_rank(self._whole, self._rank, self._num_ranks)
        self._config = config
        self._layer = make_layer(config, self._spec)
        self._template = empty_row(config, self._spec)
        self._shapes, self._dtypes = page_layout(config, self._num_ranks)
        self._add_parameters(config.model.hidden_size)
        self.kv_cache: tuple[torch.Tensor, ...] = (torch.tensor([]),)
        self._pool: tuple[TitansState, torch.Tensor] | None = None
        self._loaded: set[int] = set()
        layers = get_current_vllm_config().compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"two layers are called {prefix}")
        layers[prefix] = self

    # -- what vLLM asks ----------------------------------------------------------------------------------------------

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """As `MambaBase` has it: the parts of a page."""
        return self._shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """As `MambaBase` has it: float32, as memories add up many small writes."""
        return self._dtypes

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """As `MambaBase` has it."""
        return MambaAttentionBackendEnum.CUSTOM

    def bind_kv_cache(self, kv_cache: torch.Tensor) -> None:
        """As `MambaBase` has it."""
        super().bind_kv_cache(kv_cache)
        self._pool = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix a step's tokens x [T, D], each row behind its own past; returns [T, D], all ranks' heads added."""
        out = torch.zeros_like(x)
        torch.ops.vllm.hope_memory(x, out, self._prefix)
        return tensor_model_parallel_all_reduce(out) if self._num_ranks > 1 else out

    # -- states, for the connector ------------------------------------------------------------------------------------

    def write_slot(self, slot: int, tensors: Tensors, num_pending: int) -> None:
        """Put a row's state of this rank into a page, for a turn that begins in this step.

        Raises ValueError where the parts are not those of this layer.
        """
        pool, pending = self._pages()
        row = pool.at(slice(slot, slot + 1)).tensors()
        if {name: tuple(part.shape[1:]) for name, part in row.items()} != {
            name: tuple(part.shape) for name, part in tensors.items()
        }:
            raise ValueError(f"block {self.block}: a state of other parts or shapes than this layer has")
        for name, part in row.items():
            part[0].copy_(tensors[name])
        pending[slot, 0] = num_pending
        self._loaded.add(slot)

    def read_slot(self, slot: int) -> tuple[Tensors, int]:
        """A copy of a row's state of this rank, and the tokens of its unfinished chunk."""
        pool, pending = self._pages()
        row = pool.at(slice(slot, slot + 1)).tensors()
        return {name: part[0].to("cpu", copy=True) for name, part in row.items()}, int(pending[slot, 0])

    def forget_loaded(self) -> None:
        """Drop what earlier steps were told of loaded pages."""
        self._loaded.clear()

    # -- private ------------------------------------------------------------------------------------------------------

    def mix(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write what this rank's heads make of x [T, D] into out [T, D]; the operator's work."""
        steps = get_forward_context().attn_metadata
        if steps is None:
            # vLLM measures how much memory a step takes; nobody's state is touched.
            return
        step: HopeMetadata = steps[self._prefix]
        pool, pending = self._pages()
        inputs, lengths = x.float(), step.lengths
        slots = step.slots.tolist()
        for row, (length, before) in enumerate(zip(lengths, step.num_before, strict=True)):
            if length and not before and slots[row] not in self._loaded:
                self._begin(pool, pending, slots[row])
            self._loaded.discard(slots[row])
        single = [row for row, length in enumerate(lengths) if length == 1]
        if single:
            self._decode(inputs, out, step, single, pool, pending)
        for row, length in enumerate(lengths):
            if length > 1:
                tokens = slice(step.starts[row], step.starts[row + 1])
                out[tokens] = self._read(inputs[tokens], slots[row], pool, pending).to(out.dtype)

    def _decode(
        self,
        inputs: torch.Tensor,
        out: torch.Tensor,
        step: HopeMetadata,
        rows: list[int],
        pool: TitansState,
        pending: torch.Tensor,
    ) -> None:
        """Read one token of each of some rows."""
        places = torch.tensor([step.starts[row] for row in rows], device=inputs.device)
        slots = step.slots[torch.tensor(rows, device=step.slots.device)]
        before = pending[slots, 0].long()
        found = self._layer.step_slots(self._params, inputs[places][:, None], pool, slots, before)
        out[places] = found[:, 0].to(out.dtype)
        pending[slots, 0] = ((before + 1) % self._config.chunk_size).to(pending.dtype)

    def _read(self, x: torch.Tensor, slot: int, pool: TitansState, pending: torch.Tensor) -> torch.Tensor:
        """Read a row's tokens [T, D]; returns [T, D]."""
        row, before = pool.at(slice(slot, slot + 1)), int(pending[slot, 0])
        with fast_products(len(x)):
            found, after = self._layer.run(self._params, x[None], row, before)
        row.copy_(after)
        pending[slot, 0] = (before + len(x)) % self._config.chunk_size
        return found[0]

    def _begin(self, pool: TitansState, pending: torch.Tensor, slot: int) -> None:
        """Make a page that of a row that has seen nothing."""
        row = pool.at(slice(slot, slot + 1))
        row.copy_(self._layer.empty_state(self._params.initial, 1))
        pending[slot, 0] = 0

    def _pages(self) -> tuple[TitansState, torch.Tensor]:
        """All pages as one state with a row a slot, and the unfinished tokens [S, 1] of each."""
        if self._pool is None:
            *parts, pending = self.kv_cache
            # A convolution of window 1 has no tail, and a page no part without bytes.
            tensors = {
                name: pending.new_empty(len(pending), *tensor.shape[1:], dtype=torch.float32)
                for name, tensor in self._template.tensors().items()
                if not tensor.numel()
            }
            names = [name for name, tensor in self._template.tensors().items() if tensor.numel()]
            tensors |= dict(zip(names, parts, strict=True))
            self._pool = self._template.with_tensors(tensors), pending
        return self._pool

    def _add_parameters(self, width: int) -> None:
        """Make the slow weights of this rank, to be filled from the model folder; float32, as memories are."""
        shapes = _weight_shapes(self._config, width)
        self.initial = nn.ParameterDict()
        for name, shape in shapes.items():
            # vLLM makes models in the network's dtype, which may be rounder.
            whole = torch.zeros(shape, dtype=torch.float32)
            empty = cut_weight(name, whole, self._whole, self._rank, self._num_ranks).contiguous()
            parameter = nn.Parameter(empty, requires_grad=False)
            set_weight_attrs(parameter, {"weight_loader": self._loader(name)})
            if name.startswith("initial."):
                self.initial[name.removeprefix("initial.")] = parameter
            else:
                self.register_parameter(name, parameter)

    def _loader(self, name: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
        return partial(_load, name, self._whole, self._rank, self._num_ranks)

    @cached_property
    def _params(self) -> TitansParams:
        # The parameters' own memory: loading fills it in place.
        own: dict[str, Any] = {name: parameter.data for name, parameter in self.named_parameters(recurse=False)}
        return TitansParams(initial={name: part.data for name, part in self.initial.items()}, **own)


def _weight_shapes(config: HopeConfig, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's slow weights, all ranks together, as `TitansParams.named` names them."""
    from hope_server.model.titans_params import random_titans

    drawn = random_titans(titans_of(config), width, torch.Generator().manual_seed(0))
    return {name: tuple(tensor.shape) for name, tensor in drawn.named().items()}


def _load(name: str, spec: Any, rank: int, num_ranks: int, parameter: torch.Tensor, weight: torch.Tensor) -> None:
    parameter.data.copy_(cut_weight(name, weight, spec, rank, num_ranks))


def _hope_memory(x: torch.Tensor, out: torch.Tensor, layer_name: str) -> None:
    get_forward_context().no_compile_layers[layer_name].mix(x, out)


def _hope_memory_fake(x: torch.Tensor, out: torch.Tensor, layer_name: str) -> None:
    return None


direct_register_custom_op(
    OPERATOR.removeprefix("vllm::"), _hope_memory, mutates_args=["out"], fake_impl=_hope_memory_fake
)
