"""The chunk-parallel write of a linear memory: one triangular system instead of a recurrence over tokens.

Shapes: C tokens of the chunk, K key size, V value size; any leading dimensions. Derivation in this folder's README.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from hope_kernels.dgd_memory.gates import Gates
from hope_kernels.dgd_memory.triangle import solve


@dataclass(frozen=True, slots=True)
class ChunkWrite:
    """A chunk's write, from which the memory after any of its tokens can be had.

    weights, surprise [..., K, V]: before the chunk; keys [..., C, K]. The memory after token t is

        kept[t] weights + kept_surprise[t] surprise
            + sum over j <= t of keys[j] (carried[t, j] steps[j] + decay[t, j] pulls[j])'

    where steps [..., C, V] are the gradient's part and pulls the delta rule's. Without momentum both obey one system:
    then pulls is None, and steps holds their sum.
    momentum_decay [..., C, C] is what is left of surprise j after token t.
    """

    weights: torch.Tensor
    surprise: torch.Tensor | None
    keys: torch.Tensor
    steps: torch.Tensor
    pulls: torch.Tensor | None
    kept: torch.Tensor
    decay: torch.Tensor
    kept_surprise: torch.Tensor | None
    carried: torch.Tensor
    momentum_decay: torch.Tensor | None
    momentum_kept: torch.Tensor | None

    def columns(self, columns: slice) -> ChunkWrite:
        """The write into some of the value columns: a memory that shares its keys with others."""
        pulls = None if self.pulls is None else self.pulls[..., columns]
        surprise = None if self.surprise is None else self.surprise[..., columns]
        weights, steps = self.weights[..., columns], self.steps[..., columns]
        return replace(self, weights=weights, surprise=surprise, steps=steps, pulls=pulls)

    def select(self, index: int) -> ChunkWrite:
        """The write into one of n memories that lie side by side in the last leading dimension.

        What all memories share has size 1 there.
        """

        def pick(tensor: torch.Tensor | None, num_last: int) -> torch.Tensor | None:
            if tensor is None:
                return None
            dim = tensor.dim() - num_last - 1
            return tensor.select(dim, index if tensor.shape[dim] > 1 else 0)

        vectors = ("kept", "kept_surprise", "momentum_kept")
        names = [field.name for field in fields(self)]
        picked: dict[str, Any] = {name: pick(getattr(self, name), 1 if name in vectors else 2) for name in names}
        return ChunkWrite(**picked)

    def read(self, queries: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Read the memory as it is after tokens start..start+n-1 with queries [..., n, K]; returns [..., n, V].

        Source: NL eq. 93 read at W_t.
        """
        rows = slice(start, start + queries.shape[-2])
        scores = queries @ self.keys.mT
        out = (scores * self.carried[..., rows, :]) @ self.steps
        if self.pulls is not None:
            out = out + (scores * self.decay[..., rows, :]) @ self.pulls
        out = torch.addcmul(out, self.kept[..., rows, None], queries @ self.weights)
        if self.surprise is not None and self.kept_surprise is not None:
            out = torch.addcmul(out, self.kept_surprise[..., rows, None], queries @ self.surprise)
        return out

    def final(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The memory and its momentum after the last token, [..., K, V] each; momentum None where there is none."""
        gathered = self._gathered(self.carried, self.steps)
        if self.pulls is not None:
            gathered = gathered + self._gathered(self.decay, self.pulls)
        weights = torch.addcmul(gathered, self.kept[..., -1, None, None], self.weights)
        if self.surprise is None or self.kept_surprise is None:
            return weights, None
        weights = torch.addcmul(weights, self.kept_surprise[..., -1, None, None], self.surprise)
        assert self.momentum_decay is not None and self.momentum_kept is not None
        gathered = self._gathered(self.momentum_decay, self.steps)
        return weights, torch.addcmul(gathered, self.momentum_kept[..., -1, None, None], self.surprise)

    def _gathered(self, shares: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """The outer products of keys and what was written [..., C, V], each by its share that is left at the end."""
        return (self.keys * shares[..., -1, :, None]).mT @ written


def write_chunk(
    weights: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    gates: Gates,
    delta: float,
    surprise: torch.Tensor | None = None,
) -> ChunkWrite:
    """Write C tokens into a linear memory at once; exactly what `reference.write_tokens` does, differentiable.

    Arguments as there. Source: NL eq. 90, 93, solved in WY form (README, "The chunk form").
    """
    if gates.momentum is not None:
        return _write_with_momentum(weights, keys, residuals, gates, delta, surprise)
    total = gates.log_retention.cumsum(-1)
    kept, decay = total.exp(), _decay(total)
    if delta:
        pull = delta * _rate_before(gates)
        predicted = (-(pull * kept)[..., None] * keys) @ weights
        steps = solve(_coupling(keys, pull, decay), torch.addcmul(predicted, residuals, gates.lr[..., None], value=-1))
    else:
        steps = -gates.lr[..., None] * residuals
    return ChunkWrite(weights, None, keys, steps, None, kept, decay, None, decay, None, None)


def _write_with_momentum(
    weights: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    gates: Gates,
    delta: float,
    surprise: torch.Tensor | None,
) -> ChunkWrite:
    if surprise is None or gates.momentum is None:
        raise ValueError("a write with momentum needs the surprise so far; pass zeros [..., K, V] at the start")
    total = gates.log_retention.cumsum(-1)
    kept, decay = total.exp(), _decay(total)
    # Momentum may be 0, so its products cannot be differences of logarithms.
    momentum_decay = _products(gates.momentum)
    momentum_kept = gates.momentum.cumprod(-1)
    carried = decay @ momentum_decay
    kept_surprise = (decay @ momentum_kept[..., None])[..., 0]
    steps = -gates.lr[..., None] * residuals
    pulls = None
    if delta:
        # What each token pulls out of the memory before it, but for what earlier tokens have pulled out already.
        pull, rate = delta * _rate_before(gates), -delta * gates.lr[..., None]
        wanted = (-(pull * kept)[..., None] * keys) @ weights
        wanted = wanted + (rate * _shifted(kept_surprise[..., None]) * keys) @ surprise
        wanted = wanted + (rate * (keys @ keys.mT) * _shifted(carried)) @ steps
        pulls = solve(_coupling(keys, pull, decay), wanted)
    return ChunkWrite(
        weights, surprise, keys, steps, pulls, kept, decay, kept_surprise, carried, momentum_decay, momentum_kept
    )


def _decay(total: torch.Tensor) -> torch.Tensor:
    """Share of what was written at j that is left after t [..., C, C], from cumulated log retention [..., C]."""
    size = total.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    # Differences, for shares of a long chunk underflow; masked before the exponential, for the upper half overflows.
    return (total[..., :, None] - total[..., None, :]).masked_fill_(later, -torch.inf).exp_()


def _rate_before(gates: Gates) -> torch.Tensor:
    """lr over retention [..., C]: with it, shares of what is left after a token become shares of before it."""
    return gates.lr * (-gates.log_retention).exp()


def _coupling(keys: torch.Tensor, pull: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """How much of what token j writes token t takes away again [..., C, C]; meant for j < t only."""
    return ((pull[..., None] * keys) @ keys.mT) * decay


def _products(momentum: torch.Tensor) -> torch.Tensor:
    """Products of momentum over j+1..t [..., C, C], 1 on the diagonal and 0 above it."""
    size = momentum.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=momentum.device).tril(-1)
    factors = torch.where(later, momentum[..., :, None], torch.ones_like(momentum[..., :, None]))
    return factors.cumprod(-2).tril()


def _shifted(rows: torch.Tensor) -> torch.Tensor:
    """Rows [..., C, n] moved down by one, with zeros first: what holds before token t."""
    return torch.nn.functional.pad(rows[..., :-1, :], (0, 0, 1, 0))
