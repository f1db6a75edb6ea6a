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


def test_halves_are_for_float32_on_processors_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products inside are rounded to bfloat16, of no other dtype, on no other processor, and not afterwards."""
    single, double = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float64)
    for has_halves in (True, False):
        monkeypatch.setattr(products, "_multiplies_halves", lambda has_halves=has_halves: has_halves)
        with products.half_products(torch.float32):
            assert (single @ single).dtype == (torch.bfloat16 if has_halves else torch.float32)
        with products.half_products(torch.float64):
            assert (double @ double).dtype == torch.float64
            assert (single @ single).dtype == torch.float32
        assert (single @ single).dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "half", "expected"),
    [
        ("fpu avx512_bf16 sse", "1", True),
        ("fpu amx_bf16", "1", True),
        ("fpu avx512f", "1", False),
        ("fpu avx512_bf16 sse", "0", False),
    ],
)
def test_who_multiplies_halves(flags: str, half: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's own flags say so; HOPE_HALF=0 rules it out."""
    monkeypatch.setattr(products, "_cpu_info", lambda: flags)
    monkeypatch.setenv("HOPE_HALF", half)
    products._processor_multiplies_halves.cache_clear()
    assert products._multiplies_halves() is expected
    products._processor_multiplies_halves.cache_clear()


def test_a_factor_is_rounded_to_what_products_round_it_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a factor which is used often can be rounded once, with the same products to the bit."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 40, generator=generator) for _ in range(2))
    for has_halves, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(products, "_multiplies_halves", lambda has_halves=has_halves: has_halves)
        assert products.factor_dtype(torch.float32) == expected
        assert products.factor_dtype(torch.float64) == torch.float64
        with products.half_products(torch.float32):
            assert torch.equal(left @ right, left @ right.to(expected))
