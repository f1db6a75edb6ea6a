"""Self-modifying Titans: a token mixer whose memories make their own keys, values, rates and targets (NL §8.1-8.2).

A layer computes, for the normalised input x of every token, with everything but the read taken at the chunk's start:

    W    x stands below for a projection of x and of the three tokens before it: a causal convolution   NL §8.3
    k, v, q = unit(M_k(W_k x)), unit(M_v(W_v x)), unit(W_q x or M_q(W_q x))      NL eq. 76-79
    lr, retention = sigmoid(w x + M_lr(k')), exp(-softplus(w x + M_ret(k')))     NL eq. 80-81, k' = unit(W_k x)
    every memory M: one step of DGD from M(k) towards its target M(v)            NL eq. 83-93, `memories`
    y = M_main(q), normalised per head, gated, projected

Memories are per head and act on a head-sized projection of x: a memory of the model's full width could not be kept
for every session. State goes in and comes out.
Shapes: B rows, T tokens, C tokens of a chunk, D model width, H heads, K head size, n rates.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from hope_kernels import edges, self_modifying
from hope_kernels.dgd_memory import Gates
from hope_kernels.dgd_memory.layout import MAIN, MIN_LOG_RETENTION
from torch.nn import functional

from hope_server.model.config import TitansSpec
from hope_server.model.memories import Memories, Weights, Write, make_memories, memory_layout
from hope_server.model.titans_params import TitansParams
from hope_server.model.titans_state import TitansState

NUM_RATES = 3
LR, LOG_RETENTION, MOMENTUM = range(NUM_RATES)


class TitansLayer:
    """Computes a TitansSpec. Holds neither weights nor state."""

    def __init__(self, spec: TitansSpec, chunk_size: int, norm_eps: float, *, is_compiled: bool = False) -> None:
        """is_compiled: let torch.compile fuse the work of a chunk in training; needs a C++ compiler on a CPU."""
        self.spec = spec
        self.chunk_size = chunk_size
        self.memories: Memories = make_memories(spec)
        self._layout = memory_layout(spec, chunk_size)
        self._eps = norm_eps
        self._momentum_rate = 1 + int(spec.has_retention)
        self._compiled = torch.compile(self._advance_one, dynamic=False) if is_compiled else self._advance_one

    @property
    def num_rates(self) -> int:
        """Rates with slow weights of their own."""
        return 1 + int(self.spec.has_retention) + int(self.spec.has_momentum)

    def empty_state(self, initial: Weights, num_rows: int) -> TitansState:
        """The state of rows that have seen nothing; differentiable in the initial memories."""
        spec = self.spec
        like = next(iter(initial.values()))
        memories = {name: tensor.expand(num_rows, *tensor.shape) for name, tensor in initial.items()}
        surprises = {name: torch.zeros_like(tensor) for name, tensor in memories.items()} if spec.has_momentum else {}
        tail = like.new_zeros(num_rows, spec.conv_size - 1, (3 * spec.head_dim + self.num_rates) * spec.num_heads)
        held = like.new_zeros(num_rows, spec.num_heads, self.chunk_size, spec.head_dim)
        rates = like.new_zeros(num_rows, spec.num_heads, self.chunk_size, NUM_RATES)
        return TitansState(memories, surprises, tail, tail.clone(), held, held.clone(), rates)

    def run(
        self, params: TitansParams, x: torch.Tensor, state: TitansState, pending: int, *, is_guarded: bool = True
    ) -> tuple[torch.Tensor, TitansState]:
        """Mix x [B, T, D], T tokens that follow `pending` ones of an unfinished chunk; returns [B, T, D] and the state.

        Writes the memories wherever a chunk completes. Differentiable through every write; is_guarded adds the runtime
        guard, which has no place in training. The given state is left as it is.
        """
        tokens = x.shape[1]
        is_fused = self._is_fused(params, x, state)
        tail = state.tail if pending else state.tail_start
        inputs, query, key, value, rates = self._prepare(params, x, tail, is_fused)
        memories, surprises, tail_start = state.memories, state.surprises, state.tail_start
        held = [part[:, :, :pending] for part in (state.keys, state.values, state.rates)]
        outputs = []
        start = 0
        while start < tokens:
            stop = min(start + self.chunk_size - pending, tokens)
            if is_fused and pending == 0 and stop - start == self.chunk_size:
                stop = start + (tokens - start) // self.chunk_size * self.chunk_size
            parts = [part[:, :, start:stop] for part in (query, key, value, rates)]
            if pending == 0 and stop - start >= self.chunk_size and (is_fused or not is_guarded):
                found, memories, surprises = self._advance(memories, surprises, parts, is_guarded, is_fused)
                outputs.append(found)
                tail_start = inputs[:, stop : stop + self.spec.conv_size - 1]
                start = stop
                continue
            found, fresh = self._read(memories, surprises, parts, held, pending, is_fused)
            outputs.append(found)
            held = [torch.cat([old, new], dim=2) if pending else new for old, new in zip(held, fresh, strict=True)]
            pending += stop - start
            if pending == self.chunk_size:
                memories, surprises = self._written(memories, surprises, held, is_fused, is_guarded=is_guarded)
                tail_start = inputs[:, stop : stop + self.spec.conv_size - 1]
                held = [part[:, :, :0] for part in held]
                pending = 0
            start = stop
        found = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        out = self._finish(params, found, x, is_fused)
        held = [functional.pad(part, (0, 0, 0, self.chunk_size - pending)) for part in held]
        return out, TitansState(memories, surprises, inputs[:, tokens:], tail_start, *held)

    def step(
        self, params: TitansParams, x: torch.Tensor, state: TitansState, pending: torch.Tensor, active: torch.Tensor
    ) -> torch.Tensor:
        """Mix one token x [B, 1, D] of every row; rows may be at different places of their chunk. Returns [B, 1, D].

        pending [B]: tokens of each row's unfinished chunk; active [B]: rows whose state moves on, in place.
        """
        begins = (pending == 0)[:, None, None]
        is_fused = self._is_fused(params, x, state)
        inputs, *parts = self._prepare(params, x, torch.where(begins, state.tail_start, state.tail), is_fused)
        address = partial(self_modifying.address, self._layout) if is_fused else self._address
        found, *fresh = address(state.memories, *parts)
        rows = active.nonzero()[:, 0]
        for kept, new in zip((state.keys, state.values, state.rates), fresh, strict=True):
            kept[rows, :, pending[rows]] = new[rows, :, 0]
        state.tail[rows] = inputs[rows, 1:]
        if not (is_fused and self.spec.reads == "chunk_start"):
            found = self._read_apart(state, found, pending, is_fused)
        self._complete(state, rows[pending[rows] + 1 == self.chunk_size], is_fused)
        return self._finish(params, found, x, is_fused)

    def step_slots(
        self, params: TitansParams, x: torch.Tensor, pool: TitansState, slots: torch.Tensor, pending: torch.Tensor
    ) -> torch.Tensor:
        """Mix one token x [n, 1, D] of each row that lies in one of the slots [n] of a pool; they move on, in place.

        pool: a state with as many rows as there are slots; pending [n]: tokens of each row's unfinished chunk. The rest
        of the pool is neither read nor written. Returns [n, 1, D].
        """
        # One row is a view of the pool, several are copies of what is read of them.
        rows = slice(int(slots[0]), int(slots[0]) + 1) if len(slots) == 1 else slots
        memories = {name: tensor[rows] for name, tensor in pool.memories.items()}
        begins = (pending == 0)[:, None, None]
        is_fused = self._is_fused(params, x, pool)
        tail = torch.where(begins, pool.tail_start[rows], pool.tail[rows])
        inputs, *parts = self._prepare(params, x, tail, is_fused)
        address = partial(self_modifying.address, self._layout) if is_fused else self._address
        found, *fresh = address(memories, *parts)
        for kept, new in zip((pool.keys, pool.values, pool.rates), fresh, strict=True):
            kept[slots, :, pending] = new[:, :, 0]
        pool.tail[rows] = inputs[:, 1:]
        if not (is_fused and self.spec.reads == "chunk_start"):
            found = self._read_apart(pool.at(rows), found, pending, is_fused)
        self._complete(pool, slots[pending + 1 == self.chunk_size], is_fused)
        return self._finish(params, found, x, is_fused)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _prepare(
        self, params: TitansParams, x: torch.Tensor, tail: torch.Tensor, is_fused: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Everything that slow weights make of x [B, T, D]: the convolution's inputs, then as `_split`."""
        qkv, raw = functional.linear(x, params.qkv), functional.linear(x, params.rates)
        if is_fused:
            return edges.prepare(tail, qkv, raw, params.conv, params.rate_bias, self.spec.num_heads)
        inputs = torch.cat([tail, torch.cat([qkv, raw], dim=-1)], dim=1)
        return inputs, *self._split(params, self._convolve(params, inputs, x.shape[1]))

    def _convolve(self, params: TitansParams, inputs: torch.Tensor, tokens: int) -> torch.Tensor:
        """Depthwise causal convolution of inputs [B, window - 1 + T, (3 K + n) H]. Source: NL §8.3."""
        window = self.spec.conv_size
        mixed = inputs[:, window - 1 :] * params.conv[:, window - 1]
        for place in range(window - 1):
            mixed = mixed + inputs[:, place : place + tokens] * params.conv[:, place]
        return mixed

    def _split(
        self, params: TitansParams, mixed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit queries, keys, values [B, H, T, K] and rates [B, H, T, n] out of mixed [B, T, (3 K + n) H]."""
        rows, tokens, _ = mixed.shape
        spec = self.spec
        inner = 3 * spec.num_heads * spec.head_dim
        heads = mixed[..., :inner].view(rows, tokens, 3, spec.num_heads, spec.head_dim)
        query, key, value = functional.normalize(heads, dim=-1).permute(2, 0, 3, 1, 4)
        rates = (mixed[..., inner:] + params.rate_bias).view(rows, tokens, -1, spec.num_heads)
        return query, key, value, rates.permute(0, 3, 1, 2)

    def _address(
        self, memories: Weights, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the memories make of their inputs: unit queries, keys, values [B, H, T, K]; rates [B, H, T, 3]."""
        adaptive = self.spec.adaptive

        def own(name: str, inputs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            # In heads that sum, a count must not move what is counted.
            found, sums = self.memories.retrieve(memories, name, inputs), self.spec.num_sums
            return torch.cat([kept[:, :sums], found[:, sums:]], dim=1) if sums else found

        nothing = torch.zeros_like(key[..., :1])
        added = {name: own(name, key, nothing)[..., 0] for name in self._layout.rates}
        final = self._rates(rates, added.get("lr"), added.get("retention"))
        if "q" in adaptive:
            query = functional.normalize(own("q", query, query), dim=-1)
        if "v" in adaptive:
            value = functional.normalize(own("v", value, value), dim=-1)
        if "k" in adaptive:
            key = functional.normalize(own("k", key, key), dim=-1)
        return query, key, value, final

    def _rates(self, slow: torch.Tensor, lr: torch.Tensor | None, retention: torch.Tensor | None) -> torch.Tensor:
        """The final rates [B, H, T, 3] of slow rates [B, H, T, n] and what memories add to them [B, H, T]."""
        spec = self.spec
        raw = slow[..., 0] if lr is None else slow[..., 0] + lr
        step = spec.max_lr * torch.sigmoid(raw)
        log_retention = torch.zeros_like(step)
        if spec.has_retention:
            forgetting = functional.softplus(slow[..., 1] if retention is None else slow[..., 1] + retention)
            log_retention = (-forgetting).clamp(min=MIN_LOG_RETENTION)
            # A step size of at most the retention keeps the eigenvalues along a key from growing.
            step = step * log_retention.exp()
        if spec.dgd_scope == "none" and spec.objective == "l2":
            # Without the decay along the key, stale gradients of one chunk add up.
            step = step / self.chunk_size
        momentum = torch.zeros_like(step)
        if spec.has_momentum:
            momentum = torch.sigmoid(slow[..., self._momentum_rate])
        return torch.stack([step, log_retention, momentum], dim=-1)

    def _is_fused(self, params: TitansParams, x: torch.Tensor, state: TitansState) -> bool:
        """Whether single calls do what is composed of many here: never where a gradient of anything is wanted."""
        inputs = [x, params.qkv]
        if torch.is_grad_enabled():
            inputs += [*params.named().values(), *state.tensors().values()]
        return self_modifying.is_fused(state.memories, *inputs)

    def _advance(
        self,
        memories: Weights,
        surprises: Weights,
        parts: list[torch.Tensor],
        is_guarded: bool,
        is_fused: bool,
    ) -> tuple[torch.Tensor, Weights, Weights]:
        """Read and write whole chunks, one if not fused: what its queries find, the memories and momenta after it."""
        if is_fused:
            query, key, value, rates = parts
            return self_modifying.advance(
                self._layout, memories, surprises, query, key, value, rates, self.chunk_size, is_guarded=is_guarded
            )
        advance = self._compiled if torch.is_grad_enabled() else self._advance_one
        return advance(memories, surprises, *parts)

    def _advance_one(
        self,
        memories: Weights,
        surprises: Weights,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rates: torch.Tensor,
    ) -> tuple[torch.Tensor, Weights, Weights]:
        queries, *held = self._address(memories, query, key, value, rates)
        write = self._chunk(memories, surprises, held)
        if self.spec.reads == "current":
            found = write.read(queries, 0)
        else:
            found = self.memories.retrieve(memories, MAIN, queries)
        return found, *write.final()

    def _read(
        self,
        memories: Weights,
        surprises: Weights,
        parts: list[torch.Tensor],
        held: list[torch.Tensor],
        pending: int,
        is_fused: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the queries of a chunk's next tokens find; the keys, values and rates that these will be written by."""
        address = partial(self_modifying.address, self._layout) if is_fused else self._address
        found, *fresh = address(memories, *parts)
        if self.spec.reads == "chunk_start":
            return found if is_fused else self.memories.retrieve(memories, MAIN, found), fresh
        so_far = [torch.cat(pair, dim=2) for pair in zip(held, fresh, strict=True)]
        if not is_fused:
            return self._chunk(memories, surprises, so_far).read(found, pending), fresh
        queries = functional.pad(found, (0, 0, pending, 0))
        return self_modifying.read(self._layout, memories, surprises, queries, *so_far)[:, :, pending:], fresh

    def _chunk(self, memories: Weights, surprises: Weights, held: list[torch.Tensor]) -> Write:
        keys, values, rates = held
        momentum = rates[..., MOMENTUM] if self.spec.has_momentum else None
        gates = Gates(rates[..., LR], rates[..., LOG_RETENTION], momentum)
        return self.memories.write(memories, surprises, keys, values, gates)

    def _read_apart(
        self, state: TitansState, queries: torch.Tensor, pending: torch.Tensor, is_fused: bool
    ) -> torch.Tensor:
        """What one query a row [B, H, 1, K] finds, each after its own row's pending tokens and itself."""
        if self.spec.reads == "chunk_start":
            return self.memories.retrieve(state.memories, MAIN, queries)
        used = int(pending.max()) + 1
        held = [part[:, :, :used] for part in (state.keys, state.values, state.rates)]
        queries = queries.expand(-1, -1, used, -1)
        if is_fused:
            found = self_modifying.read(self._layout, state.memories, state.surprises, queries, *held)
        else:
            found = self._chunk(state.memories, state.surprises, held).read(queries, 0)
        return found.take_along_dim(pending[:, None, None, None], dim=2)

    def _complete(self, state: TitansState, done: torch.Tensor, is_fused: bool) -> None:
        """Write the chunks of the rows that are done [m], in place."""
        if not len(done):
            return
        part = state.at(done)
        held = [part.keys, part.values, part.rates]
        memories, surprises = self._written(part.memories, part.surprises, held, is_fused)
        for before, after in ((state.memories, memories), (state.surprises, surprises)):
            for name, tensor in after.items():
                before[name][done] = tensor
        state.tail_start[done] = state.tail[done]

    def _written(
        self,
        memories: Weights,
        surprises: Weights,
        held: list[torch.Tensor],
        is_fused: bool,
        *,
        is_guarded: bool = True,
    ) -> tuple[Weights, Weights]:
        """Every memory after a whole chunk; with the guard, a head whose memory would explode is left as it was."""
        if is_fused:
            return self_modifying.write(self._layout, memories, surprises, *held, is_guarded=is_guarded)
        written = self._chunk(memories, surprises, held).final()
        if not is_guarded:
            return written
        keys, values, rates = held
        for share in (0.5, 0.0):
            bad = self._exploded(memories, written[0])
            if not bool(bad.any()):
                return written
            if share == 0.0:
                return _choose(bad, memories, written[0]), _choose(bad, surprises, written[1])
            halved = rates.clone()
            halved[..., LR] = torch.where(bad[..., None], share * rates[..., LR], rates[..., LR])
            written = self._chunk(memories, surprises, [keys, values, halved]).final()
        return written

    def _exploded(self, before: Weights, after: Weights) -> torch.Tensor:
        """Heads [B, H] in which some memory is no longer finite or outgrew its limit."""
        bad = []
        for name, tensor in after.items():
            # The norm of memories that map head_dim orthogonal keys to unit values.
            floor = math.sqrt(tensor[0, 0].numel() / self.spec.head_dim)
            limit = self_modifying.MAX_GROWTH * before[name].flatten(2).norm(dim=-1).clamp_min(floor)
            # A comparison that NaN fails.
            bad.append(~(tensor.flatten(2).norm(dim=-1) <= limit))
        return torch.stack(bad).any(dim=0)

    def _finish(self, params: TitansParams, found: torch.Tensor, x: torch.Tensor, is_fused: bool) -> torch.Tensor:
        """Normalise what each head found [B, H, T, K], gate it by the token, project it: [B, T, D]."""
        rows, heads, tokens, size = found.shape
        gate = functional.linear(x, params.out_gate)
        if is_fused:
            gated = edges.finish(found, gate, params.out_norm, self._eps)
        else:
            normed = functional.rms_norm(found, (size,), params.out_norm, self._eps)
            gated = normed.transpose(1, 2).reshape(rows, tokens, heads * size) * functional.silu(gate)
        out = functional.linear(gated, params.out)
        return out if params.branch is None else params.branch * out


def _choose(bad: torch.Tensor, before: Weights, after: Weights) -> Weights:
    """`before` in the heads that are bad [B, H], `after` in the others."""
    return {
        name: torch.where(bad.view(*bad.shape, *[1] * (tensor.dim() - 2)), before[name], tensor)
        for name, tensor in after.items()
    }
