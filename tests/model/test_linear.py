"""Products with rounded weights: factors in bfloat16, everything around them in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hope_server.model.linear import linear, linear_in_columns

DRAWN = torch.Generator().manual_seed(3)
X, WEIGHT = torch.randn(2, 5, 96, generator=DRAWN), torch.randn(40, 96, generator=DRAWN)
# Eight bits of mantissa in both factors and in the product.
HALF_ERROR = 1e-2


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_weights_that_are_not_rounded_are_multiplied_as_ever() -> None:
    """What torch gives, by rows and by columns."""
    for form in (linear, linear_in_columns):
        assert torch.allclose(form(X, WEIGHT), functional.linear(X, WEIGHT), rtol=1e-5, atol=1e-5)
        assert form(X.double(), WEIGHT.double()).dtype == torch.float64


def test_rounded_weights_give_a_product_near_the_exact_one_in_the_dtype_of_x() -> None:
    """It is off by what bfloat16 rounds, no more and not nothing."""
    found = linear(X, WEIGHT.bfloat16())
    assert found.dtype == torch.float32
    assert 1e-4 < _error(found, X.double() @ WEIGHT.double().T) < HALF_ERROR


def test_gradients_pass_through_rounded_weights() -> None:
    """In the dtype of x, near those of exact weights: what online levels below a block learn from."""
    x = X.clone().requires_grad_()
    linear(x, WEIGHT.bfloat16()).square().sum().backward()
    exact = X.double().clone().requires_grad_()
    functional.linear(exact, WEIGHT.double()).square().sum().backward()
    assert x.grad is not None and exact.grad is not None
    assert x.grad.dtype == torch.float32
    assert _error(x.grad, exact.grad) < HALF_ERROR


@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT.bfloat16()])
def test_under_autocast_a_product_stays_as_torch_makes_it(weight: torch.Tensor) -> None:
    """Studies round everything themselves; casting back would only cost."""
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(X, weight), functional.linear(X, weight))
        assert linear(X, weight).dtype == torch.bfloat16
