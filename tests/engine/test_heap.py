"""What a server hands back: memory in objects that only hold each other, and what was kept apart."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

from hope_server.engine.heap import give_back, zeros_apart


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
@pytest.mark.parametrize("size", [0, 1, 4_097])
def test_what_is_kept_apart_is_zeros_that_can_be_written(dtype: torch.dtype, size: int) -> None:
    """Of the type of what it is like, also where there is nothing to keep."""
    found = zeros_apart(torch.ones(2, dtype=dtype), size)
    assert torch.equal(found, torch.zeros(size, dtype=dtype))
    found += 1
    assert torch.equal(found, torch.ones(size, dtype=dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's pages in /proc")
def test_what_is_kept_apart_goes_back_with_its_last_view() -> None:
    """64 MiB are there while a view of them is, and gone with it, whatever lies around them."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    view = zeros_apart(torch.zeros(1), 16 << 20).fill_(1.0)[:5]
    assert resident() - before > 60 << 20
    assert view.sum() == 5
    del view
    assert resident() - before < 4 << 20
