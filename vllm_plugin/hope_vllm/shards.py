"""Which part of a layer belongs to which tensor-parallel rank, for slow weights and for states: its heads.

A layer's memories never mix heads before the last projection, so a rank computes its heads alone and the ranks' outputs
are added. A state is cut and joined exactly: no number is computed, so any number of ranks that divides the heads can
go on from what any other left.
Shapes: H heads, K head size, n rates, D model width, W window of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hope_server.model.config import TitansSpec

Tensors = dict[str, torch.Tensor]

_WHOLE = ("out_norm", "branch")
_TAILS = ("tail", "tail_start")


def spec_of_rank(spec: TitansSpec, rank: int, num_ranks: int) -> TitansSpec:
    """The spec of one rank's heads. Raises ValueError where the heads cannot be shared evenly."""
    heads = heads_of_rank(spec, rank, num_ranks)
    sums = len([head for head in heads if head < spec.num_sums])
    return replace(spec, num_heads=len(heads), num_sums=sums)


def heads_of_rank(spec: TitansSpec, rank: int, num_ranks: int) -> range:
    """The heads of a rank. Raises ValueError where the heads cannot be shared evenly."""
    if spec.num_heads % num_ranks:
        raise ValueError(f"{spec.num_heads} memory heads cannot be shared by {num_ranks} tensor-parallel ranks")
    share = spec.num_heads // num_ranks
    return range(rank * share, (rank + 1) * share)


def cut_weight(name: str, weight: torch.Tensor, spec: TitansSpec, rank: int, num_ranks: int) -> torch.Tensor:
    """A rank's part of a slow weight, named as `TitansParams.named` names it."""
    if name in _WHOLE:
        return weight
    heads = heads_of_rank(spec, rank, num_ranks)
    if name.startswith("initial."):
        return weight[heads.start : heads.stop]
    if name == "out":
        return weight.index_select(1, _groups(1, heads, spec.num_heads, spec.head_dim))
    if name == "out_gate":
        return weight.index_select(0, _groups(1, heads, spec.num_heads, spec.head_dim))
    if name == "qkv":
        return weight.index_select(0, _groups(3, heads, spec.num_heads, spec.head_dim))
    if name in ("rates", "rate_bias"):
        return weight.index_select(0, _groups(len(weight) // spec.num_heads, heads, spec.num_heads, 1))
    if name == "conv":
        return weight.index_select(0, _channels(len(weight), heads, spec))
    raise ValueError(f"a Titans layer has no weight {name!r}")


def cut_state(tensors: Tensors, spec: TitansSpec, rank: int, num_ranks: int) -> Tensors:
    """A rank's part of one row of a block's state: [H, ...] by heads, tails [W - 1, (3 K + n) H] by channels."""
    heads = heads_of_rank(spec, rank, num_ranks)
    out = {}
    for name, tensor in tensors.items():
        if name in _TAILS:
            out[name] = tensor.index_select(1, _channels(tensor.shape[1], heads, spec))
        else:
            out[name] = tensor[heads.start : heads.stop]
    return out


def join_states(parts: Sequence[Tensors], spec: TitansSpec) -> Tensors:
    """One row of a block's state out of all ranks' parts, in the order of ranks."""
    out = {}
    for name, first in parts[0].items():
        if name not in _TAILS:
            out[name] = torch.cat([part[name] for part in parts])
            continue
        num_channels = sum(part[name].shape[1] for part in parts)
        whole = first.new_empty(first.shape[0], num_channels)
        for rank, part in enumerate(parts):
            whole[:, _channels(num_channels, heads_of_rank(spec, rank, len(parts)), spec)] = part[name]
        out[name] = whole
    return out


def _channels(num_channels: int, heads: range, spec: TitansSpec) -> torch.Tensor:
    """Which of (3 K + n) H channels are those of some heads: queries, keys, values, then rates."""
    inner = 3 * spec.num_heads * spec.head_dim
    num_rates = (num_channels - inner) // spec.num_heads
    vectors = _groups(3, heads, spec.num_heads, spec.head_dim)
    return torch.cat([vectors, inner + _groups(num_rates, heads, spec.num_heads, 1)])


def _groups(num_groups: int, heads: range, num_heads: int, size: int) -> torch.Tensor:
    """Places of some heads in num_groups groups of num_heads heads of `size` places each."""
    places = torch.arange(num_groups * num_heads * size).view(num_groups, num_heads, size)
    return places[:, heads.start : heads.stop].flatten()
