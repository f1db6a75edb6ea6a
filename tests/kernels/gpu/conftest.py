"""What the GPU operators' tests start from: a device, poisoned buffers, one measure of error.

Under TRITON_INTERPRET=1 the kernels run on CPU tensors, else on the machine's CUDA device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

POISON = 0x5A
"""Every byte of what is allocated but not a float number: a large integer of either size."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the interpreter of Triton 3.6 turn an array of one element into a loop's bound, which numpy warns of."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            message = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that the kernels run on here."""
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("needs a CUDA device or Triton's interpreter; run make test-kernels")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty, torch.empty_like and Tensor.new_empty give: a kernel that leaves a hole shows it."""

    def filled(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fill(*arguments: Any, **options: Any) -> torch.Tensor:
            tensor = allocate(*arguments, **options)
            if tensor.is_floating_point():
                return tensor.fill_(torch.nan)
            if tensor.dtype in (torch.int32, torch.int64):
                return tensor.fill_(int.from_bytes(bytes([POISON] * tensor.element_size()), "little"))
            return tensor

        return fill

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def relative_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Root mean square of the difference over that of the expected values, in float64; NaN never passes a limit."""

    def measured(found: torch.Tensor, expected: torch.Tensor) -> float:
        assert found.shape == expected.shape, (found.shape, expected.shape)
        found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
        if not bool(expected.any()):
            return float((found - expected).abs().max()) if expected.numel() else 0.0
        return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    return measured
