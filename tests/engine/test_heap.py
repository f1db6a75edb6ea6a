"""What a server hands back: memory in objects that only hold each other, and what was kept apart."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

from hope_server.engine.heap import LARGE, copy_apart, give_back, zeros_apart


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_rings_are_freed() -> None:
    """An error and the frames that it passed hold each other; with a state in them they are large."""
    gc.disable()
    try:
        left = weakref.ref(Ring())
        assert left() is not None
        give_back()
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, LARGE + 1])
def test_what_is_kept_apart_is_zeros_that_can_be_written(dtype: torch.dtype, size: int) -> None:
    """Of the type that is asked for, few or many, also where there is nothing to keep."""
    found = zeros_apart(size, dtype)
    assert torch.equal(found, torch.zeros(size, dtype=dtype))
    found += 1
    assert torch.equal(found, torch.ones(size, dtype=dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's pages in /proc")
def test_what_is_kept_apart_goes_back_with_its_last_view() -> None:
    """64 MiB are there while a view of them is, and gone with it, whatever lies around them."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    view = zeros_apart(16 << 20, torch.float32).fill_(1.0)[:5]
    assert resident() - before > 60 << 20
    assert view.sum() == 5
    del view
    assert resident() - before < 4 << 20


@pytest.mark.parametrize("rows", [0, 3, 3_001])
def test_a_copy_apart_is_dense_exact_and_its_own(rows: int) -> None:
    """Of a part of a tensor, rounded where that is asked for; the tensor may change afterwards."""
    whole = torch.randn(rows, 300)
    part = whole[:, 7:207]
    same, rounded = copy_apart(part), copy_apart(part, torch.bfloat16)
    expected = part.clone()
    whole.zero_()

    assert same.is_contiguous() and rounded.is_contiguous()
    assert torch.equal(same, expected)
    assert torch.equal(rounded, expected.bfloat16())
