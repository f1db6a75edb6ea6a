"""Inner update rules against `torch.optim` in float64, row by row, and the two norms that bound a write."""

from __future__ import annotations

import pytest
import torch

from hope_server.optim import Moments, step
from hope_server.optim.rules import Rule, cap_drift, clip_norm

ROWS, WIDTH, STEPS, LR, BETAS = 3, 7, 6, 0.03, (0.8, 0.95)


def run_rule(rule: Rule, weights: torch.Tensor, gradients: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Weights [B, P] after all gradients [n, B, P]; row b skips the first offsets[b], as if it came later."""
    empty = torch.zeros(ROWS, 0 if rule == "sgd" else WIDTH, dtype=torch.float64)
    moments = Moments(empty, empty.clone() if rule == "adam" else empty[:, :0])
    counts = torch.zeros(ROWS, dtype=torch.long)
    for number, gradient in enumerate(gradients):
        rows = (offsets <= number)[:, None]
        change, new = step(rule, gradient, moments, counts + 1, LR, BETAS)
        weights = torch.where(rows, weights + change, weights)
        moments = Moments(torch.where(rows, new.first, moments.first), torch.where(rows, new.second, moments.second))
        counts += rows[:, 0]
    return weights


def run_torch(rule: Rule, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """What torch's own optimizer makes of one row [P]; `momentum` is its SGD on bias-corrected running means."""
    leaf = weights.clone().requires_grad_()
    if rule == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([leaf], lr=LR, betas=BETAS, eps=1e-8)
    elif rule == "momentum":
        optimizer = torch.optim.SGD([leaf], lr=LR * (1 - BETAS[0]), momentum=BETAS[0])
    else:
        optimizer = torch.optim.SGD([leaf], lr=LR)
    for number, gradient in enumerate(gradients, start=1):
        if rule == "momentum":
            # torch's buffer is the undecayed sum; the mean that is unbiased after n steps divides by 1 - beta^n.
            optimizer.param_groups[0]["lr"] = LR * (1 - BETAS[0]) / (1 - BETAS[0] ** number)
        leaf.grad = gradient.clone()
        optimizer.step()
    return leaf.detach()


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_a_rule_equals_torchs_optimizer_in_rows_that_began_at_different_times(rule: Rule) -> None:
    """Every row moves as an optimizer of its own would move it, whatever the count of its neighbours."""
    weights = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    gradients = torch.randn(STEPS, ROWS, WIDTH, dtype=torch.float64)
    offsets = torch.tensor([0, 2, 5])
    found = run_rule(rule, weights, gradients, offsets)
    for row, offset in enumerate(offsets.tolist()):
        expected = run_torch(rule, weights[row], gradients[offset:, row])
        # The same operations, but for the order in which the bias corrections divide.
        torch.testing.assert_close(found[row], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_a_row_does_not_see_the_gradient_of_another(rule: Rule) -> None:
    """A row whose gradient is NaN leaves the others' steps as they are, to the bit."""
    weights, gradients = torch.zeros(ROWS, WIDTH, dtype=torch.float64), torch.randn(2, ROWS, WIDTH, dtype=torch.float64)
    expected = run_rule(rule, weights, gradients, torch.zeros(ROWS, dtype=torch.long))
    gradients[:, 1] = torch.nan
    found = run_rule(rule, weights, gradients, torch.zeros(ROWS, dtype=torch.long))
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_a_step_leaves_its_arguments_as_they_were(rule: Rule) -> None:
    """Rules are pure: gradient and moments come out of the call unchanged."""
    size = 0 if rule == "sgd" else WIDTH
    gradient, first, second = torch.randn(2, WIDTH), torch.rand(2, size), torch.rand(2, size)
    kept = [tensor.clone() for tensor in (gradient, first, second)]
    step(rule, gradient, Moments(first, second), torch.tensor([1, 4]), LR, BETAS)
    assert all(torch.equal(now, then) for now, then in zip((gradient, first, second), kept, strict=True))


def test_the_first_step_of_adam_is_the_learning_rate() -> None:
    """Adam's first step has size lr in every weight, whatever the size of the gradient; no gradient gives no step."""
    gradient = torch.tensor([[1e-3, -5.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros_like(gradient)
    change, _ = step("adam", gradient, Moments(zeros, zeros), torch.tensor([1]), LR, BETAS)
    # epsilon 1e-8 against a gradient of 1e-3.
    torch.testing.assert_close(change, torch.tensor([[-LR, LR, 0.0]], dtype=torch.float64), rtol=1.1e-5, atol=0)


def test_cap_drift_pulls_back_only_rows_that_drifted_too_far() -> None:
    """A row within the cap keeps its bits; one beyond it ends at the cap, in its own direction from the start."""
    initial = torch.randn(WIDTH, dtype=torch.float64)
    direction = torch.randn(2, WIDTH, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    weights = initial + direction * torch.tensor([[1.9], [50.0]], dtype=torch.float64)
    capped = cap_drift(weights, initial, 2.0)
    assert torch.equal(capped[0], weights[0])
    torch.testing.assert_close(capped[1], initial + 2.0 * direction[1], rtol=0, atol=1e-13)


def test_cap_drift_keeps_weights_that_have_not_moved() -> None:
    """No drift at all is no division by zero."""
    initial = torch.randn(WIDTH)
    assert torch.equal(cap_drift(initial.expand(2, -1), initial, 1.0), initial.expand(2, -1))


def test_clip_norm_scales_each_row_by_its_own_norm() -> None:
    """Rows below the limit and rows of zeros are unchanged; a row above it comes down to the limit."""
    gradient = torch.tensor([[0.3, 0.4], [30.0, 40.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(clip_norm(gradient, 1.0), expected, rtol=1e-15, atol=0)
