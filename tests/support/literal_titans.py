"""Self-modifying Titans written out token by token from the equations, gradients left to autograd; no chunk forms.

Nothing of the layer is used but the names and shapes of its weights. Shapes: B rows, T tokens, D model width, H heads,
K head size, F hidden units of an MLP memory. Float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from hope_server.model.config import TitansSpec
from hope_server.model.titans_params import TitansParams

Memory = list[torch.Tensor]
"""The weight of a matrix memory, or both layers of an MLP memory, [B, H, in, out] each."""
Memories = dict[str, Memory]


@dataclass
class Literal:
    """What T tokens gave: outputs [B, T, D], and the memories and their surprise after 0..T tokens."""

    outputs: torch.Tensor
    memories: list[Memories] = field(default_factory=list)
    surprises: list[Memories] = field(default_factory=list)


def memory_names(spec: TitansSpec) -> list[str]:
    """Every memory of a layer: of vectors, then of rates."""
    vectors = [name for name in ("k", "v", "q") if name in spec.adaptive]
    return [*vectors, "main", *(name for name in ("lr", "retention") if name in spec.adaptive)]


def unpacked(spec: TitansSpec, weights: dict[str, torch.Tensor]) -> Memories:
    """A layer's weights [..., H, ...] as memories by name."""
    names = memory_names(spec)
    vectors = [name for name in names if name not in ("lr", "retention")]
    rates = names[len(vectors) :]
    if spec.memory == "matrix":
        sizes = [spec.head_dim] * len(vectors) + [1] * len(rates)
        return {
            name: [part] for name, part in zip(names, weights["weights"].split(sizes, -1) if names else [], strict=True)
        }
    found = {name: [weights[key][..., i, :, :] for key in ("first", "second")] for i, name in enumerate(vectors)}
    keys = ("rate_first", "rate_second")
    return found | {name: [weights[key][..., i, :, :] for key in keys] for i, name in enumerate(rates)}


def retrieve(spec: TitansSpec, name: str, memory: Memory, z: torch.Tensor) -> torch.Tensor:
    """M(z) for z [B, H, K]: [B, H, K], or [B, H, 1] for a rate. NL eq. 76-81, 89."""
    found = (z[..., None, :] @ memory[0])[..., 0, :]
    if len(memory) == 2:
        found = (functional.gelu(found)[..., None, :] @ memory[1])[..., 0, :]
    adds_input = name not in ("lr", "retention") and not (
        name == "main" and spec.memory == "matrix" and not spec.is_residual
    )
    return found + z if adds_input else found


def unit(z: torch.Tensor) -> torch.Tensor:
    """z over its norm."""
    return z / z.norm(dim=-1, keepdim=True)


def literal_titans(
    spec: TitansSpec,
    params: TitansParams,
    x: torch.Tensor,
    chunk_size: int,
    norm_eps: float,
    *,
    is_differentiable: bool = False,
) -> Literal:
    """Run a layer over x [B, T, D] from a session's start."""
    rows, tokens, _ = x.shape
    names = memory_names(spec)
    initial = unpacked(spec, {name: weight.expand(rows, *weight.shape) for name, weight in params.initial.items()})
    now = {name: [layer.clone() for layer in initial[name]] for name in names}
    surprise = {name: [torch.zeros_like(layer) for layer in now[name]] for name in names}
    out = Literal(torch.empty(0), [now], [surprise])
    outputs = []
    start = now
    for t in range(tokens):
        if t % chunk_size == 0:
            start = now
        mixed = _convolved(params, x, t)
        query, key, value, lr, retention, momentum = _generated(spec, params, mixed, start, chunk_size)
        gradients = _gradients(spec, start, key, value, is_differentiable=is_differentiable)
        written: Memories = {}
        carried: Memories = {}
        for name in names:
            written[name], carried[name] = [], []
            hidden = functional.gelu((key[..., None, :] @ start[name][0])[..., 0, :])
            for layer, weight in enumerate(now[name]):
                # Each layer of an MLP has its own input; the second's is not a unit vector, so its rate is scaled.
                entry = key if layer == 0 else hidden
                rate = lr if layer == 0 else lr / (1 + hidden.square().sum(-1))
                decays = spec.dgd_scope != "none" if layer == 0 else spec.dgd_scope == "layer_input"
                step = -rate[..., None, None] * gradients[name][layer]
                if spec.has_momentum:
                    step = momentum[..., None, None] * surprise[name][layer] + step
                outer = entry[..., :, None] * entry[..., None, :]
                transition = retention[..., None, None] * torch.eye(entry.shape[-1], dtype=x.dtype)
                if decays:
                    transition = transition - rate[..., None, None] * outer
                written[name].append(transition @ weight + step)
                carried[name].append(step)
        now, surprise = written, carried
        out.memories.append(now)
        out.surprises.append(surprise)
        read = start if spec.reads == "chunk_start" else now
        outputs.append(_finished(spec, params, retrieve(spec, "main", read["main"], query), x[:, t], norm_eps))
    out.outputs = torch.stack(outputs, dim=1)
    return out


