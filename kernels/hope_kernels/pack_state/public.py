"""A slot's tensors in one contiguous buffer and back: checks the arguments and runs the form that fits their device.

Shapes: S slots, B slots packed, N_i weights a slot of tensor i. A buffer row holds the tensors in the order given, each
at a multiple of 16 bytes (64 weights with `int8`), zeros between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hope_kernels.dispatch import uses_triton
from hope_kernels.launch import require
from hope_kernels.pack_state import copies
from hope_kernels.pack_state.layout import BUFFER_DTYPES, FLOATS, Form, Layout

Slots = Sequence[int] | torch.Tensor


def pack(tensors: Sequence[torch.Tensor], slots: Slots, form: Form = "exact") -> torch.Tensor:
    """Gather what some slots hold in every tensor into one buffer.

    tensors: each [S, ...] of a float type, every slot contiguous; slots: B different slots, as numbers or as a tensor
    (one on a GPU is waited for). form: `exact` keeps every byte; `bf16` rounds to bfloat16, nearest even; `int8` keeps
    round(127 x / m) and a float32 step m / 127 for each block of 64 weights, m the largest size among them.
    float64 goes through float32 on its way to `bf16` and `int8`.
    Returns a new buffer, whose type says its form: [B, bytes] uint8, [B, weights] bfloat16 or [B, bytes] int8.
    Raises ValueError on arguments that do not fit, and in `int8` on weights that are not finite.
    """
    require(form in BUFFER_DTYPES, "form", f"must be one of {', '.join(BUFFER_DTYPES)}, is {form!r}")
    numbers = _check(tensors, slots)
    layout = Layout.of(tensors, form)
    buffer = torch.zeros(len(numbers), layout.num_elements, dtype=BUFFER_DTYPES[form], device=tensors[0].device)
    if uses_triton(buffer, *(tensor.detach() for tensor in tensors)):
        from hope_kernels.pack_state import gpu

        is_finite = gpu.pack_(buffer, tensors, numbers, layout)
    else:
        is_finite = copies.pack_(buffer, tensors, numbers, layout)
    require(is_finite, "tensors", "must be finite in these slots to be packed as int8")
    return buffer


def unpack_(buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: Slots) -> None:
    """Write a buffer that `pack` made into slots of tensors of the same shapes and types, in place.

    Other slots are left as they are, bit for bit. buffer [B, elements]; its type says its form.
    Raises ValueError on arguments that do not fit; nothing is written then.
    """
    forms: dict[torch.dtype, Form] = {dtype: form for form, dtype in BUFFER_DTYPES.items()}
    require(buffer.dtype in forms, "buffer", f"must be uint8, bfloat16 or int8, is {buffer.dtype}")
    numbers = _check(tensors, slots)
    layout = Layout.of(tensors, forms[buffer.dtype])
    wanted = (len(numbers), layout.num_elements)
    require(tuple(buffer.shape) == wanted, "buffer", f"must have shape {list(wanted)}, has {list(buffer.shape)}")
    require(buffer.is_contiguous(), "buffer", "must be contiguous")
    require(buffer.device == tensors[0].device, "buffer", f"must be on {tensors[0].device}, is on {buffer.device}")
    if uses_triton(buffer, *(tensor.detach() for tensor in tensors)):
        from hope_kernels.pack_state import gpu

        gpu.unpack_(buffer, tensors, numbers, layout)
    else:
        copies.unpack_(buffer, tensors, numbers, layout)


def _check(tensors: Sequence[torch.Tensor], slots: Slots) -> list[int]:
    """The slots as numbers, after every check of both arguments."""
    require(len(tensors) > 0, "tensors", "must be at least one")
    num_slots, device = len(tensors[0]) if tensors[0].dim() else 0, tensors[0].device
    for number, tensor in enumerate(tensors):
        name = f"tensors[{number}]"
        require(tensor.dtype in FLOATS, name, f"must be of a float type of 16 to 64 bits, is {tensor.dtype}")
        require(tensor.dim() >= 1 and len(tensor) == num_slots, name, f"must have shape [{num_slots}, ...]")
        require(not num_slots or tensor[0].is_contiguous(), name, "must be contiguous within a slot")
        require(tensor.device == device, name, f"must be on {device}, is on {tensor.device}")
        overlaps = num_slots > 1 and tensor.stride(0) < tensor[0].numel()
        require(not overlaps, name, "must have slots that do not overlap")
    if isinstance(slots, torch.Tensor):
        is_index = slots.dim() == 1 and slots.dtype in (torch.int32, torch.int64)
        require(is_index, "slots", "must be [B], int32 or int64")
    numbers = [int(slot) for slot in (slots.tolist() if isinstance(slots, torch.Tensor) else slots)]
    require(all(0 <= slot < num_slots for slot in numbers), "slots", f"must be 0 to {num_slots - 1}, are {numbers}")
    require(len(set(numbers)) == len(numbers), "slots", f"must differ, are {numbers}")
    return numbers
