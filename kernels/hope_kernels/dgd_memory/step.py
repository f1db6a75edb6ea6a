"""The write of a single token into a linear memory: what a chunk of one token comes to, without its machinery."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_kernels.dgd_memory.gates import Gates


@dataclass(frozen=True, slots=True)
class TokenWrite:
    """The memory after the token, and its momentum (None where there is none), [..., K, V] each."""

    weights: torch.Tensor
    surprise: torch.Tensor | None

    def columns(self, columns: slice) -> TokenWrite:
        """The write into some of the value columns."""
        surprise = None if self.surprise is None else self.surprise[..., columns]
        return TokenWrite(self.weights[..., columns], surprise)

    def read(self, queries: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Read the memory as it is after the token, the only one (start 0), with queries [..., 1, K]: [..., 1, V]."""
        if start:
            raise ValueError(f"a single token was written, there is none at place {start}")
        return queries @ self.weights

    def final(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The memory and its momentum."""
        return self.weights, self.surprise


def write_token(
    weights: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    gates: Gates,
    delta: float,
    surprise: torch.Tensor | None = None,
) -> TokenWrite:
    """Write one token (C = 1) into a linear memory; arguments and result as those of `chunk.write_chunk`.

    Source: NL eq. 88, 92; momentum as Titans eq. 9-10.
    """
    lr = gates.lr[..., None]
    retention = gates.log_retention.exp()[..., None]
    change = -lr * residuals
    if delta and gates.momentum is None:
        change = change - (delta * lr) * (keys @ weights)
    column = keys.mT
    if gates.momentum is None:
        return TokenWrite(torch.addcmul(column * change, retention, weights), None)
    if surprise is None:
        raise ValueError("a write with momentum needs the surprise so far; pass zeros [..., K, V] at the start")
    after = torch.addcmul(column * change, gates.momentum[..., None], surprise)
    kept = retention * weights
    if delta:
        kept = kept - column * ((delta * lr) * (keys @ weights))
    return TokenWrite(kept + after, after)
