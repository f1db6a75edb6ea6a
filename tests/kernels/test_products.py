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
    """A few decoded tokens keep torch's default."""
    before = torch.get_float32_matmul_precision()
    with products.fast_products(products.FEWEST_TOKENS - 1):
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


SIZES = (1, 2, 5, 6, 15, 16, 17, 32, 33, 129)


@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("tokens", SIZES)
def test_a_product_is_the_same_in_every_form(monkeypatch: pytest.MonkeyPatch, tokens: int, has_onednn: bool) -> None:
    """By rows or columns, with the weight first or not, of one token made two: off by what float32 rounds."""
    monkeypatch.setattr(products, "_uses_onednn", lambda: has_onednn)
    generator = torch.Generator().manual_seed(tokens)
    x, weight = torch.randn(tokens, 96, generator=generator), torch.randn(70, 96, generator=generator)
    exact = x.double() @ weight.double().T
    before = torch.get_float32_matmul_precision()
    for form in (products.product, products.product_in_rows):
        found = form(x, weight)
        torch.testing.assert_close(form(x.T.contiguous().T, weight), found, rtol=1e-5, atol=1e-5)
        assert found.shape == exact.shape
        assert float((found.double() - exact).norm() / exact.norm()) < 2e-6
        assert torch.allclose(form(x.double(), weight.double()), exact, rtol=1e-13, atol=1e-13)
        rounded = form(x.bfloat16(), weight.bfloat16())
        assert rounded.dtype == torch.bfloat16
        assert float((rounded.double() - exact).norm() / exact.norm()) < 1e-2
    assert products.product_in_rows(x, weight).is_contiguous()
    assert torch.get_float32_matmul_precision() == before


def test_gradients_pass_through_every_form() -> None:
    """What a chunk's learning needs: the gradient of x, whatever the form."""
    for tokens in SIZES:
        x, weight = torch.randn(tokens, 12, requires_grad=True), torch.randn(7, 12)
        for form in (products.product, products.product_in_rows):
            (found,) = torch.autograd.grad(form(x, weight).square().sum(), x)
            wanted = 2 * (x.detach() @ weight.T) @ weight
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 15, 16, 33])
def test_products_of_pairs_are_those_of_each(tokens: int) -> None:
    """Keys and values that lie in a longer ring, transposed or not; gradients pass."""
    left, ring = torch.randn(2, 3, tokens, 24, requires_grad=True), torch.randn(2, 3, 50, 24)
    for right in (ring[:, :, :40], ring[:, :, :24].transpose(2, 3)):
        wanted = torch.einsum("abnk,abmk->abnm", left.detach().double(), right.double())
        for given in (left, left.detach()):
            found = products.product_of_pairs(given, right)
            assert float((found.detach().double() - wanted).norm() / wanted.norm()) < 2e-6
        (slope,) = torch.autograd.grad(products.product_of_pairs(left, right).sum(), left)
        assert torch.allclose(slope, right.sum(2, keepdim=True).expand_as(left), rtol=1e-4, atol=1e-4)