def _convolved(params: TitansParams, x: torch.Tensor, t: int) -> torch.Tensor:
    """The causal depthwise convolution of what the slow weights make of tokens, at token t: [B, (3 K + n) H]."""
    window = params.conv.shape[1]
    mixed = x.new_zeros(x.shape[0], params.conv.shape[0])
    for back in range(min(window, t + 1)):
        token = x[:, t - back]
        projected = torch.cat([token @ params.qkv.T, token @ params.rates.T], dim=-1)
        mixed = mixed + params.conv[:, window - 1 - back] * projected
    return mixed


def _generated(
    spec: TitansSpec, params: TitansParams, mixed: torch.Tensor, start: Memories, chunk_size: int
) -> tuple[torch.Tensor, ...]:
    """Query, key, value [B, H, K] and lr, retention, momentum [B, H] of a token. NL eq. 76-81."""
    rows = mixed.shape[0]
    inner = 3 * spec.num_heads * spec.head_dim
    heads = mixed[:, :inner].view(rows, 3, spec.num_heads, spec.head_dim)
    query, key, value = (unit(heads[:, i]) for i in range(3))
    rates = (mixed[:, inner:] + params.rate_bias).view(rows, -1, spec.num_heads)
    # Heads that sum are not modified by what they hold.
    own = (torch.arange(spec.num_heads) >= spec.num_sums).to(mixed.dtype)
    pick = own[:, None]
    raw_lr = rates[:, 0]
    if "lr" in spec.adaptive:
        raw_lr = raw_lr + own * retrieve(spec, "lr", start["lr"], key)[..., 0]
    lr = spec.max_lr * torch.sigmoid(raw_lr)
    retention = torch.ones_like(lr)
    if spec.has_retention:
        raw = rates[:, 1]
        if "retention" in spec.adaptive:
            raw = raw + own * retrieve(spec, "retention", start["retention"], key)[..., 0]
        retention = torch.exp(-functional.softplus(raw).clamp(max=5.0))
        lr = lr * retention
    if spec.dgd_scope == "none" and spec.objective == "l2":
        lr = lr / chunk_size
    momentum = torch.sigmoid(rates[:, -1]) if spec.has_momentum else torch.zeros_like(lr)
    if "q" in spec.adaptive:
        query = unit(pick * retrieve(spec, "q", start["q"], query) + (1 - pick) * query)
    if "v" in spec.adaptive:
        value = unit(pick * retrieve(spec, "v", start["v"], value) + (1 - pick) * value)
    if "k" in spec.adaptive:
        key = unit(pick * retrieve(spec, "k", start["k"], key) + (1 - pick) * key)
    return query, key, value, lr, retention, momentum


def _gradients(
    spec: TitansSpec, start: Memories, key: torch.Tensor, value: torch.Tensor, *, is_differentiable: bool
) -> Memories:
    """Gradient of every memory's loss at the chunk's start, the target taken as given. NL eq. 83-88, 92."""
    with torch.enable_grad():
        leaves = {
            name: [layer.clone() if layer.requires_grad else layer.clone().requires_grad_() for layer in memory]
            for name, memory in start.items()
        }
        loss = torch.zeros((), dtype=key.dtype)
        for name, memory in start.items():
            is_own = spec.self_targets or name in ("lr", "retention")
            target = retrieve(spec, name, memory, value) if is_own else value
            found = retrieve(spec, name, leaves[name], key)
            each = 0.5 * (found - target).square() if spec.objective == "l2" else -found * target
            loss = loss + each.sum()
        flat = [layer for memory in leaves.values() for layer in memory]
        found = iter(torch.autograd.grad(loss, flat, create_graph=is_differentiable))
    return {name: [next(found) for _ in memory] for name, memory in leaves.items()}


def _finished(
    spec: TitansSpec, params: TitansParams, found: torch.Tensor, x: torch.Tensor, norm_eps: float
) -> torch.Tensor:
    """What the heads found [B, H, K], normalised, gated by the token x [B, D], projected: [B, D]."""
    normed = found / (found.square().mean(-1, keepdim=True) + norm_eps).sqrt() * params.out_norm
    gate = x @ params.out_gate.T
    out = (normed.flatten(1) * gate * torch.sigmoid(gate)) @ params.out.T
    return out if params.branch is None else params.branch * out
