"""Where each tensor's weights lie in a buffer row, and the names of the forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Form = Literal["exact", "bf16", "int8"]
"""How a buffer holds weights: every byte, rounded to bfloat16, or as whole numbers of 8 bits with a step per block."""
BUFFER_DTYPES: dict[Form, torch.dtype] = {"exact": torch.uint8, "bf16": torch.bfloat16, "int8": torch.int8}
"""The type of a buffer says its form."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BLOCK = 64
"""Weights that share a step in `int8`."""
ALIGNMENT = 16
"""Bytes at whose multiples tensors begin in a buffer row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A buffer row: sizes and starts in elements of the buffer.

    sizes: weights a slot of each tensor; starts: where each tensor begins. steps: where the float32 steps of `int8`
    begin, those of a tensor's blocks at steps + 4 start / 64. num_elements: of the whole row.
    """

    form: Form
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    steps: int
    num_elements: int

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], form: Form) -> Layout:
        """The layout for tensors [S, ...]; what lies in them is not looked at."""
        sizes = tuple(tensor.shape[1:].numel() for tensor in tensors)
        starts, end = [], 0
        for tensor, size in zip(tensors, sizes, strict=True):
            starts.append(end)
            if form == "exact":
                end += _up(size * tensor.element_size(), ALIGNMENT)
            else:
                end += _up(size, BLOCK if form == "int8" else ALIGNMENT // 2)
        return cls(form, sizes, tuple(starts), end, end + (end // BLOCK * 4 if form == "int8" else 0))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
