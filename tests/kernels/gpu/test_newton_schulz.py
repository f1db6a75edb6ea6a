"""The GPU kernel of `newton_schulz` equals the polynomial on singular values in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.newton_schulz import CUBIC, QUINTIC, gpu, reference

# What Triton 3.6's interpreter does at every `range` over a number that is not known ahead.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

Error = Callable[[torch.Tensor, torch.Tensor], float]

# float32 products are off by 1e-7 each, and 15 follow each other. In half precision the factors of every product are
# rounded, 5e-4 in float16, 4e-3 in bfloat16, and a quintic step multiplies what is off in a small singular value by up
# to 3.4: 2e-3 to 4e-3 was measured in float16, 3e-3 to 5e-3 in torch's own form.
LIMITS = {torch.float32: 2e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}
TYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
# Sides around 16, 32, 64 and 128, which kernels are compiled for, and larger sides around a tile's 32 columns.
SHAPES = [(1, 1), (1, 40), (15, 31), (16, 32), (33, 17), (31, 70), (64, 63), (65, 66), (128, 128), (150, 20)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_polynomial_on_singular_values(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, relative_error: Error
) -> None:
    """Wide, tall and square matrices, at tails of every block."""
    # The interpreter takes seconds a step for large matrices; what a step does is the same in each.
    num_matrices, num_steps = (2, 5) if min(shape) <= 64 else (1, 2)
    matrix = torch.randn(num_matrices, *shape, device=device).to(dtype)
    found = gpu.newton_schulz(matrix, num_steps, QUINTIC)
    assert found.dtype == dtype
    assert relative_error(found, reference.newton_schulz(matrix.cpu(), num_steps)) < LIMITS[dtype]


def test_correlated_rows_equal_the_polynomial(device: torch.device, relative_error: Error) -> None:
    """Rows that are nearly the same leave small singular values, which the Gram matrix would lose by itself."""
    matrix = torch.randn(1, 1, 48) + 0.1 * torch.randn(2, 20, 48)
    found = gpu.newton_schulz(matrix.to(device), 5, QUINTIC)
    # What is rounded in the large value is multiplied by up to 3.4 a step where values are small: 500 in five steps.
    assert relative_error(found, reference.newton_schulz(matrix)) < 1e-5


def test_other_coefficients_and_counts(device: torch.device, relative_error: Error) -> None:
    """The cubic, and a single step."""
    matrix = torch.randn(3, 12, 20)
    for num_steps in (1, 12):
        found = gpu.newton_schulz(matrix.to(device), num_steps, CUBIC)
        assert relative_error(found, reference.newton_schulz(matrix, num_steps, CUBIC)) < LIMITS[torch.float32]


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rows_take_the_matrices_of_their_slots(index: torch.dtype, device: torch.device, relative_error: Error) -> None:
    """Matrices that lie in a pool of longer rows; zeros without a slot, NaN for one beyond the pool."""
    pool = torch.full((5, 700), 1e30)
    pool[[3, 1], 20:620] = torch.randn(2, 600)
    matrices = pool.to(device)[:, 20:620].view(5, 20, 30)
    slots = torch.tensor([3, -1, 1, 5], dtype=index, device=device)
    found = gpu.newton_schulz(matrices, 5, QUINTIC, slots).cpu()
    assert relative_error(found[[0, 2]], reference.newton_schulz(matrices[[3, 1]].cpu())) < LIMITS[torch.float32]
    assert not found[1].any() and bool(found[3].isnan().all())


def test_zeros_stay_zero_and_nan_stays_at_home(device: torch.device) -> None:
    """A matrix of zeros, one with NaN and one beside them."""
    matrix = torch.zeros(3, 6, 9, device=device)
    matrix[1, 2, 3] = torch.nan
    matrix[2] = torch.randn(6, 9)
    found = gpu.newton_schulz(matrix, 5, QUINTIC)
    assert not found[0].any() and bool(found[1].isnan().all()) and bool(found[2].isfinite().all())


def test_any_leading_dimensions(device: torch.device) -> None:
    """None, several, and one of no matrices."""
    matrix = torch.randn(2, 3, 5, 4, device=device)
    found = gpu.newton_schulz(matrix, 3, QUINTIC)
    assert torch.equal(found[1, 2], gpu.newton_schulz(matrix[1, 2], 3, QUINTIC))
    assert gpu.newton_schulz(matrix[:0], 3, QUINTIC).shape == (0, 3, 5, 4)
