"""What one self-modifying Titans layer keeps of its rows: memories, and the tokens of the unfinished chunk.

Shapes: B rows, C tokens of a chunk, H heads, K head size, n rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.model.memories import Weights


@dataclass(slots=True)
class TitansState:
    """One layer's part of the fast state.

    memories, surprises: [B, H, ...] as they were at the start of the unfinished chunk.
    tail, tail_start [B, window - 1, (3 K + n) H]: the last inputs of the convolution, now and at that start.
    keys, values [B, H, C, K] and rates [B, H, C, 3]: of the unfinished chunk's tokens, the first of C places.
    """

    memories: Weights
    surprises: Weights
    tail: torch.Tensor
    tail_start: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rates: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name, rows first."""
        out = {f"memory.{name}": tensor for name, tensor in self.memories.items()}
        out |= {f"surprise.{name}": tensor for name, tensor in self.surprises.items()}
        names = ("tail", "tail_start", "keys", "values", "rates")
        return out | {name: getattr(self, name) for name in names}

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> TitansState:
        """The same structure around other tensors."""
        return TitansState(
            {name: tensors[f"memory.{name}"] for name in self.memories},
            {name: tensors[f"surprise.{name}"] for name in self.surprises},
            *(tensors[name] for name in ("tail", "tail_start", "keys", "values", "rates")),
        )

    def clone(self) -> TitansState:
        """An independent copy."""
        return self.with_tensors({name: tensor.clone() for name, tensor in self.tensors().items()})

    def detach(self) -> TitansState:
        """The same tensors without their history."""
        return self.with_tensors({name: tensor.detach() for name, tensor in self.tensors().items()})

    def copy_(self, other: TitansState) -> None:
        """Overwrite this state; parts that the other shares with it, it has left as they were."""
        mine = self.tensors()
        for name, tensor in other.tensors().items():
            if tensor is not mine[name]:
                mine[name].copy_(tensor)

    def at(self, rows: slice | torch.Tensor) -> TitansState:
        """Some rows: views for a slice, copies for a list of row numbers."""
        return self.with_tensors({name: tensor[rows] for name, tensor in self.tensors().items()})
