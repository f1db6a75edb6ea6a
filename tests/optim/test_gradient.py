"""Gradient descent and the momenta of NL eq. 32-51 against torch, their inner objectives and plain loops."""

from __future__ import annotations

import pytest
import torch

from hope_server.optim.gradient import FeatureMomentum, GradientDescent, Momentum, PreconditionedMomentum
from hope_server.optim.rules import UpdateRule

STEPS, SHAPE, LR, BETA = 6, (3, 5), 0.03, 0.8


def changes(rule: UpdateRule, gradients: torch.Tensor) -> list[torch.Tensor]:
    """The change of one row at each gradient [n, ...]."""
    state, out = rule.init(gradients[:1]), []
    for number, gradient in enumerate(gradients, start=1):
        change, state = rule.update(state, gradient[None], torch.tensor([number]))
        out.append(change[0])
    return out


def gradients_of() -> torch.Tensor:
    """A few random gradients."""
    return torch.randn(STEPS, *SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, BETA])
def test_printed_momentum_is_torchs_sgd(momentum: float) -> None:
    """NL eq. 32 and 33 as printed are torch's SGD without and with momentum."""
    gradients = gradients_of()
    leaf = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=LR, momentum=momentum)
    rule = Momentum(LR, momentum, "accumulating") if momentum else GradientDescent(LR)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for gradient, change in zip(gradients, changes(rule, gradients), strict=True):
        leaf.grad = gradient.clone()
        optimizer.step()
        total += change
        torch.testing.assert_close(total, leaf.detach(), rtol=1e-13, atol=1e-15)


def test_the_running_mean_is_printed_momentum_over_the_sum_of_the_kept_shares() -> None:
    """The default form is the same direction, divided by 1 + beta + ... + beta^(n-1)."""
    gradients = gradients_of()
    printed = changes(Momentum(LR, BETA, "accumulating"), gradients)
    for number, (mean, total) in enumerate(zip(changes(Momentum(LR, BETA), gradients), printed, strict=True)):
        shares = sum(BETA**age for age in range(number + 1))
        torch.testing.assert_close(mean, total / shares, rtol=1e-13, atol=0)


def test_printed_momentum_descends_its_inner_objective() -> None:
    """Each step is gradient descent on <m, g> plus half (1 - beta) / lr of ||m||^2 (NL eq. 34)."""
    memory = torch.zeros(SHAPE, dtype=torch.float64)
    gradients = gradients_of()
    for gradient, change in zip(gradients, changes(Momentum(LR, BETA, "accumulating"), gradients), strict=True):
        leaf = memory.clone().requires_grad_()
        objective = (leaf * gradient).sum() + (1 - BETA) / (2 * LR) * leaf.square().sum()
        memory = memory - LR * torch.autograd.grad(objective, leaf)[0]
        torch.testing.assert_close(change, memory, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", ["ema", "accumulating"])
def test_preconditioned_momentum_is_the_plain_loop(form: str) -> None:
    """`m <- beta m - lr P g` entry by entry, P one over the root of the weighted mean of squares (NL eq. 47)."""
    gradients = gradients_of()
    found = changes(PreconditionedMomentum(LR, (BETA, 0.95), form), gradients)  # type: ignore[arg-type]
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            memory = squares = shares = kept = 0.0
            for number, gradient in enumerate(gradients[:, row, column].tolist()):
                squares, shares = 0.95 * squares + gradient**2, 0.95 * shares + 1
                memory = BETA * memory - LR * gradient / ((squares / shares) ** 0.5 + 1e-8)
                kept = BETA * kept + 1
                expected = memory / kept if form == "ema" else memory
                assert found[number][row, column].item() == pytest.approx(expected, rel=1e-11)


def test_feature_momentum_is_the_plain_loop() -> None:
    """`m <- beta m - lr P phi(g)` entry by entry, phi signed powers of the gradient over its size (NL eq. 51)."""
    gradients = gradients_of()
    found = changes(FeatureMomentum(LR, BETA, (0.5, 3.0), (0.7, 0.3), "accumulating"), gradients)
    memory = torch.zeros(SHAPE, dtype=torch.float64)
    for change, gradient in zip(found, gradients, strict=True):
        size = float(gradient.square().mean()) ** 0.5
        for row in range(SHAPE[0]):
            for column in range(SHAPE[1]):
                z = float(gradient[row, column]) / size
                lifted = 0.7 * abs(z) ** 0.5 + 0.3 * abs(z) ** 3
                memory[row, column] = BETA * memory[row, column] - LR * (lifted if z > 0 else -lifted)
        torch.testing.assert_close(change, memory, rtol=1e-12, atol=1e-15)


def test_feature_momentum_with_the_identity_alone_is_momentum_of_the_scaled_gradient() -> None:
    """phi(g) = g over its size makes NL eq. 51 NL eq. 33."""
    gradients = gradients_of()
    scaled = gradients / gradients.square().mean(dim=(1, 2), keepdim=True).sqrt()
    lifted = changes(FeatureMomentum(LR, BETA, (1.0,), (1.0,)), gradients)
    for left, right in zip(lifted, changes(Momentum(LR, BETA), scaled), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("powers", "shares"), [((1.0,), ()), ((), ()), ((0.0,), (1.0,)), ((-1.0,), (1.0,))])
def test_features_that_cannot_be_are_refused(powers: tuple[float, ...], shares: tuple[float, ...]) -> None:
    """Every power is positive and has its share."""
    with pytest.raises(ValueError, match="must be positive, with one share each"):
        FeatureMomentum(LR, powers=powers, shares=shares)
