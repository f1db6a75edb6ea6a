"""The GPU kernels of `fast_linear` equal the token-by-token reference in float64, for one token and for many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.fast_linear import gpu, reference

# What Triton 3.6's interpreter does at every `range` over a number that is not known ahead.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

Error = Callable[[torch.Tensor, torch.Tensor], float]

# Sums of up to 200 products in float32, 1e-7; in half precision the outputs and the low-rank middle are rounded once.
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BFLOAT16 = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)
# Tokens, inputs, outputs, rank: one token and many; tiles of 32 tokens, 32 or 128 inputs, 16, 32 or 64 outputs and 16
# ranks, filled, less one and more one.
SIZES = [
    (1, 1, 1, 1),
    (1, 127, 15, 15),
    (1, 128, 16, 16),
    (1, 129, 33, 17),
    (2, 1, 1, 1),
    (31, 31, 31, 15),
    (32, 32, 64, 16),
    (33, 65, 65, 33),
]
SLOTS = [3, -1, 0]


def draw(device: torch.device, dtype: torch.dtype, own: torch.dtype, tokens: int, inputs: int, outputs: int, rank: int):
    """x [3, T, I], base [O, I], and pools of 5 slots in longer rows, those that no row owns full of 1e30."""
    x, base = torch.randn(3, tokens, inputs), torch.randn(outputs, inputs)
    pools = []
    for shape in ((outputs, inputs), (rank, inputs), (outputs, rank)):
        flat = torch.full((5, 7 + shape[0] * shape[1]), 6e4 if own == torch.float16 else 1e30)
        flat[[0, 3], 7:] = torch.randn(2, shape[0] * shape[1])
        pools.append(flat.to(device, own)[:, 7:].view(5, *shape))
    return x.to(device, dtype), base.to(device, dtype), *pools


def exact(dtype: torch.dtype, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """In float64, as the products' type holds them."""
    return [tensor.cpu().to(dtype).double() for tensor in tensors]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("own", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16])
def test_base_and_deltas_equal_the_reference(
    dtype: torch.dtype, own: str, size: tuple[int, int, int, int], device: torch.device, relative_error: Error
) -> None:
    """Together, each beside the base, and each alone; the row without a slot gets the base, or zeros."""
    x, base, w, a, b = draw(device, dtype, dtype if own == "same" else torch.float32, *size)
    slots = torch.tensor(SLOTS, device=device)
    x_, base_, w_, a_, b_ = exact(dtype, x, base, w, a, b)
    for dense, low_rank in ((True, True), (True, False), (False, True)):
        found = gpu.fast_linear(x, base, w if dense else None, (a, b) if low_rank else None, slots)
        wanted = reference.fast_linear(
            x_, base_, w_ if dense else None, (a_, b_) if low_rank else None, torch.tensor(SLOTS)
        )
        assert found.dtype == dtype and relative_error(found, wanted) < LIMITS[dtype]
    alone = gpu.fast_linear(x, None, w, None, slots)
    assert relative_error(alone, reference.dense_delta(x_, w_, torch.tensor(SLOTS))) < LIMITS[dtype]
    ranked = gpu.fast_linear(x, None, None, (a, b), slots)
    assert relative_error(ranked, reference.low_rank_delta(x_, a_, b_, torch.tensor(SLOTS))) < LIMITS[dtype]
    assert not alone[1].any() and not ranked[1].any()


@pytest.mark.parametrize("tokens", [1, 5])
def test_without_slots_rows_own_weights_or_share_one(tokens: int, device: torch.device, relative_error: Error) -> None:
    """Row i owns weight i; one row of weights serves all."""
    x, w = torch.randn(3, tokens, 20, device=device), torch.randn(3, 9, 20, device=device)
    for weight in (w, w[1:2]):
        wanted = reference.dense_delta(*exact(torch.float32, x, weight.expand(3, -1, -1)))
        assert relative_error(gpu.fast_linear(x, None, weight, None, None), wanted) < LIMITS[torch.float32]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_slot_beyond_the_pool_answers_nan(tokens: int, device: torch.device) -> None:
    """It does not pass for an answer, and the rows beside it have theirs."""
    x, base, w, a, b = draw(device, torch.float32, torch.float32, tokens, 20, 10, 4)
    found = gpu.fast_linear(x, base, w, (a, b), torch.tensor([0, 5, 3], dtype=torch.int32, device=device))
    assert bool(found[1].isnan().all()) and bool(found[[0, 2]].isfinite().all())


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_row_does_not_depend_on_the_others(tokens: int, device: torch.device) -> None:
    """Bit for bit, whatever stands in other rows and their weights."""
    x, base, w, a, b = draw(device, torch.float32, torch.float32, tokens, 20, 10, 4)
    w[4], a[4], b[4] = 1.0, 1.0, 1.0
    slots = torch.tensor([3, 4, 0], device=device)
    before = gpu.fast_linear(x, base, w, (a, b), slots)[0]
    w[4], a[4], x[2] = torch.nan, torch.nan, torch.nan
    assert torch.equal(gpu.fast_linear(x, base, w, (a, b), slots)[0], before)


def test_turned_weights_are_refused_and_turned_inputs_taken(device: torch.device, relative_error: Error) -> None:
    """Inputs of a weight must lie side by side; those of x are brought there."""
    x, w = torch.randn(2, 6, 4, device=device), torch.randn(2, 5, 6, device=device)
    wanted = reference.dense_delta(*exact(torch.float32, x.mT, w))
    assert relative_error(gpu.fast_linear(x.mT, None, w, None, None), wanted) < LIMITS[torch.float32]
    with pytest.raises(ValueError, match=r"^w: must have its inputs side by side"):
        gpu.fast_linear(x.mT, None, torch.randn(2, 6, 5, device=device).mT, None, None)


def test_no_tokens_make_no_outputs(device: torch.device) -> None:
    """Nothing is launched."""
    x, w = torch.zeros(2, 0, 4, device=device), torch.zeros(2, 3, 4, device=device)
    assert gpu.fast_linear(x, None, w, None, None).shape == (2, 0, 3)
