"""Memory levels: where each fast weight of a level lies in its flat vector, how it steps, what it does to a block.

A level keeps all its weights of a row in one vector, so that norms, caps, optimizer steps and commits are single
operations. Shapes: B rows, P weights of the level, T tokens, D model width, F MLP width, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from hope_kernels.decoding import can_compute
from hope_kernels.decoding import gate as gated
from hope_kernels.fast_linear import dense_delta, low_rank_delta
from torch.nn import functional

from hope_server.model import cms
from hope_server.model.config import CmsForm, LevelSpec, ModelConfig
from hope_server.model.linear import linear_in_columns
from hope_server.model.recognition import recognition
from hope_server.optim import State, UpdateRule, make_rule

if TYPE_CHECKING:
    from hope_server.model.params import BlockParams

BlockMemory = dict[str, torch.Tensor]
"""The fast weights of one level at one block, by matrix name; every tensor has the row dimension first."""


Place = tuple[int, str]
"""Where a matrix of a level is: its block and its name."""


@dataclass(frozen=True, slots=True)
class LevelLayout:
    """The flat layout of a level. `places` maps (block, matrix) to (offset, rows, columns).

    Behind the matrices of a gated level stands a threshold for each of its blocks.
    moment_shapes: for each shape of a matrix, what the level's rule remembers of it, by name; each name is one flat
    vector over all matrices, in layout order.
    """

    spec: LevelSpec
    places: dict[Place, tuple[int, int, int]]
    num_weights: int
    moment_shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]]

    @property
    def num_thresholds(self) -> int:
        """Thresholds behind the matrices."""
        return len(self.spec.blocks) if self.spec.gate else 0

    @property
    def rule(self) -> UpdateRule:
        """The level's inner optimizer."""
        return make_rule(self.spec.rule, self.spec.lr, self.spec.betas)

    def views(self, flat: torch.Tensor) -> dict[int, BlockMemory]:
        """Split flat [B, P] into matrices and, of a gated level, thresholds [B, 1, 1], by block, without copying."""
        out: dict[int, BlockMemory] = {block: {} for block in self.spec.blocks}
        for (block, name), (offset, rows, columns) in self.places.items():
            out[block][name] = flat[:, offset : offset + rows * columns].view(-1, rows, columns)
        if self.spec.share != 1:
            for memory in out.values():
                memory["share"] = flat.new_full((1, 1, 1), self.spec.share)
        if self.num_thresholds:
            thresholds = flat[:, -self.num_thresholds :].unbind(1)
            for block, threshold in zip(self.spec.blocks, thresholds, strict=True):
                out[block]["threshold"] = threshold.view(-1, 1, 1)
        return out

    def leaves(self, flat: torch.Tensor) -> dict[int, BlockMemory]:
        """As `views`, each matrix a leaf that autograd differentiates. flat [B, P] itself gets no gradient.

        A gated level learns without its thresholds: a gate that is shut would let no gradient through.
        """
        return {
            block: {name: view.detach().requires_grad_() for name, view in memory.items() if name != "threshold"}
            for block, memory in self.views(flat).items()
        }

    def flatten(self, matrices: list[torch.Tensor]) -> torch.Tensor:
        """Join matrices in layout order (as gradients come back for `leaves`) into [B, P], 0 for thresholds."""
        nothing = matrices[0].new_zeros(len(matrices[0]), self.num_thresholds)
        return torch.cat([*(matrix.flatten(1) for matrix in matrices), nothing], dim=1)

    def moments(self, num_rows: int, dtype: torch.dtype) -> State:
        """What the rule remembers of rows that have seen nothing: zeros [B, ...] by name."""
        sizes: dict[str, int] = {}
        for _, rows, columns in self.places.values():
            for name, shape in self.moment_shapes[rows, columns].items():
                sizes[name] = sizes.get(name, 0) + math.prod(shape)
        return {name: torch.zeros(num_rows, size, dtype=dtype) for name, size in sizes.items()}

    def step(
        self, moments: State, gradient: torch.Tensor, num_steps: torch.Tensor, drift: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """The change [B, P] that the rule makes of a gradient [B, P], and the new moments; pure.

        num_steps [B] counts this step, from 1; drift [B, P]: the weights less where they began, what weight decay acts
        on. A matrix rule acts on each matrix of the level, those of one shape at a time.
        """
        rule = self.rule
        if not rule.needs_matrix:
            return rule.update(moments, gradient, num_steps, drift)
        change, after = torch.zeros_like(gradient), {name: torch.empty_like(tensor) for name, tensor in moments.items()}
        starts = dict.fromkeys(moments, 0)
        groups: dict[tuple[int, int], list[tuple[int, dict[str, int]]]] = {}
        for offset, rows, columns in self.places.values():
            groups.setdefault((rows, columns), []).append((offset, dict(starts)))
            for name, shape in self.moment_shapes[rows, columns].items():
                starts[name] += math.prod(shape)
        for shape, places in groups.items():
            offsets = [offset for offset, _ in places]
            kept = {
                name: _gather(moments[name], [begins[name] for _, begins in places], size)
                for name, size in self.moment_shapes[shape].items()
            }
            counts = num_steps.repeat_interleave(len(places))
            found, kept = rule.update(kept, _gather(gradient, offsets, shape), counts, _gather(drift, offsets, shape))
            _scatter(change, offsets, found)
            for name, tensor in kept.items():
                _scatter(after[name], [begins[name] for _, begins in places], tensor)
        return change, after

    def initial(self, dtype: torch.dtype) -> torch.Tensor:
        """The level's initial weights [P]: output sides zero, so that an unwritten level changes nothing.

        Input sides are drawn once from a seed that depends on the place alone, rounded to bfloat16 so that they store
        exactly.
        """
        flat = torch.zeros(self.num_weights, dtype=torch.float32)
        for (block, name), (offset, rows, columns) in self.places.items():
            if name.startswith("in"):
                generator = torch.Generator().manual_seed(1_000 * block + sum(name.encode()))
                drawn = torch.randn(rows * columns, generator=generator) / math.sqrt(columns)
                flat[offset : offset + rows * columns] = drawn.bfloat16().float()
        return flat.to(dtype)


def make_layout(spec: LevelSpec, model: ModelConfig) -> LevelLayout:
    """Lay out a level's matrices block by block."""
    width, inner, rank = model.hidden_size, model.intermediate_size, spec.rank
    if spec.kind == "low_rank":
        shapes = {
            "in_gate_up": (2 * rank, width),
            "out_gate": (inner, rank),
            "out_up": (inner, rank),
            "in_down": (rank, inner),
            "out_down": (width, rank),
        }
    elif spec.kind == "dense":
        shapes = {"delta_down": (width, inner)}
    else:
        shapes = {"in_residual": (rank, width), "out_residual": (width, rank)}
    places, offset = {}, 0
    for block in spec.blocks:
        for name, (rows, columns) in shapes.items():
            places[block, name] = (offset, rows, columns)
            offset += rows * columns
    if spec.gate:
        offset += len(spec.blocks)
    rule = make_rule(spec.rule, spec.lr, spec.betas)
    moment_shapes = {
        shape: {name: tuple(tensor.shape[1:]) for name, tensor in rule.init(torch.empty(1, *shape)).items()}
        for shape in set(shapes.values())
    }
    return LevelLayout(spec, places, offset, moment_shapes)


def _gather(flat: torch.Tensor, offsets: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """The parts of flat [B, P] that begin at the offsets, as rows of their own [B * parts, *shape]."""
    parts = [flat[:, offset : offset + math.prod(shape)] for offset in offsets]
    return torch.stack(parts, dim=1).view(-1, *shape)


def _scatter(flat: torch.Tensor, offsets: list[int], parts: torch.Tensor) -> None:
    """Put parts [B * parts, ...] where `_gather` took them from."""
    size = parts[0].numel()
    for offset, part in zip(offsets, parts.reshape(-1, len(offsets), size).unbind(1), strict=True):
        flat[:, offset : offset + size] = part


def mlp_block(
    x: torch.Tensor,
    params: BlockParams,
    memories: list[BlockMemory],
    form: CmsForm = "independent",
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the block's MLPs on normalised x [B, T, D] through the slow weights and every level's fast weights.

    Deltas act on the pretrained block they were stacked on (NL §7.3). Residual levels are MLPs of their own: side by
    side in the `independent` form, in a chain, in the order given, in the others.
    shares [E]: weights of the residual levels' outputs, learned in the outer loop; independent form only.
    Returns [B, T, D]. Source: NL eq. 70, 74.
    """
    gate_up = linear_in_columns(x, params.gate_up)
    if any("in_gate_up" in memory for memory in memories):
        gate, up = gate_up.chunk(2, dim=-1)
        inner = _inner(x, gate, up, memories)
    else:
        inner = _gated(gate_up)
    return _output(x, inner, linear_in_columns(inner, params.down), memories, form, shares)


def mlp_stretches(
    x: torch.Tensor, params: BlockParams, stretches: Sequence[tuple[slice, list[BlockMemory]]], form: CmsForm
) -> torch.Tensor:
    """Compute the same for rows whose levels lie in several places: each stretch of rows [B] with its own memories.

    The slow weights are read once for all rows.
    """
    if len(stretches) == 1 or not any(memories for _, memories in stretches):
        return mlp_block(x, params, stretches[0][1], form)
    gate, up = linear_in_columns(x, params.gate_up).chunk(2, dim=-1)
    inner = torch.cat([_inner(x[part], gate[part], up[part], memories) for part, memories in stretches])
    slow = linear_in_columns(inner, params.down)
    return torch.cat([_output(x[part], inner[part], slow[part], memories, form) for part, memories in stretches])


def mlp_keys(x: torch.Tensor, params: BlockParams) -> torch.Tensor:
    """The inner activations [B, T, F] of a block's own MLP on normalised x [B, T, D]: the keys of its output matrix."""
    return _gated(linear_in_columns(x, params.gate_up))


def _gated(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up [B, T, 2 F]."""
    if not can_compute(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
    return gated(gate_up.flatten(0, 1)).view(*gate_up.shape[:2], -1)


def _inner(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, memories: list[BlockMemory]) -> torch.Tensor:
    """The inner activations [B, T, F], with what levels add to the gate and to the inputs [B, T, F]."""
    for memory in memories:
        if "in_gate_up" in memory:
            in_gate, in_up = memory["in_gate_up"].chunk(2, dim=1)
            gate = gate + low_rank_delta(x, in_gate, memory["out_gate"])
            up = up + low_rank_delta(x, in_up, memory["out_up"])
    return functional.silu(gate) * up


def _output(
    x: torch.Tensor,
    inner: torch.Tensor,
    slow: torch.Tensor,
    memories: list[BlockMemory],
    form: CmsForm,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the slow weights make of inner activations, slow [B, T, D], with what levels add to it."""
    out = slow
    for memory in memories:
        if "in_down" in memory:
            out = out + low_rank_delta(inner, memory["in_down"], memory["out_down"])
        elif "delta_down" in memory:
            change = dense_delta(inner, memory["delta_down"])
            if "threshold" in memory:
                change = change * recognition(change, slow, memory["threshold"])
            out = out + change
    levels = [partial(_residual, memory) for memory in memories if "in_residual" in memory]
    return cms.head_wise(x, out, levels, shares) if form == "independent" else cms.chained(x, out, levels)


def _residual(memory: BlockMemory, x: torch.Tensor) -> torch.Tensor:
    """A residual level's MLP on x [B, T, D]."""
    added = dense_delta(functional.silu(dense_delta(x, memory["in_residual"])), memory["out_residual"])
    return memory["share"] * added if "share" in memory else added
