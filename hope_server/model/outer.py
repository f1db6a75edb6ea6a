"""The forward pass that training differentiates: through every inner write, from a session's start or onwards.

Shapes: B rows, T tokens, C tokens of a chunk, V vocabulary, P weights of a level.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from hope_kernels.cms_update import cap_drift, clip_norm
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from hope_server.model import cms
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.levels import BlockMemory
from hope_server.model.mixing import TokensRead
from hope_server.model.params import Params
from hope_server.model.sight import Sight
from hope_server.model.state import Past
from hope_server.model.window import Window
from hope_server.optim import State

LevelMemories = list[list[BlockMemory]]
"""The level weights that act on each block."""


@dataclass(frozen=True, slots=True)
class InnerOptions:
    """How the outer loop differentiates through the inner writes.

    truncate_chunks: chunks after which the memories' history is cut, None for never.
    checkpoint: recompute every block's activations in the backward pass instead of keeping them.
    online_levels: write the online levels too, chunk by chunk, as the server does, so that their initial weights and
    the network learn to be written; first_order: take the gradients of those writes as constants.
    """

    truncate_chunks: int | None = None
    checkpoint: bool = False
    online_levels: bool = False
    first_order: bool = False


@dataclass(frozen=True, slots=True)
class LevelTrace:
    """An online level on its way, with its history: weights and accumulator [B, P], moments by name, steps taken."""

    weights: torch.Tensor
    moments: State
    accumulator: torch.Tensor
    num_steps: int


@dataclass(frozen=True, slots=True)
class OuterState:
    """What rows know between two forward passes; levels by name, empty where they are not written."""

    past: Past
    levels: dict[str, LevelTrace]


def forward(
    model: HopeModel, params: Params, tokens: torch.Tensor, inner: InnerOptions, state: OuterState | None = None
) -> tuple[torch.Tensor, OuterState]:
    """Read tokens [B, T]; differentiable in `params`, the initial memories included.

    state: what the rows know, None for nothing; it is left as it is. Returns logits [B, T, V] and what the rows know
    after, to go on from: cut it with `detached` between steps. Raises ValueError on tokens of another shape, and where
    levels are to be written from a place inside a chunk.
    """
    if tokens.dim() != 2 or tokens.shape[1] < 1:
        raise ValueError(f"expected tokens [B, T] with T of at least 1, got {tuple(tokens.shape)}")
    if state is None:
        state = begin(model, params, tokens.shape[0])
    chunk = model.config.chunk_size
    cut = None if inner.truncate_chunks is None else inner.truncate_chunks * chunk
    writes = inner.online_levels and any(spec.schedule == "online" for spec in model.config.levels)
    if writes and bool((state.past.window.positions % chunk).any()):
        raise ValueError(f"levels are written in whole chunks of {chunk} tokens; go on from a chunk's end")
    length = chunk if writes else cut or tokens.shape[1]
    is_tracked = torch.is_grad_enabled()
    parts = []
    for start in range(0, tokens.shape[1], length):
        if start and cut and start % cut == 0:
            state = detached(state)
        piece = tokens[:, start : start + length]
        # The inner gradient is needed also where nobody asks for an outer one.
        with torch.set_grad_enabled(is_tracked or writes):
            logits, state = _read_piece(model, params, piece, state, inner, writes=writes)
        if not is_tracked:
            logits, state = logits.detach(), detached(state)
        parts.append(logits)
    return torch.cat(parts, dim=1), state


def _read_piece(
    model: HopeModel, params: Params, tokens: torch.Tensor, state: OuterState, inner: InnerOptions, *, writes: bool
) -> tuple[torch.Tensor, OuterState]:
    """Read tokens with one and the same level weights, then write the levels if these are a whole chunk."""
    if writes:
        state = OuterState(state.past, {name: _differentiable(trace) for name, trace in state.levels.items()})
    hidden, new = _read(model, params, tokens, state.past, _acting(model, state), inner)
    logits = model.logits(params, hidden)
    past = _after(model, state.past, new)
    traces = state.levels
    if writes and tokens.shape[1] == model.config.chunk_size:
        traces = _write_levels(model, state, logits, tokens, past.window.positions, inner)
    return logits, OuterState(past, traces)


def _differentiable(trace: LevelTrace) -> LevelTrace:
    """The level with weights that this chunk alone reads: its write sees no earlier chunk's reads, as in the server."""
    weights = trace.weights
    fresh = weights.view_as(weights) if weights.requires_grad else weights.clone().requires_grad_()
    return replace(trace, weights=fresh)


def begin(model: HopeModel, params: Params, num_rows: int) -> OuterState:
    """What rows know that have seen nothing; differentiable in the initial memories."""
    traces = {}
    for spec in _online(model):
        layout = model.memory.layouts[spec.name]
        weights = model.memory.initial[spec.name].expand(num_rows, -1)
        moments = layout.moments(num_rows, weights.dtype)
        traces[spec.name] = LevelTrace(weights, moments, torch.zeros_like(weights), 0)
    return OuterState(model.empty_past(num_rows, params.dtype), traces)


