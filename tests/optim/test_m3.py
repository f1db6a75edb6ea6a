"""M3 against Algorithm 1 of NL written out, in its printed and in its decayed form."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.newton_schulz import newton_schulz

from hope_server.optim.m3 import M3

SHAPE, LR, PERIOD, EPSILON = (4, 6), 0.05, 3, 1e-8
BETAS = (0.9, 0.8, 0.7)


def printed(gradients: torch.Tensor, slow_share: float) -> list[torch.Tensor]:
    """Weights after each step of Algorithm 1, its two loops as they stand."""
    weights, square = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    fast, slow = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    out: list[torch.Tensor] = []
    for k in range(len(gradients) // PERIOD):
        slow = slow + BETAS[2] * gradients[max(0, k - 1) * PERIOD : k * PERIOD].sum(dim=0)
        slow_output = newton_schulz(slow)
        for t in range(k * PERIOD, (k + 1) * PERIOD):
            fast = fast + BETAS[0] * gradients[t]
            square = square + BETAS[1] * gradients[t] ** 2
            step = (newton_schulz(fast) + slow_share * slow_output) / (square.sqrt() + EPSILON)
            weights = weights - LR * step
            out.append(weights)
    return out


def decayed(gradients: torch.Tensor, slow_share: float) -> list[torch.Tensor]:
    """The same with running means, the square's without bias, and each step scaled to a root mean square of 1."""
    weights = torch.zeros(SHAPE, dtype=torch.float64)
    fast, slow, square = (torch.zeros(SHAPE, dtype=torch.float64) for _ in range(3))
    out: list[torch.Tensor] = []
    for t, gradient in enumerate(gradients):
        if t and t % PERIOD == 0:
            slow = BETAS[2] * slow + (1 - BETAS[2]) * gradients[t - PERIOD : t].mean(dim=0)
        fast = BETAS[0] * fast + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        step = newton_schulz(fast) + slow_share * newton_schulz(slow)
        step = step / ((square / (1 - BETAS[1] ** (t + 1))).sqrt() + EPSILON)
        weights = weights - LR * step / step.square().mean().sqrt()
        out.append(weights)
    return out


@pytest.mark.parametrize("form", ["accumulating", "ema"])
@pytest.mark.parametrize("slow_share", [0.0, 0.6])
def test_m3_is_algorithm_1(form: str, slow_share: float) -> None:
    """Weights after every step of several slow periods, with the slow memory and without."""
    gradients = torch.randn(4 * PERIOD, *SHAPE, dtype=torch.float64)
    is_printed = form == "accumulating"
    rule = M3(LR, BETAS, slow_share, PERIOD, 5, form, not is_printed, EPSILON)  # type: ignore[arg-type]
    expected = printed(gradients, slow_share) if is_printed else decayed(gradients, slow_share)
    weights = torch.zeros(1, *SHAPE, dtype=torch.float64)
    state = rule.init(weights)
    for t, gradient in enumerate(gradients):
        change, state = rule.update(state, gradient[None], torch.tensor([t + 1]))
        weights = weights + change
        torch.testing.assert_close(weights[0], expected[t], rtol=1e-9, atol=1e-11)


def test_the_slow_memory_stands_still_within_its_period() -> None:
    """It changes in the first step of each later period and in no other; what waits for it is the sum since."""
    rule = M3(LR, BETAS, 0.5, PERIOD)
    gradients = torch.randn(2 * PERIOD + 1, 1, *SHAPE, dtype=torch.float64)
    state = rule.init(gradients[0])
    moved = []
    for t, gradient in enumerate(gradients):
        before = state["slow_moment"]
        _, state = rule.update(state, gradient, torch.tensor([t + 1]))
        moved.append(not torch.equal(state["slow_moment"], before))
        since = t // PERIOD * PERIOD
        torch.testing.assert_close(state["pending_moment"], gradients[since : t + 1].sum(dim=0), rtol=1e-13, atol=1e-14)
    assert moved == [False, False, False, True, False, False, True]
