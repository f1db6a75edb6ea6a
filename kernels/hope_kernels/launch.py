"""What every GPU operator shares: a kernel's configuration, its launch, and the refusal of arguments it cannot take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

ALIGNMENT = 16
"""Bytes at which a float tensor must start: the kernels are checked ahead of time for loads of this size."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
"""How a kernel's signature names a pointer to a tensor's elements."""


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """One way to compile a kernel, checked ahead of time by `hope_kernels.aot` before any machine may launch it.

    label: unique within its operator. signature: type of each argument given at launch ('*fp32', 'i32').
    constants: value of each argument fixed at compile time; a pointer that is not there is None.
    """

    label: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    def launch(self, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        """Run the kernel on the device of its first tensor; arguments: everything that the signature names."""
        if 0 in grid:
            return
        assert arguments.keys() == self.signature.keys(), arguments.keys() ^ self.signature.keys()
        given = {**arguments, **self.constants}
        device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
        if device.type == "cpu":
            self.kernel[grid](**given)
            return
        with torch.cuda.device(device):
            self.kernel[grid](**given, num_warps=self.num_warps, num_stages=self.num_stages)


def require(condition: bool, argument: str, rule: str) -> None:
    """Raise ValueError naming the argument and the rule it breaks."""
    if not condition:
        raise ValueError(f"{argument}: {rule}")


def require_device(device: torch.device) -> None:
    """Raise ValueError unless kernels can run there: a CUDA device, or the CPU under Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    rule = "must be on a CUDA device; on a CPU only Triton's interpreter runs (TRITON_INTERPRET=1)"
    require(device.type == "cuda" or (device.type == "cpu" and interpreted), "device", rule)


def require_tensor(
    tensor: torch.Tensor,
    argument: str,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise ValueError unless a tensor has this shape (None: any size), one of these types, and lies packed there."""
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    require(tensor.dtype in dtypes, argument, f"must be {names}, is {str(tensor.dtype).removeprefix('torch.')}")
    fits = tensor.dim() == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    require(fits, argument, f"must have shape {wanted}, has {list(tensor.shape)}")
    require(tensor.device == device, argument, f"must be on {device}, is on {tensor.device}")
    require(tensor.is_contiguous(), argument, "must be contiguous")
    aligned = not tensor.is_floating_point() or tensor.data_ptr() % ALIGNMENT == 0
    require(aligned, argument, f"must start at a multiple of {ALIGNMENT} bytes")
