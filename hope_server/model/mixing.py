"""What a block read of some tokens, and how Titans read rows and segments that stand at different places.

Shapes: B rows, T tokens, U key-value heads, d head size, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams
from hope_server.model.titans_state import TitansState


@dataclass(frozen=True, slots=True)
class TokensRead:
    """What one block leaves of T tokens for those to come.

    attention: keys and values [B, U, T, d], None where the block does not attend; titans: the memories after them, None
    without Titans, or where the tokens came in segments, which leave nothing.
    """

    attention: tuple[torch.Tensor, torch.Tensor] | None
    titans: TitansState | None
    num_tokens: int

    def detach(self) -> TokensRead:
        """The same without history."""
        attention = None if self.attention is None else (self.attention[0].detach(), self.attention[1].detach())
        return TokensRead(attention, None if self.titans is None else self.titans.detach(), self.num_tokens)


def mix_titans(
    layer: TitansLayer,
    params: TitansParams,
    x: torch.Tensor,
    state: TitansState,
    pending: torch.Tensor,
    segments: torch.Tensor | None = None,
    *,
    is_guarded: bool = True,
) -> tuple[torch.Tensor, TitansState | None]:
    """Mix tokens x [B, T, D] of rows whose unfinished chunks have pending [B] tokens.

    segments [T]: tokens of different segments do not know of each other; each goes on from the row's state. Returns
    [B, T, D] and the state after them, None for segments.
    """
    if torch.is_autocast_enabled(x.device.type):
        # Memories add up many small writes, so their layer keeps its own precision where the rest is rounded.
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(state.tail.dtype)
            return mix_titans(layer, params, exact, state, pending, segments, is_guarded=is_guarded)
    if segments is not None:
        return _mix_segments(layer, params, x, state, pending, segments, is_guarded=is_guarded), None
    places = pending.unique().tolist()
    if len(places) == 1:
        return layer.run(params, x, state, places[0], is_guarded=is_guarded)
    out = torch.empty_like(x)
    tensors = {name: torch.empty_like(tensor) for name, tensor in state.tensors().items()}
    for place in places:
        rows = (pending == place).nonzero()[:, 0]
        out[rows], after = layer.run(params, x[rows], state.at(rows), place, is_guarded=is_guarded)
        for name, tensor in after.tensors().items():
            tensors[name][rows] = tensor
    return out, state.with_tensors(tensors)


def _mix_segments(
    layer: TitansLayer,
    params: TitansParams,
    x: torch.Tensor,
    state: TitansState,
    pending: torch.Tensor,
    segments: torch.Tensor,
    *,
    is_guarded: bool,
) -> torch.Tensor:
    """Mix one row's segments x [1, T, D] side by side, each as a row of its own."""
    if x.shape[0] != 1:
        raise ValueError(f"segments are read in one row at a time, got {x.shape[0]}")
    starts = torch.searchsorted(segments, segments)
    numbers = segments.unique(return_inverse=True)[1]
    offsets = torch.arange(len(segments)) - starts
    count = int(numbers[-1]) + 1
    rows = x.new_zeros(count, int(offsets.max()) + 1, x.shape[2]).index_put((numbers, offsets), x[0])
    found, _ = layer.run(
        params, rows, state.at(torch.zeros(count, dtype=torch.long)), int(pending[0]), is_guarded=is_guarded
    )
    return found[numbers, offsets][None]
