"""The choice of the library for float32 products: it is exact, it is undone, and it does not touch few tokens."""

from __future__ import annotations

import pytest
import torch
from hope_kernels import products


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which oneDNN is taken, whatever this one is."""
    monkeypatch.setattr(products, "_uses_onednn", lambda: True)


def test_many_tokens_take_it_and_give_it_back() -> None:
    """Inside the precision is oneDNN's, afterwards what it was, also after an error."""
    before = torch.get_float32_matmul_precision()
    with products.fast_products(16):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), products.fast_products(64):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


def test_few_tokens_do_not() -> None:
    """A decoded token keeps torch's default."""
    before = torch.get_float32_matmul_precision()
    with products.fast_products(15):
        assert torch.get_float32_matmul_precision() == before


def test_other_processors_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the probe or the processor says no, nothing changes."""
    monkeypatch.setattr(products, "_uses_onednn", lambda: False)
    before = torch.get_float32_matmul_precision()
    with products.fast_products(64):
        assert torch.get_float32_matmul_precision() == before


def test_the_probe_finds_rounded_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors rounded to bfloat16 are off by a thousand times what float32 is."""
    exact = products.onednn_error()
    product = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float64:
            return product(left, right)
        return product(left.bfloat16().float(), right.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert products.onednn_error() > products.LARGEST_ERROR
    assert products.onednn_error() > 100 * exact
