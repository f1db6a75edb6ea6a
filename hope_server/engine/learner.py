"""The online pass: read a completed chunk, take the next-token gradient at its start, write the online levels.

A chunk is always computed at its full length from the state at its start, so the memory after it does not depend on
how its tokens arrived (one request or many, prefill or decode), bit for bit.
Shapes: B rows, C tokens of the chunk, V vocabulary, P weights of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hope_kernels.cms_update import ElementRule, LevelWrite, write_
from hope_kernels.products import fast_products

from hope_server.model import cms
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.levels import BlockMemory
from hope_server.model.mixing import TokensRead
from hope_server.model.params import Params
from hope_server.model.state import FastState, LevelState


@dataclass(slots=True)
class ChunkOutcome:
    """What reading a chunk gave.

    logits [B, V] after the last token; loss [B] summed over the taught tokens, nats; num_taught [B];
    update_norm: by level, [B] Frobenius norm of the write; is_finite [B]: False where the write was refused.
    """

    logits: torch.Tensor
    loss: torch.Tensor
    num_taught: torch.Tensor
    update_norm: dict[str, torch.Tensor]
    is_finite: torch.Tensor


@dataclass(slots=True)
class ChunkGradients:
    """Gradients of the summed taught loss with respect to each online level, [B, P] by level name."""

    levels: dict[str, torch.Tensor]
    loss: torch.Tensor
    num_taught: torch.Tensor
    logits: torch.Tensor
    new: list[TokensRead]


class Learner:
    """Reads chunks and writes the online levels of a model."""

    def __init__(self, model: HopeModel) -> None:
        self.model = model
        specs = model.config.levels
        self.online = tuple(spec for spec in specs if spec.schedule == "online" and spec.lr > 0)
        self._contexts = cms.contexts(specs, model.config.cms)
        first = [min(spec.blocks) for spec in self.online]
        self._first_block = min(first) if first else model.config.model.num_layers

    def write_chunk(
        self,
        params: Params,
        state: FastState,
        tokens: torch.Tensor,
        teaches: torch.Tensor,
        masks: dict[str, torch.Tensor] | None = None,
    ) -> ChunkOutcome:
        """Read tokens [B, C] at a chunk boundary, write the memories, move the window on.

        teaches [B, C]: tokens whose prediction may be learned; masks: by online level, those of them that may teach it
        (None: all teach all). The state is donated. A row whose gradient is not finite keeps its memories as they were,
        and says so in the outcome. Source: NL eq. 71, gradients at the chunk's start; NL eq. 72 for nested levels.
        """
        found = self.gradients(params, state, tokens, teaches)
        own = {spec.name: found for spec in self.online}
        for name, mask in (masks or {}).items():
            if not bool((mask == teaches).all()):
                own[name] = self.gradients(params, state, tokens, mask)
        self.model.append(state.past, found.new)
        finite = torch.isfinite(found.loss)
        for name, gradients in own.items():
            if name in gradients.levels:
                finite &= torch.isfinite(gradients.levels[name]).all(dim=1)
        writes = {}
        for spec in self.online:
            # A period may end with a chunk that teaches nothing; what it accumulated before is due all the same.
            gradients = own[spec.name]
            gradient = gradients.levels.get(spec.name, torch.zeros_like(state.levels[spec.name].accumulator))
            if gradient.shape[1]:
                writes[spec.name] = self._level_write(spec, state, gradient, gradients.num_taught)
        norms = {}
        for name, written in zip(writes, write_(list(writes.values()), finite), strict=True):
            norms[name] = written.norm
            _count(state.levels[name], written.is_written)
        for spec in self.online:
            self._end_context(spec, state, finite)
        return ChunkOutcome(found.logits, found.loss, found.num_taught, norms, finite)

    def gradients(
        self, params: Params, state: FastState, tokens: torch.Tensor, teaches: torch.Tensor
    ) -> ChunkGradients:
        """Compute tokens [B, C] and the gradient of their taught next-token loss; changes nothing."""
        model = self.model
        leaves = {
            spec.name: model.memory.layouts[spec.name].leaves(state.levels[spec.name].weights) for spec in self.online
        }
        memories = model.memories(state, leaves)
        sight = model.sight(state.window, tokens.shape[1])
        num_blocks = len(params.blocks)
        with torch.no_grad():
            hidden = params.embed[tokens]
            hidden, new = model.run_blocks(params, hidden, state.past, memories, sight, range(self._first_block))
        rows, columns = teaches[:, 1:].nonzero(as_tuple=True)
        learns = len(rows) > 0 and bool(leaves)
        # Only where gradients are: attention below is faster without.
        with fast_products(tokens.shape[1]):
            with torch.set_grad_enabled(learns):
                upper = range(self._first_block, num_blocks)
                hidden, more = model.run_blocks(params, hidden, state.past, memories, sight, upper)
                # The last token's prediction rides along: one pass over the vocabulary's weights instead of two.
                predicting = torch.cat([hidden[rows, columns], hidden[:, -1]])
                found, logits = model.log_probs_at(params, predicting, tokens[:, 1:][rows, columns][:, None])
                losses = -found[:, 0]
            gradients = self._differentiate(losses, leaves) if learns else {}
        loss = torch.zeros(tokens.shape[0], dtype=hidden.dtype).index_add_(0, rows, losses.detach())
        new = [read.detach() for read in new + more]
        return ChunkGradients(gradients, loss, teaches[:, 1:].sum(dim=1), logits, new)

    def _differentiate(
        self, losses: torch.Tensor, leaves: dict[str, dict[int, BlockMemory]]
    ) -> dict[str, torch.Tensor]:
        layouts = self.model.memory.layouts
        ordered = {name: [leaves[name][block][key] for block, key in layouts[name].places] for name in leaves}
        found = iter(torch.autograd.grad(losses.sum(), [leaf for matrices in ordered.values() for leaf in matrices]))
        return {name: layouts[name].flatten([next(found) for _ in matrices]) for name, matrices in ordered.items()}

    def _level_write(
        self, spec: LevelSpec, state: FastState, gradient: torch.Tensor, num_taught: torch.Tensor
    ) -> LevelWrite:
        """What one chunk's gradient [B, P] is to do to a level."""
        level, memory = state.levels[spec.name], self.model.memory
        return LevelWrite(
            weights=level.weights,
            initial=memory.initial[spec.name],
            moments=level.moments,
            accumulator=level.accumulator,
            num_steps=level.num_steps[:, 0] if level.is_nested else level.num_writes,
            gradient=gradient,
            num_taught=num_taught,
            is_due=cms.is_due(state.window.positions, spec.update_period),
            max_update_norm=spec.max_update_norm,
            norm_cap=spec.norm_cap,
            step=memory.layouts[spec.name].step,
            element_rule=_element_rule(spec),
        )

    def _end_context(self, spec: LevelSpec, state: FastState, finite: torch.Tensor) -> None:
        """Let a nested level begin anew, in place, in the finite rows where the next slower level's period ends."""
        slower, level = self._contexts.get(spec.name), state.levels[spec.name]
        if slower is None:
            return
        ended = finite & cms.is_due(state.window.positions, slower.update_period) & (level.num_steps[:, 0] > 0)
        if not bool(ended.any()):
            return
        initial = self.model.memory.initial[spec.name]
        rate = cms.start_rate(spec, slower)
        weights, start = cms.end_context(level.weights, initial + level.start, rate, ended)
        level.weights.copy_(weights)
        level.start.copy_(torch.where(ended[:, None], start - initial, level.start))
        for tensor in (*level.moments.values(), level.num_steps):
            tensor.masked_fill_(ended[:, None], 0)
        level.num_writes += ended


def _element_rule(spec: LevelSpec) -> ElementRule | None:
    """The level's rule by name, where the kernels know it."""
    match spec.rule:
        case "sgd" | "momentum" | "adam":
            return ElementRule(spec.rule, spec.lr, spec.betas)
        case _:
            return None


def _count(level: LevelState, rows: torch.Tensor) -> None:
    """Count a write in the given rows, in place."""
    level.num_writes += rows
    if level.is_nested:
        level.num_steps += rows[:, None]
