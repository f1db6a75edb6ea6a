"""The Continuum Memory System: how the MLPs of several levels make one output, and when each level is written.

Levels stand slowest first. A level's update period is NL's C of its frequency: the tokens between two of its writes.
Shapes: B rows, T tokens, D model width, P weights of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch.nn import functional

from hope_server.model.config import CmsForm, LevelSpec

Mlp = Callable[[torch.Tensor], torch.Tensor]
"""What a level adds for its inputs [B, T, D]; of the same shape."""


def chained(x: torch.Tensor, first: torch.Tensor, levels: Sequence[Mlp]) -> torch.Tensor:
    """What a chain of residual MLPs adds to x [B, T, D]: each level reads what all before it have made of x.

    first [B, T, D]: what the block's own MLP adds to x, the link that is never written. A level's input is brought to
    a root mean square of 1 in each token, the normalisation that the equation leaves out. Levels that add nothing
    leave `first`. Source: NL eq. 70.
    """
    out = first
    for level in levels:
        out = out + level(functional.rms_norm(x + out, x.shape[-1:]))
    return out


def head_wise(
    x: torch.Tensor, first: torch.Tensor, levels: Sequence[Mlp], shares: torch.Tensor | None = None
) -> torch.Tensor:
    """What levels side by side add to x [B, T, D]: each reads x itself, and their outputs are summed by weight.

    first [B, T, D]: what the block's own MLP adds. shares: weights of the levels [E], learned in the outer loop or
    1 / E each for the mean; None: 1 each. Source: NL eq. 74.
    """
    out = first
    for number, level in enumerate(levels):
        added = level(x)
        out = out + (added if shares is None else shares[number] * added)
    return out


def chain_order(levels: Sequence[LevelSpec], form: CmsForm) -> tuple[LevelSpec, ...]:
    """The levels slowest first where they form a chain, and as they were given where their order is free."""
    if form == "independent":
        return tuple(levels)
    return tuple(sorted(levels, key=lambda level: -level.update_period))


def is_due(positions: torch.Tensor, update_period: int) -> torch.Tensor:
    """Whether rows at positions [B], counted in tokens from the session's start, end a period. Source: NL eq. 71."""
    return positions % update_period == 0


def contexts(levels: Sequence[LevelSpec], form: CmsForm) -> dict[str, LevelSpec]:
    """By name of each nested level, the next slower one, whose period is its context; the slowest has none.

    Only levels that are written online nest. Source: NL eq. 72.
    """
    if form != "nested":
        return {}
    online = chain_order([level for level in levels if level.schedule == "online"], form)
    return {faster.name: slower for slower, faster in pairwise(online)}


def start_rate(level: LevelSpec, slower: LevelSpec) -> float:
    """How much of what a context taught a level its start keeps, 0 to 1: the slower level's lr over its own.

    A level that descends plainly has moved by -lr times the context's summed gradient, so this is one step of the
    start along that gradient with the slower level's lr: the first-order step of meta-learning it.
    """
    return min(1.0, slower.lr / level.lr) if level.lr > 0 else 0.0


def end_context(
    weights: torch.Tensor, start: torch.Tensor, rate: float, ended: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teach a level's start [B, P] in the rows whose context ended [B], and begin again from it.

    Returns the new weights [B, P] and start. Source: NL eq. 72.
    """
    learned = start + rate * (weights - start)
    rows = ended[:, None]
    return torch.where(rows, learned, weights), torch.where(rows, learned, start)
