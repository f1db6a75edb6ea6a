"""When a level that has studied speaks: at tokens that it recognises, not in general text.

What a delta adds to a block's output is large beside it where a key is near to what was taught, and smaller, though
seldom nothing, on all other text. A gate lets the first through and holds back the second, so that what a session
learned does not harm what the model knows. Its threshold is measured: at so many tokens of general text it is shut.
Shapes: B rows, T tokens, D model width, F MLP width, n matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["GeneralKeys", "recognition"]

SHARPNESS = 20.0
"""Slope of the gate in its logit, over the ratio to the threshold: from a tenth to nine tenths within 22 % of it."""
_SMALLEST = 1e-6


def recognition(change: torch.Tensor, slow: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """How far a level speaks, 0 to 1, [B, T, 1]: a half where its change is `threshold` times as long as the block's.

    change, slow [B, T, D]: what the level and the slow weights make of a token; threshold [B, 1, 1]: 0 for no gate.
    """
    ratio = change.norm(dim=-1, keepdim=True) / slow.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST)
    return torch.sigmoid(SHARPNESS * (ratio / threshold.clamp_min(_SMALLEST) - 1))


@dataclass(frozen=True, slots=True)
class GeneralKeys:
    """What MLPs say of general text: of each block, keys [T, F] and the lengths [T] of what the slow weights make of
    them."""

    keys: dict[int, torch.Tensor]
    lengths: dict[int, torch.Tensor]

    def thresholds(self, deltas: torch.Tensor, blocks: Sequence[int], share: float) -> torch.Tensor:
        """Thresholds [n] at which deltas [n, D, F] of these blocks are shut at a `share` of the tokens, by a half."""
        found = [
            torch.quantile((self.keys[block] @ delta.mT).norm(dim=-1) / self.lengths[block], share)
            for block, delta in zip(blocks, deltas, strict=True)
        ]
        return torch.stack(found)
