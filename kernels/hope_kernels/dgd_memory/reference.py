"""Token-by-token truth for the write of a linear memory: slow, plain, and what every fast form is checked against."""

from __future__ import annotations

import torch

from hope_kernels.dgd_memory.gates import Gates
from hope_kernels.dgd_memory.layout import MAIN, MIN_LOG_RETENTION, Layout


def write_tokens(
    weights: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    gates: Gates,
    delta: float,
    surprise: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Write C tokens one after another into a linear memory; keys and residuals were taken at the chunk's start.

    weights, surprise [..., K, V]: the memory, keys first, and its momentum (needed where `gates.momentum` is given).
    keys [..., C, K]; residuals [..., C, V]: gradient of the token's loss at the memory's output, at the chunk's start;
    delta: 1 with the decay along the key of delta gradient descent, 0 without.
    Returns the memory after 0..C tokens, and its momentum (empty without momentum).

        surprise_t = momentum_t surprise_{t-1} - lr_t key_t residual_t'
        weights_t  = (retention_t I - delta lr_t key_t key_t') weights_{t-1} + surprise_t

    Source: NL eq. 88, 90, 92, 93; momentum as in Titans eq. 9-10.
    """
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    states, surprises = [weights], [] if surprise is None else [surprise]
    for t in range(keys.shape[-2]):
        key, residual = keys[..., t, :], residuals[..., t, :]
        lr = gates.lr[..., t, None, None]
        retention = gates.log_retention[..., t, None, None].exp()
        step = -lr * key[..., :, None] * residual[..., None, :]
        if gates.momentum is not None:
            step = gates.momentum[..., t, None, None] * surprises[-1] + step
            surprises.append(step)
        transition = retention * eye - delta * lr * key[..., :, None] * key[..., None, :]
        states.append(transition @ states[-1] + step)
    return states, surprises


def advance_tokens(
    layout: Layout,
    weights: torch.Tensor,
    surprise: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rates: torch.Tensor,
    chunk_size: int,
    *,
    head: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Read and write the T tokens of one head one after another; keys, values, rates and reads of their chunk's start.

    weights, surprise [K, M]; query, key, value [T, K]: unit projections; rates [T, n]; head: its number, for num_sums.
    Unguarded; T need not be whole chunks. Returns what the queries find [T, K], memory and momentum at the end.
    Source: NL eq. 76-86, 90-93.
    """
    is_sum = head < layout.num_sums
    state, momentum, start = weights, surprise, weights
    found = []

    def retrieve(name: str, inputs: torch.Tensor) -> torch.Tensor:
        out = inputs @ start[:, layout.columns(name)]
        is_plain = name in layout.rates or (name == MAIN and not layout.is_residual)
        return out if is_plain else out + inputs

    def unit(name: str, inputs: torch.Tensor) -> torch.Tensor:
        own = retrieve(name, inputs) if name in layout.adaptive and not is_sum else inputs
        return own / own.norm()

    for t in range(key.shape[0]):
        if t % chunk_size == 0:
            start = state
        added = {name: torch.zeros(()) if is_sum else retrieve(name, key[t])[0] for name in layout.rates}
        raw = rates[t]
        lr = layout.max_lr * torch.sigmoid(raw[0] + added.get("lr", 0.0))
        log_retention = torch.zeros_like(lr)
        if layout.has_retention:
            forgetting = torch.nn.functional.softplus(raw[1] + added.get("retention", 0.0))
            log_retention = (-forgetting).clamp(min=MIN_LOG_RETENTION)
        lr = lr * log_retention.exp() * layout.lr_share
        x, v, q = unit("k", key[t]), unit("v", value[t]), unit("q", query[t])
        found.append(retrieve(MAIN, q))
        residuals = []
        for name in (*layout.vectors, *layout.rates):
            target = retrieve(name, v) if layout.self_targets or name in layout.rates else v
            residuals.append(retrieve(name, x) - target if layout.squared else -target)
        share = torch.sigmoid(raw[1 + int(layout.has_retention)])[None] if layout.has_momentum else None
        gates = Gates(lr[None], log_retention[None], share)
        residual = torch.cat(residuals)[None]
        states, momenta = write_tokens(state, x[None], residual, gates, float(layout.delta), momentum)
        state, momentum = states[-1], momenta[-1] if momenta else None
    return torch.stack(found), state, momentum
