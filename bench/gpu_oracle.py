"""What the matrix memory's kernels must give: token by token in plain torch, in float64 on the device that they run on.

Shapes: B rows, H heads, T tokens, C tokens of a chunk, K key size, M columns of the tall matrix, n slow rates.
In float32 the same lines say what arithmetic of that precision costs on the very tensors: what a limit starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hope_kernels.dgd_memory.layout import MAIN, MIN_LOG_RETENTION, Layout
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Tokens:
    """Queries, keys and values [B, H, T, K], rates [B, H, T, n]: raw ones, or final ones with n = 3."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rates: torch.Tensor

    @classmethod
    def of(cls, packed: tuple[torch.Tensor, ...], rows: int, dtype: torch.dtype) -> Tokens:
        """Out of rows of equal length that lie one after another, [B * T, H, ...]."""
        return cls(*(part.unflatten(0, (rows, -1)).transpose(1, 2).to(dtype) for part in packed))

    def part(self, tokens: slice) -> Tokens:
        """Some of the tokens."""
        return Tokens(*(part[:, :, tokens] for part in (self.query, self.key, self.value, self.rates)))


def retrieve(layout: Layout, start: torch.Tensor, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """What one of the memories start [B, H, K, M] gives for inputs [B, H, C, K]."""
    found: torch.Tensor = inputs @ start[..., layout.columns(name)]
    is_plain = name in layout.rates or (name == MAIN and not layout.is_residual)
    return found if is_plain else found + inputs


def address(layout: Layout, start: torch.Tensor, raw: Tokens) -> Tokens:
    """Final queries, keys, values and rates (lr, log retention, momentum) of raw ones. Source: NL eq. 76-81."""

    def unit(name: str, inputs: torch.Tensor) -> torch.Tensor:
        own = retrieve(layout, start, name, inputs) if name in layout.adaptive else inputs
        length: torch.Tensor = own.norm(dim=-1, keepdim=True)
        return own / length

    added = {name: retrieve(layout, start, name, raw.key)[..., 0] for name in layout.rates}
    lr = layout.max_lr * torch.sigmoid(raw.rates[..., 0] + added.get("lr", 0.0))
    log_retention, momentum = torch.zeros_like(lr), torch.zeros_like(lr)
    if layout.has_retention:
        forgetting = functional.softplus(raw.rates[..., 1] + added.get("retention", 0.0))
        log_retention = (-forgetting).clamp(min=MIN_LOG_RETENTION)
    if layout.has_momentum:
        momentum = torch.sigmoid(raw.rates[..., 1 + int(layout.has_retention)])
    lr = lr * log_retention.exp() * layout.lr_share
    rates = torch.stack([lr, log_retention, momentum], -1)
    return Tokens(unit("q", raw.query), unit("k", raw.key), unit("v", raw.value), rates)


def residuals(layout: Layout, start: torch.Tensor, final: Tokens) -> torch.Tensor:
    """The gradient at every memory's output at the chunk's start, [B, H, C, M]. Source: NL eq. 83-88, 92."""
    found = []
    for name in (*layout.vectors, *layout.rates):
        has_own = layout.self_targets or name in layout.rates
        target = retrieve(layout, start, name, final.value) if has_own else final.value
        found.append(retrieve(layout, start, name, final.key) - target if layout.squared else -target)
    return torch.cat(found, -1)


def write(
    weights: torch.Tensor,
    surprise: torch.Tensor | None,
    keys: torch.Tensor,
    errors: torch.Tensor,
    rates: torch.Tensor,
    *,
    has_delta: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Write keys [B, H, C, K] with residuals [B, H, C, M] and final rates, one token after another. NL eq. 93."""
    for t in range(keys.shape[2]):
        lr, retention, momentum = (rate[..., None, None] for rate in rates[:, :, t].unbind(-1))
        key, error = keys[:, :, t, :, None], errors[:, :, t, None, :]
        step = -lr * key * error
        if surprise is not None:
            step = surprise = momentum * surprise + step
        pulled = lr * key * (key.mT @ weights) if has_delta else 0.0
        weights = retention.exp() * weights - pulled + step
    return weights, surprise


def advance(
    layout: Layout, weights: torch.Tensor, surprise: torch.Tensor | None, raw: Tokens, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Read and write T tokens, chunk by chunk: outputs [B, H, T, K], memories [B, H, K, M] and momenta at the end."""
    found = []
    for begin in range(0, raw.key.shape[2], chunk_size):
        final = address(layout, weights, raw.part(slice(begin, begin + chunk_size)))
        found.append(retrieve(layout, weights, MAIN, final.query))
        errors = residuals(layout, weights, final)
        weights, surprise = write(weights, surprise, final.key, errors, final.rates, has_delta=layout.delta)
    return torch.cat(found, 2), weights, surprise


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Let torch take its float32 products as kernels for half precision do; changes nothing on a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
