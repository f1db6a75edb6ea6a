"""Rows whose tensors lie in slots of a pool: the checks that every operator makes, and the gather of the torch forms.

Shapes: B rows, S slots. A negative slot says that the row has none.
"""

from __future__ import annotations

import torch

from hope_kernels.launch import require


def check_slots(slots: torch.Tensor, num_slots: int, device: torch.device, num_rows: int | None = None) -> None:
    """Raise ValueError unless slots [B] can index a pool of num_slots on this device.

    Values are looked at on the CPU alone, for a look at a CUDA tensor would wait for the device: there, kernels answer
    a row whose slot lies beyond the pool with NaN.
    """
    require(slots.dtype in (torch.int32, torch.int64), "slots", "must be int32 or int64")
    wanted = "B" if num_rows is None else num_rows
    require(slots.dim() == 1, "slots", f"must have shape [{wanted}], has {list(slots.shape)}")
    require(num_rows is None or len(slots) == num_rows, "slots", f"must have shape [{wanted}], has {list(slots.shape)}")
    require(slots.device == device, "slots", f"must be on {device}, is on {slots.device}")
    if slots.device.type == "cpu" and len(slots):
        require(num_slots > 0 and int(slots.max()) < num_slots, "slots", f"must be less than the pool's {num_slots}")


def gather(pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The rows' own parts [B, ...] of a pool [S, ...], zeros for a row without a slot; differentiable."""
    has_slot = (slots >= 0).view(-1, *[1] * (pool.dim() - 1))
    return torch.where(has_slot, pool[slots.clamp_min(0)], pool.new_zeros(()))
