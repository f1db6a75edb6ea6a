"""Newton-Schulz against singular values, and Muon against torch's and as a non-linear output of linear memory."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.newton_schulz import CUBIC, newton_schulz

from hope_server.optim.deep import NonLinearOutput
from hope_server.optim.gradient import Momentum
from hope_server.optim.muon import Muon

STEPS, LR, BETA = 6, 0.03, 0.8


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)])
def test_the_cubic_iteration_converges_to_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    """Many steps give U V^T of the singular value decomposition, for wide, tall and square matrices."""
    matrix = torch.randn(2, *shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(newton_schulz(matrix, 60, CUBIC), left @ right, rtol=0, atol=1e-10)


def test_a_cubic_step_is_gradient_descent_on_the_distance_from_orthogonality() -> None:
    """One step is O - 1/8 of the gradient of ||O^T O - I||^2 (NL eq. 43-44)."""
    matrix = torch.randn(5, 4, dtype=torch.float64)
    matrix /= matrix.norm()
    leaf = matrix.clone().requires_grad_()
    distance = (leaf.T @ leaf - torch.eye(4, dtype=torch.float64)).square().sum()
    expected = matrix - torch.autograd.grad(distance, leaf)[0] / 8
    torch.testing.assert_close(newton_schulz(matrix, 1, CUBIC), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (16, 16)])
def test_five_quintic_steps_bring_singular_values_near_one(shape: tuple[int, int]) -> None:
    """Directions are kept, and every singular value above a hundredth of the norm ends between 0.6 and 1.3."""
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > values.norm() / 100
    inner = left.T @ newton_schulz(matrix) @ right.T
    sizes = inner.diagonal()[kept]
    assert bool(((sizes > 0.6) & (sizes < 1.3)).all())
    assert float((inner - torch.diag(inner.diagonal())).abs().max()) < 1e-12


def test_the_size_of_a_matrix_does_not_matter() -> None:
    """Orthogonalisation sees directions alone."""
    matrix = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(1e-3 * matrix), newton_schulz(1e3 * matrix), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", ["original", "rms"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_muon_equals_torchs(scale: str, nesterov: bool, shape: tuple[int, int]) -> None:
    """The same weights after several steps, to the bfloat16 in which torch orthogonalises."""
    weights = torch.randn(1, *shape)
    leaf = weights[0].clone().requires_grad_()
    optimizer = torch.optim.Muon(
        [leaf],
        lr=LR,
        weight_decay=0.0,
        momentum=BETA,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw" if scale == "rms" else "original",
    )
    rule = Muon(LR, BETA, nesterov, scale=scale)  # type: ignore[arg-type]
    state = rule.init(weights)
    for number in range(1, STEPS + 1):
        gradient = torch.randn(shape)
        leaf.grad = gradient.clone()
        optimizer.step()
        change, state = rule.update(state, gradient[None], torch.tensor([number]))
        weights = weights + change
    # Entries of an orthogonal matrix are at most 1; bfloat16 keeps 8 bits of them through five steps.
    torch.testing.assert_close(weights[0], leaf.detach(), rtol=0, atol=STEPS * LR * 0.03)


def test_muon_is_the_plain_loop_in_float64() -> None:
    """Running mean, look-ahead, five quintic steps written out, scale (NL eq. 42)."""
    rule, shape = Muon(LR, BETA), (3, 5)
    state, mean = rule.init(torch.zeros(1, *shape, dtype=torch.float64)), torch.zeros(shape, dtype=torch.float64)
    for number in range(1, STEPS + 1):
        gradient = torch.randn(shape, dtype=torch.float64)
        mean = BETA * mean + (1 - BETA) * gradient
        x = BETA * mean + (1 - BETA) * gradient
        x = x / x.square().sum().sqrt()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        change, state = rule.update(state, gradient[None], torch.tensor([number]))
        torch.testing.assert_close(change[0], -LR * 0.2 * 5**0.5 * x, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", ["ema", "accumulating"])
def test_muon_is_newton_schulz_on_the_output_of_linear_memory(form: str) -> None:
    """NL eq. 52 with a linear memory and Newton-Schulz as non-linearity is Muon without look-ahead."""
    memory = Momentum(1.0, BETA, form)  # type: ignore[arg-type]
    left, right = NonLinearOutput(LR, memory), Muon(LR, BETA, is_nesterov=False)
    zeros = torch.zeros(2, 4, 6, dtype=torch.float64)
    ours, theirs = left.init(zeros), right.init(zeros)
    for number in range(1, STEPS + 1):
        gradient, steps = torch.randn_like(zeros), torch.full((2,), number)
        found, ours = left.update(ours, gradient, steps)
        expected, theirs = right.update(theirs, gradient, steps)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
