"""Attention inside the segments of one row, each as a row of its own: many short ones cost what they are long.

In one row every token would be compared with the tokens of all other segments, only to be told that it may not see
them.
Shapes: T tokens of the row, n segments, L tokens of the longest, S of the first, H heads, U key-value heads, d head
size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Fold:
    """How the tokens of a row lie in segments.

    places [n * L]: the token that stands there, T for none; where [T]: where each token stands; length: S.
    mask [n, 1, L, S + L]: 0 or -inf; keys are those of the first segment, then a segment's own.
    """

    places: torch.Tensor
    where: torch.Tensor
    length: int
    mask: torch.Tensor

    @classmethod
    def of(cls, segments: torch.Tensor, sees_first: torch.Tensor, dtype: torch.dtype) -> Fold:
        """Fold tokens of `segments` [T], ascending from 0; sees_first [n], bool: who stands behind the first one."""
        sizes = segments.bincount()
        count, longest, length = len(sizes), int(sizes.max()), int(sizes[0])
        offsets = torch.arange(len(segments)) - torch.searchsorted(segments, segments)
        where = segments * longest + offsets
        places = torch.full((count * longest,), len(segments)).index_put((where,), torch.arange(len(segments)))
        causal = torch.ones(longest, longest, dtype=torch.bool).tril().expand(count, longest, longest)
        # Within the first one tokens see it as their own.
        is_behind = sees_first & (torch.arange(count) > 0)
        sees = torch.cat([is_behind[:, None, None].expand(count, longest, length), causal], dim=-1)
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -math.inf)
        return cls(places, where, length, mask[:, None])

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Softmax attention with grouped heads: query [1, T, H, d]; keys, values [1, U, T, d]; returns [1, T, H d]."""
        count, shared, size = len(self.mask), keys.shape[1], query.shape[3]
        # Heads that share keys are rows of one product: for matrices as small as these the fused kinds are slower.
        folded = self._fold(query[0] / math.sqrt(size)).transpose(1, 2).reshape(count * shared, -1, size)
        scores = torch.bmm(folded, self._behind_first(keys).flatten(0, 1).mT).view(count, -1, *self.mask.shape[2:])
        weights = (scores + self.mask).softmax(dim=-1).view(count * shared, -1, self.mask.shape[3])
        mixed = torch.bmm(weights, self._behind_first(values).flatten(0, 1)).view(*scores.shape[:3], size)
        return _pick(mixed.transpose(1, 2).flatten(2).flatten(0, 1), self.where, self.places)[None]

    def _behind_first(self, x: torch.Tensor) -> torch.Tensor:
        """What segments see of x [1, U, T, d]: the first one's, then their own [n, U, S + L, d]."""
        own = self._fold(x[0].transpose(0, 1)).transpose(1, 2)
        return torch.cat([x[:, :, : self.length].expand(len(own), -1, -1, -1), own], dim=2)

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, heads, d] in segments [n, L, heads, d]; zeros where there is no token."""
        return _pick(x.flatten(1), self.places, self.where).view(len(self.mask), -1, *x.shape[1:])


def _pick(x: torch.Tensor, places: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Rows of x [N, w] by place, zeros for place N; `back` is where each row of x went: its gradient is picked too.

    What autograd would do is add every row's gradient to zeros, one after the other.
    """
    picked: torch.Tensor = _Pick.apply(x, places, back)  # type: ignore[no-untyped-call]
    return picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places, back)
        return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        places, back = ctx.saved_tensors
        return _pick(grad, back, places), None, None
