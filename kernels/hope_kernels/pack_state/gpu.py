"""The Triton form of `pack_state`: one launch for all tensors and slots, through a table of addresses.

Shapes: B slots packed, n tensors; a program copies a run of one tensor's weights in one slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from hope_kernels.launch import KernelConfig, require_device
from hope_kernels.pack_state.layout import ALIGNMENT, BLOCK, Layout

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_WORDS = {8: tl.int64, 4: tl.int32, 2: tl.int16}
_RUN = 1024
"""Words or weights that a program copies."""
_COLUMNS = tl.constexpr(6)
"""Of a table row: address, bytes from slot to slot, words or weights a slot, start in the buffer, type, program."""


@triton.jit
def _find(table, num_tensors):
    """The table row of this program's tensor, and the number of its run: the last row that begins at or before it."""
    program = tl.program_id(0)
    low = tl.zeros([], tl.int64)
    high = low + num_tensors
    while high - low > 1:
        middle = (low + high) // 2
        is_after = tl.load(table + middle * _COLUMNS + 5) > program
        high = tl.where(is_after, middle, high)
        low = tl.where(is_after, low, middle)
    row = table + low * _COLUMNS
    return row, program - tl.load(row + 5)


@triton.jit
def _words(
    table, slots, buffer, num_tensors, row_size,
    UNPACKS: tl.constexpr, WORD: tl.constexpr, IS_ALIGNED: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """`exact`: words of 2, 4 or 8 bytes as they are."""
    row, run = _find(table, num_tensors)
    address = tl.load(row) + tl.load(slots + tl.program_id(1)) * tl.load(row + 1)
    size, start = tl.load(row + 2), tl.program_id(1).to(tl.int64) * row_size + tl.load(row + 3)
    words = address.to(tl.pointer_type(WORD))
    if IS_ALIGNED:
        # Two words of 8 bytes at a time: the compiler takes nothing for granted of numbers that are loaded.
        words, size, start = tl.multiple_of(words, 16), tl.multiple_of(size, 2), tl.multiple_of(start, 2)
    place = run * RUN + tl.arange(0, RUN)
    inside = place < size
    packed = buffer + start + place
    if UNPACKS:
        tl.store(words + place, tl.load(packed, mask=inside), mask=inside)
    else:
        tl.store(packed, tl.load(words + place, mask=inside), mask=inside)


@triton.jit
def _to_bfloat16(value):
    """The bits of the nearest bfloat16, ties to even, as int16."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(value == value, rounded, 0x7FC0).to(tl.int16)


@triton.jit
def _from_bfloat16(bits):
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _load(address, code, place, inside):
    """Weights of any type as float32, zeros outside."""
    value = tl.zeros(place.shape, tl.float32)
    if code == 0:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + place, mask=inside, other=0.0)
    elif code == 1:
        value = _from_bfloat16(tl.load(address.to(tl.pointer_type(tl.int16)) + place, mask=inside, other=0))
    elif code == 2:
        value = tl.load(address.to(tl.pointer_type(tl.float16)) + place, mask=inside, other=0.0).to(tl.float32)
    else:
        value = tl.load(address.to(tl.pointer_type(tl.float64)) + place, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def _store(address, code, place, inside, value):
    """float32 weights in the tensor's own type."""
    if code == 0:
        tl.store(address.to(tl.pointer_type(tl.float32)) + place, value, mask=inside)
    elif code == 1:
        tl.store(address.to(tl.pointer_type(tl.int16)) + place, _to_bfloat16(value), mask=inside)
    elif code == 2:
        tl.store(address.to(tl.pointer_type(tl.float16)) + place, value.to(tl.float16), mask=inside)
    else:
        tl.store(address.to(tl.pointer_type(tl.float64)) + place, value.to(tl.float64), mask=inside)


@triton.jit
def _halves(table, slots, buffer, num_tensors, row_size, UNPACKS: tl.constexpr, RUN: tl.constexpr):
    """`bf16`: the buffer as int16, for its bits."""
    row, run = _find(table, num_tensors)
    address = tl.load(row) + tl.load(slots + tl.program_id(1)) * tl.load(row + 1)
    code = tl.load(row + 4)
    place = run * RUN + tl.arange(0, RUN)
    inside = place < tl.load(row + 2)
    packed = buffer + tl.program_id(1).to(tl.int64) * row_size + tl.load(row + 3) + place
    if UNPACKS:
        _store(address, code, place, inside, _from_bfloat16(tl.load(packed, mask=inside, other=0)))
    else:
        tl.store(packed, _to_bfloat16(_load(address, code, place, inside)), mask=inside)


@triton.jit
def _blocks(
    table, slots, buffer, faults, num_tensors, row_size, steps_start,
    UNPACKS: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`int8`: blocks of weights with a step each; faults [1] becomes 1 where a weight is not finite."""
    row, run = _find(table, num_tensors)
    address = tl.load(row) + tl.load(slots + tl.program_id(1)) * tl.load(row + 1)
    code, size, start = tl.load(row + 4), tl.load(row + 2), tl.load(row + 3)
    blocks = run * (RUN // BLOCK) + tl.arange(0, RUN // BLOCK)
    place = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = place < size
    is_block = blocks * BLOCK < size
    packed = buffer + tl.program_id(1).to(tl.int64) * row_size
    steps = (packed + steps_start).to(tl.pointer_type(tl.float32)) + start // BLOCK + blocks
    if UNPACKS:
        step = tl.load(steps, mask=is_block, other=0.0)
        whole = tl.load(packed + start + place, mask=inside, other=0).to(tl.float32)
        _store(address, code, place, inside, whole * step[:, None])
    else:
        value = _load(address, code, place, inside)
        size_of = tl.abs(value)
        # False for NaN as well.
        is_finite = size_of < float("inf")
        tl.store(faults, 1, mask=tl.sum(tl.sum(tl.where(is_finite, 0, 1), axis=1), axis=0) > 0)
        size_of = tl.where(is_finite, size_of, 0.0)
        largest = tl.max(size_of, axis=1)
        step = tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32))
        divisor = tl.where(step > 0, step, 1.0)[:, None]
        share = tl.div_rn(tl.where(is_finite & (step > 0)[:, None], value, 0.0), divisor + tl.zeros_like(value))
        # Added and taken away, 1.5 times 2 to the 23rd leaves a whole number, ties to even.
        whole = (share + 12582912.0) - 12582912.0
        tl.store(packed + start + place, whole.to(tl.int8), mask=is_block[:, None] & (place >= 0))
        tl.store(steps, step, mask=is_block)


def _config(form: str, unpacks: bool, width: int = 8, is_aligned: bool = True) -> KernelConfig:
    """The configuration of a form and direction; width, is_aligned: of the words that `exact` copies."""
    signature = {"table": "*i64", "slots": "*i64", "num_tensors": "i32", "row_size": "i64"}
    constants: dict[str, object] = {"UNPACKS": unpacks, "RUN": _RUN}
    label = f"{form} {'unpack' if unpacks else 'pack'}"
    if form == "exact":
        signature["buffer"] = f"*i{8 * width}"
        constants |= {"WORD": _WORDS[width], "IS_ALIGNED": is_aligned}
        label += f" {width} bytes{' aligned' if is_aligned else ''}"
        return KernelConfig(label, _words, signature, constants, num_warps=4, num_stages=1)
    if form == "bf16":
        return KernelConfig(label, _halves, {**signature, "buffer": "*i16"}, constants, num_warps=4, num_stages=1)
    signature |= {"buffer": "*i8", "faults": "*i32", "steps_start": "i64"}
    return KernelConfig(label, _blocks, signature, constants | {"BLOCK": BLOCK}, num_warps=4, num_stages=1)


def configs() -> tuple[KernelConfig, ...]:
    """Every configuration that `pack_` and `unpack_` choose from."""
    words = [(8, True), *((width, False) for width in _WORDS)]
    exact = [_config("exact", unpacks, *word) for unpacks in (False, True) for word in words]
    return (*exact, *(_config(form, unpacks) for form in ("bf16", "int8") for unpacks in (False, True)))


def pack_(buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: list[int], layout: Layout) -> bool:
    """Fill a buffer of zeros; returns whether its form can hold all weights. See `hope_kernels.pack_state.pack`.

    `int8` waits for the device, to learn whether they can.
    """
    faults = _launch(buffer, tensors, slots, layout, unpacks=False)
    return layout.form != "int8" or not bool(faults)


def unpack_(buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: list[int], layout: Layout) -> None:
    """Write a buffer into slots. See `hope_kernels.pack_state.unpack_`."""
    _launch(buffer, tensors, slots, layout, unpacks=True)


def _launch(
    buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: list[int], layout: Layout, unpacks: bool
) -> torch.Tensor:
    """Run the kernel of a form and direction; returns the faults, which `int8` alone sets."""
    require_device(buffer.device)
    width, is_aligned = 1, False
    if layout.form == "exact":
        width, is_aligned = _words_of(buffer, tensors)
    table, first = [], 0
    for tensor, start, size in zip(tensors, layout.starts, layout.sizes, strict=True):
        num_words, place = size, start
        if layout.form == "exact":
            num_words, place = size * tensor.element_size() // width, start // width
        if num_words and slots:
            stride = tensor.stride(0) * tensor.element_size()
            table += [tensor.data_ptr(), stride, num_words, place, _CODES[tensor.dtype], first]
            first += triton.cdiv(num_words, _RUN)
    # One copy to the device for both.
    numbers = torch.tensor([*table, *slots], dtype=torch.int64).to(buffer.device)
    faults = torch.zeros(1, dtype=torch.int32, device=buffer.device)
    arguments: dict[str, object] = {"table": numbers, "slots": numbers[len(table) :]}
    arguments |= {"num_tensors": len(table) // _COLUMNS.value, "row_size": layout.num_elements // width}
    if layout.form == "exact":
        config = _config("exact", unpacks, width, is_aligned)
        arguments["buffer"] = buffer.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[width])
    elif layout.form == "bf16":
        config = _config("bf16", unpacks)
        arguments["buffer"] = buffer.view(torch.int16)
    else:
        config = _config("int8", unpacks)
        arguments |= {"buffer": buffer, "faults": faults, "steps_start": layout.steps}
    arguments["row_size"] = layout.num_elements // width
    config.launch((first, len(slots)), arguments)
    return faults


def _words_of(buffer: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[int, bool]:
    """The widest words that every part of every slot is made of and begins at, and whether those come in pairs."""
    sizes = [buffer.data_ptr()]
    for tensor in tensors:
        width = tensor.element_size()
        sizes += [tensor.data_ptr(), tensor.stride(0) * width, tensor.shape[1:].numel() * width]
    common = math.gcd(ALIGNMENT, *sizes)
    return min(common, 8), common == ALIGNMENT