def detached(state: OuterState) -> OuterState:
    """The same knowledge without its history."""
    past = Past(state.past.window, {block: titans.detach() for block, titans in state.past.titans.items()})
    traces = {
        name: LevelTrace(
            trace.weights.detach(),
            {key: tensor.detach() for key, tensor in trace.moments.items()},
            trace.accumulator.detach(),
            trace.num_steps,
        )
        for name, trace in state.levels.items()
    }
    return OuterState(past, traces)


def _online(model: HopeModel) -> list[LevelSpec]:
    return [spec for spec in model.config.levels if spec.schedule == "online" and spec.lr > 0]


def _acting(model: HopeModel, state: OuterState) -> LevelMemories:
    """The online levels' weights on each block, as they are now."""
    acting: LevelMemories = [[] for _ in range(model.config.model.num_layers)]
    for name, layout in model.memory.layouts.items():
        if name in state.levels:
            for block, memory in layout.views(state.levels[name].weights).items():
                acting[block].append(memory)
    return acting


def _write_levels(
    model: HopeModel,
    state: OuterState,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    inner: InnerOptions,
) -> dict[str, LevelTrace]:
    """The online levels after a chunk [B, C] whose logits are known. Source: NL eq. 71, differentiated."""
    predicted = logits[:, :-1].flatten(0, 1)
    loss = functional.cross_entropy(predicted, tokens[:, 1:].flatten(), reduction="sum") / max(1, tokens.shape[1] - 1)
    specs = _online(model)
    weights = [state.levels[spec.name].weights for spec in specs]
    found = torch.autograd.grad(loss, weights, create_graph=not inner.first_order, retain_graph=True)
    traces = {}
    for spec, gradient in zip(specs, found, strict=True):
        trace = state.levels[spec.name]
        gathered = trace.accumulator + gradient
        if not bool(cms.is_due(positions, spec.update_period).all()):
            traces[spec.name] = LevelTrace(trace.weights, trace.moments, gathered, trace.num_steps)
            continue
        traces[spec.name] = _step(model, spec, trace, gathered)
    return traces


def _step(model: HopeModel, spec: LevelSpec, trace: LevelTrace, gradient: torch.Tensor) -> LevelTrace:
    initial = model.memory.initial[spec.name]
    counts = torch.full((gradient.shape[0],), trace.num_steps + 1, device=gradient.device)
    clipped = clip_norm(gradient, spec.max_update_norm)
    drift = trace.weights - initial
    change, moments = model.memory.layouts[spec.name].step(trace.moments, clipped, counts, drift)
    weights = cap_drift(trace.weights + change, initial, spec.norm_cap)
    return LevelTrace(weights, moments, torch.zeros_like(gradient), trace.num_steps + 1)


def _read(
    model: HopeModel, params: Params, tokens: torch.Tensor, past: Past, levels: LevelMemories, inner: InnerOptions
) -> tuple[torch.Tensor, list[TokensRead]]:
    hidden = params.embed[tokens]
    sight = model.sight(past.window, tokens.shape[1])
    new = []
    for index in range(len(params.blocks)):
        hidden, read = _run_block(model, params, index, hidden, past, levels[index], sight, inner)
        new.append(read)
    return hidden, new


def _run_block(
    model: HopeModel,
    params: Params,
    index: int,
    hidden: torch.Tensor,
    past: Past,
    levels: list[BlockMemory],
    sight: Sight,
    inner: InnerOptions,
) -> tuple[torch.Tensor, TokensRead]:

    def run(hidden: torch.Tensor) -> tuple[torch.Tensor, TokensRead]:
        with _attention(model, inner):
            return model.run_block(params.blocks[index], index, hidden, past, levels, sight)

    if not inner.checkpoint:
        return run(hidden)
    out: tuple[torch.Tensor, TokensRead] = checkpoint(run, hidden, use_reentrant=False)
    return out


def _attention(model: HopeModel, inner: InnerOptions) -> AbstractContextManager[None]:
    """Plain attention where the writes of levels are differentiated: the fused kinds have no second derivative."""
    is_twice = inner.online_levels and not inner.first_order and bool(_online(model))
    return sdpa_kernel(SDPBackend.MATH) if is_twice else nullcontext()


def _after(model: HopeModel, past: Past, new: list[TokensRead]) -> Past:
    """What the rows know after tokens were read. Attention's part carries no history on."""
    window = past.window
    with torch.no_grad():
        if window.keys.numel():
            window = Window(window.keys.clone(), window.values.clone(), window.positions.clone())
            model.append(Past(window, {}), [TokensRead(read.attention, None, read.num_tokens).detach() for read in new])
        else:
            window = Window(window.keys, window.values, window.positions + new[0].num_tokens)
    titans = {index: read.titans for index, read in enumerate(new) if read.titans is not None}
    return Past(window, titans)
