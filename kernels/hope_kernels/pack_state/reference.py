"""The truth for `pack_state`: one weight at a time, with Python's own numbers and bytes.

Shapes: S slots, B slots packed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch

BLOCK = 64
_CODES = {torch.float64: "<d", torch.float32: "<f", torch.float16: "<e"}


def pack(tensors: Sequence[torch.Tensor], slots: Sequence[int], form: str) -> list[bytes]:
    """The bytes of each buffer row."""
    return [_row(tensors, slot, form) for slot in slots]


def unpack(row: bytes, tensors: Sequence[torch.Tensor], form: str) -> list[list[float]]:
    """What a buffer row gives every tensor's slot, before it is rounded to the tensor's own type."""
    out, place = [], 0
    sizes = [tensor[0].numel() for tensor in tensors]
    total = sum(_up(size, BLOCK) for size in sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        if form == "exact":
            width = tensor.element_size()
            out.append([_decode(row[place + width * i : place + width * (i + 1)], tensor.dtype) for i in range(size)])
            place += _up(size * width, 16)
        elif form == "bf16":
            out.append([_decode(row[2 * (place + i) : 2 * (place + i) + 2], torch.bfloat16) for i in range(size)])
            place += _up(size, 8)
        else:
            found = []
            for i in range(size):
                at = total + (place + i) // BLOCK * 4
                step = struct.unpack("<f", row[at : at + 4])[0]
                found.append(_float32(struct.unpack("<b", row[place + i : place + i + 1])[0] * step))
            out.append(found)
            place += _up(size, BLOCK)
    return out


def _row(tensors: Sequence[torch.Tensor], slot: int, form: str) -> bytes:
    weights, steps = b"", b""
    for tensor in tensors:
        values = tensor[slot].flatten().tolist()
        if form == "exact":
            part = b"".join(_encode(value, tensor.dtype) for value in values)
            weights += part.ljust(_up(len(part), 16), b"\0")
        elif form == "bf16":
            part = b"".join(_bfloat16(value) for value in values)
            weights += part.ljust(_up(len(part), 16), b"\0")
        else:
            for start in range(0, len(values), BLOCK):
                block = [_float32(value) for value in values[start : start + BLOCK]]
                step = _float32(max(map(abs, block)) / 127.0)
                # Python rounds halves to even.
                whole = [round(_float32(value / step)) if step else 0 for value in block]
                weights += b"".join(struct.pack("<b", value) for value in whole).ljust(BLOCK, b"\0")
                steps += struct.pack("<f", step)
    return weights + steps


def _float32(value: float) -> float:
    """The nearest float32, ties to even."""
    found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return found


def _encode(value: float, dtype: torch.dtype) -> bytes:
    return _bfloat16(value) if dtype == torch.bfloat16 else struct.pack(_CODES[dtype], value)


def _decode(data: bytes, dtype: torch.dtype) -> float:
    found: float
    if dtype == torch.bfloat16:
        found = struct.unpack("<f", b"\0\0" + data)[0]
    else:
        found = struct.unpack(_CODES[dtype], data)[0]
    return found


def _bfloat16(value: float) -> bytes:
    """The upper half of a float32, after adding half of the lower half's range, a tie's one less where even."""
    if math.isnan(value):
        return b"\xc0\x7f"
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
