"""The blocked inverse of unit lower triangular matrices: exact at every size, differentiable twice, never a series."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory.triangle import MANY_COLUMNS, solve, unit_lower_inverse
from memory_cases import EXACT, draw, draw_keys


def couplings(size: int, lr: float, correlation: float) -> torch.Tensor:
    """What a chunk of keys couples at this step size, its upper half left full."""
    keys = draw_keys(3, size, 24, correlation=correlation)
    return lr * keys @ keys.mT


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 33, 48, 64, 65, 128])
@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_the_inverse_is_exact_at_any_size(size: int, correlation: float) -> None:
    """Times the matrix it is the identity, at full steps along keys as alike as can be; the upper half is not read."""
    coupling = couplings(size, 1.0, correlation)
    unit = torch.eye(size, dtype=torch.float64) + coupling.tril(-1)

    inverse = unit_lower_inverse(coupling)
    torch.testing.assert_close(inverse @ unit, torch.eye(size, dtype=torch.float64).expand_as(unit), **EXACT)
    assert torch.equal(inverse, inverse.tril())
    is_read = torch.ones(size, size, dtype=torch.bool).tril(-1)
    assert torch.equal(unit_lower_inverse(torch.where(is_read, coupling, torch.nan)), inverse)


@pytest.mark.parametrize("size", [1, 3, 16, 40])
@pytest.mark.parametrize("num_columns", [5, MANY_COLUMNS])
@pytest.mark.parametrize("num_systems", [1, 3])
def test_both_ways_solve_with_the_gradient_of_substitution(size: int, num_columns: int, num_systems: int) -> None:
    """Few columns or many, a triangle for each of three or one for all: solution and gradients are those of torch."""
    coupling, right, above = (
        couplings(size, 0.7, 0.9)[:num_systems],
        draw(3, size, num_columns),
        draw(3, size, num_columns),
    )
    ours, theirs = ([leaf.clone().requires_grad_() for leaf in (coupling, right)] for _ in range(2))
    unit = torch.eye(size, dtype=torch.float64) + theirs[0].tril(-1)
    expected = torch.linalg.solve_triangular(unit, theirs[1], upper=False, unitriangular=True)
    found = solve(*ours)

    torch.testing.assert_close(found, expected, **EXACT)
    gradients = torch.autograd.grad(found, ours, above, materialize_grads=True)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, theirs, above), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("num_columns", [5, MANY_COLUMNS])
def test_what_is_not_below_the_diagonal_is_not_read(num_columns: int) -> None:
    """NaN on and above the diagonal reaches neither solution."""
    coupling, right = couplings(20, 0.7, 0.9), draw(3, 20, num_columns)
    is_read = torch.ones(20, 20, dtype=torch.bool).tril(-1)
    assert torch.equal(solve(torch.where(is_read, coupling, torch.nan), right), solve(coupling, right))


def test_it_can_be_differentiated_twice() -> None:
    """An outer gradient through an inner one, which a level's learned start needs, is that of finite differences."""
    coupling = couplings(4, 0.7, 0.5).requires_grad_()
    assert torch.autograd.gradcheck(unit_lower_inverse, (coupling,))
    assert torch.autograd.gradgradcheck(unit_lower_inverse, (coupling,))


def test_function_transforms_pass_through() -> None:
    """torch.func's grad and vmap give what a loop of autograd gives."""
    coupling = couplings(18, 0.7, 0.5)
    leaf = coupling.clone().requires_grad_()
    expected = torch.autograd.grad(unit_lower_inverse(leaf).square().sum(), leaf)[0]

    actual = torch.func.vmap(torch.func.grad(lambda one: unit_lower_inverse(one).square().sum()))(coupling)
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("lr", [0.5, 1.0])
@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_float32_loses_no_more_than_substitution(size: int, lr: float, correlation: float) -> None:
    """Against float64, solving by the blocked inverse is as exact as forward substitution over the whole matrix."""
    coupling, right = couplings(size, lr, correlation), draw(3, size, 24)
    eye = torch.eye(size, dtype=torch.float64)
    exact = torch.linalg.solve_triangular(eye + coupling.tril(-1), right, upper=False, unitriangular=True)

    low = coupling.float()
    substituted = torch.linalg.solve_triangular(low, right.float(), upper=False, unitriangular=True)
    blocked = unit_lower_inverse(low) @ right.float()
    ours, theirs = (((found.double() - exact).norm() / exact.norm()).item() for found in (blocked, substituted))
    # Twice, for rounding falls one way or the other; a series of powers is off by 41 here, not by 1e-7.
    assert ours < 2 * theirs < 1e-5
