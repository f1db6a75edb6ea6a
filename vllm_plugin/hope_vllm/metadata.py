"""Where each row of a step stands: its slot, its tokens, and how many of its turn were read before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionCGSupport
from vllm.v1.attention.backends.linear_attn import LinearAttentionMetadataBuilder


@dataclass(frozen=True, slots=True)
class HopeMetadata:
    """One step's rows, in the order of their tokens.

    slots [R]: the page of each row's state; starts: R + 1 places in the step's tokens; num_before: tokens of each row's
    turn that earlier steps read, 0 where its state must begin.
    """

    slots: torch.Tensor
    starts: tuple[int, ...]
    num_before: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row in this step."""
        return tuple(stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False))


class HopeMetadataBuilder(LinearAttentionMetadataBuilder):
    """Builds it out of what vLLM knows of a step; everything that steers is on the host."""

    # A row's work depends on its place in its chunk, so no step is like another.
    _cudagraph_support = AttentionCGSupport.NEVER

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """As vLLM asks for it."""
        common = common_attn_metadata
        starts = tuple(common.query_start_loc_cpu.tolist())
        lengths = common.seq_lens_cpu_upper_bound
        lengths = (common.seq_lens.cpu() if lengths is None else lengths).tolist()[: len(starts) - 1]
        num_before = [length - (starts[row + 1] - starts[row]) for row, length in enumerate(lengths)]
        return HopeMetadata(common.block_table_tensor[: len(lengths), 0].long(), starts, tuple(num_before))


class HopeBackend(AttentionBackend):
    """What vLLM asks of a kind of state."""

    @staticmethod
    def get_name() -> str:
        """Its name in messages."""
        return "HOPE"

    @staticmethod
    def get_builder_cls() -> type[HopeMetadataBuilder]:
        """Who builds a step's metadata."""
        return HopeMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """Its state is a page a row, not a page a few tokens."""
        return True
