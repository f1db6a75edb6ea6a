"""`newton_schulz`: the torch form against the polynomial on singular values, its gradients, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.newton_schulz import CUBIC, QUINTIC, newton_schulz, reference

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (15, 16), (17, 16), (3, 100), (129, 4)]


@pytest.mark.parametrize("coefficients", [QUINTIC, CUBIC])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_polynomial_on_singular_values(
    shape: tuple[int, int], coefficients: tuple[float, float, float]
) -> None:
    """Wide, tall and square matrices, those of one row or column and long ones."""
    matrix = torch.randn(3, *shape, dtype=torch.float64)
    found = newton_schulz(matrix, 5, coefficients)
    # Each step of the quintic multiplies float64's rounding by up to 3.5; five steps, and room for 100 summands.
    torch.testing.assert_close(found, reference.newton_schulz(matrix, 5, coefficients), rtol=0, atol=1e-11)


def test_no_steps_scale_to_a_norm_of_one() -> None:
    """The matrix over its Frobenius norm is where the steps begin."""
    matrix = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = matrix / matrix.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(newton_schulz(matrix, 0), expected, rtol=1e-14, atol=0)


def test_zeros_stay_zero() -> None:
    """A matrix that saw no gradient has no direction to go."""
    assert not newton_schulz(torch.zeros(2, 3, 4)).any()


def test_singular_values_end_near_one() -> None:
    """Five quintic steps bring what is above a thousandth of the norm to between 0.6 and 1.3."""
    left, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    matrix = left * torch.tensor([1.0, 0.5, 0.1, 0.05, 0.02, 0.01], dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(matrix))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_gradients_are_those_of_finite_differences() -> None:
    """The torch form is differentiable, in wide and tall matrices, also through a slot."""
    matrix = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    slots = torch.tensor([1, -1, 0])
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x, 2), (matrix,))
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x.mT, 2, CUBIC), (matrix,))
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x, 1, slots=slots), (matrix,))


def test_rows_take_the_matrices_of_their_slots() -> None:
    """A row's answer is that of its slot's matrix alone, and zeros for a row without a slot."""
    pool = torch.randn(4, 3, 5, dtype=torch.float64)
    pool[0] = torch.nan
    found = newton_schulz(pool, slots=torch.tensor([2, -1, 3], dtype=torch.int32))
    expected = torch.stack([newton_schulz(pool[2]), torch.zeros(3, 5, dtype=torch.float64), newton_schulz(pool[3])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_matrix_does_not_see_another() -> None:
    """NaN in one matrix stays there."""
    matrix = torch.randn(2, 3, 4)
    matrix[0] = torch.nan
    found = newton_schulz(matrix)
    assert bool(found[0].isnan().all()) and bool(found[1].isfinite().all())


@pytest.mark.parametrize(
    ("matrix", "options", "name"),
    [
        (torch.zeros(3), {}, "matrix"),
        (torch.zeros(3, 4, dtype=torch.int32), {}, "matrix"),
        (torch.zeros(3, 4), {"num_steps": -1}, "num_steps"),
        (torch.zeros(3, 4), {"coefficients": (1.0, 2.0)}, "coefficients"),
        (torch.zeros(3, 4), {"slots": torch.tensor([0])}, "matrix"),
        (torch.zeros(2, 3, 4), {"slots": torch.tensor([2])}, "slots"),
    ],
)
def test_arguments_that_do_not_fit_are_named(matrix: torch.Tensor, options: dict[str, object], name: str) -> None:
    """No shape or number is taken for another."""
    with pytest.raises(ValueError, match=f"^{name}: "):
        newton_schulz(matrix, **options)
