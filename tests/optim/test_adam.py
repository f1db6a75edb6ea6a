"""Adam and AdamW against torch, and Adam as the optimum of the regression of NL eq. 101."""

from __future__ import annotations

import pytest
import torch

from hope_server.optim.adam import Adam, AdamW

STEPS, WIDTH, LR, BETAS = 8, 7, 0.03, (0.8, 0.95)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_and_adamw_equal_torchs(decay: float) -> None:
    """Over several steps from random weights, with and without decoupled decay."""
    weights = torch.randn(1, WIDTH, dtype=torch.float64)
    leaf = weights[0].clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=LR, betas=BETAS, eps=1e-8, weight_decay=decay)
    rule = AdamW(LR, BETAS, weight_decay=decay) if decay else Adam(LR, BETAS)
    state = rule.init(weights)
    for number in range(1, STEPS + 1):
        gradient = torch.randn(WIDTH, dtype=torch.float64)
        leaf.grad = gradient.clone()
        optimizer.step()
        change, state = rule.update(state, gradient[None], torch.tensor([number]), weights)
        weights = weights + change
        # The same operations, but for the order in which the bias corrections divide.
        torch.testing.assert_close(weights[0], leaf.detach(), rtol=1e-12, atol=1e-14)


def test_the_first_step_of_adam_is_the_learning_rate() -> None:
    """Adam's first step has size lr in every weight, whatever the size of the gradient; no gradient gives no step."""
    gradient = torch.tensor([[1e-3, -5.0, 0.0]], dtype=torch.float64)
    rule = Adam(LR, BETAS)
    change, _ = rule.update(rule.init(gradient), gradient, torch.tensor([1]))
    # epsilon 1e-8 against a gradient of 1e-3.
    torch.testing.assert_close(change, torch.tensor([[-LR, LR, 0.0]], dtype=torch.float64), rtol=1.1e-5, atol=0)


def regression(gradients: torch.Tensor, beta: float, target: torch.Tensor) -> torch.Tensor:
    """argmin over M [P] of sum_i beta^(n - i) (M g_i - target)^2, by least squares, entry by entry."""
    roots = (beta ** torch.arange(len(gradients) - 1, -1, -1, dtype=torch.float64)).sqrt()
    columns = []
    for entry in range(gradients.shape[1]):
        keys, values = roots * gradients[:, entry], roots * target[entry]
        columns.append(torch.linalg.lstsq(keys[:, None], values[:, None]).solution[0, 0])
    return torch.stack(columns)


def test_adam_is_the_optimal_element_wise_memory_that_maps_gradients_to_their_spread() -> None:
    """With one beta for both moments, every step of Adam is -lr times the minimiser of NL eq. 101, P of eq. 105."""
    beta, gradients = 0.9, torch.randn(STEPS, WIDTH, dtype=torch.float64)
    rule = Adam(LR, (beta, beta), epsilon=0.0)
    state = rule.init(gradients[:1])
    for number in range(1, STEPS + 1):
        change, state = rule.update(state, gradients[number - 1 : number], torch.tensor([number]))
        seen = gradients[:number]
        shares = beta ** torch.arange(number - 1, -1, -1, dtype=torch.float64)
        spread = ((shares[:, None] * seen.square()).sum(0) / shares.sum()).sqrt()
        torch.testing.assert_close(change[0], -LR * regression(seen, beta, spread), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "power", "beta"), [("first_moment", 1, BETAS[0]), ("second_moment", 2, BETAS[1])])
def test_each_moment_is_the_optimal_constant_memory_of_its_sums(name: str, power: int, beta: float) -> None:
    """argmin_c of sum_i beta^(n - i) (c - g_i^p)^2 is the unbiased running mean that Adam keeps (NL eq. 102)."""
    rule, gradients = Adam(LR, BETAS), torch.randn(STEPS, WIDTH, dtype=torch.float64)
    state = rule.init(gradients[:1])
    for number in range(1, STEPS + 1):
        _, state = rule.update(state, gradients[number - 1 : number], torch.tensor([number]))
    roots = (beta ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)).sqrt()[:, None]
    optimum = torch.linalg.lstsq(roots, roots * gradients**power).solution[0]
    torch.testing.assert_close(state[name][0] / (1 - beta**STEPS), optimum, rtol=1e-11, atol=0)


def test_a_memory_of_the_squares_themselves_is_momentum() -> None:
    """With the mean of squares as P and no ridge, the optimum is the mean gradient: momentum (NL eq. 104)."""
    beta, gradients = 0.9, torch.randn(STEPS, WIDTH, dtype=torch.float64)
    shares = beta ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)[:, None]
    squares = (shares * gradients.square()).sum(0) / shares.sum()
    mean = (shares * gradients).sum(0) / shares.sum()
    torch.testing.assert_close(regression(gradients, beta, squares), mean, rtol=1e-10, atol=1e-14)
