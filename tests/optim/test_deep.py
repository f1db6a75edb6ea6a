"""Deep momentum against autograd of its inner objective, and non-linear outputs."""

from __future__ import annotations

import pytest
import torch

from hope_server.optim.deep import DeepMomentum, NonLinearOutput
from hope_server.optim.gradient import Momentum

STEPS, ROWS, SHAPE, LR = 5, 2, (6, 4), 0.1


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("retention", [1.0, 0.9])
def test_the_memory_descends_its_inner_objective(objective: str, retention: float) -> None:
    """`m <- retention m - rate grad L2(m; u)` by autograd through the MLP, then `W <- W + lr m(u)` (NL eq. 50)."""
    rule = DeepMomentum(LR, 8, 0.5, retention, objective)  # type: ignore[arg-type]
    state = rule.init(torch.zeros(ROWS, *SHAPE, dtype=torch.float64))
    for number in range(1, STEPS + 1):
        gradient = torch.randn(ROWS, *SHAPE, dtype=torch.float64) * 10.0 ** (number - 3)
        change, after = rule.update(state, gradient, torch.full((ROWS,), number))
        for row in range(ROWS):
            keys = gradient[row] / gradient[row].square().mean().sqrt()
            layers = [layer[row].clone().requires_grad_() for layer in rule.layers(state)]
            rates = [
                rate[row] for rate in rule.inner_rates(state, gradient / gradient.square().mean((1, 2), True).sqrt())
            ]
            said = torch.tanh(keys @ layers[0].T) @ layers[1].T
            loss = (said + keys).square().sum() / 2 if objective == "l2" else (said * keys).sum()
            slopes = torch.autograd.grad(loss / SHAPE[0], layers)
            first, second = (
                retention * layer.detach() - rate * slope
                for layer, rate, slope in zip(layers, rates, slopes, strict=True)
            )
            torch.testing.assert_close(rule.layers(after)[0][row], first, rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(rule.layers(after)[1][row], second, rtol=1e-11, atol=1e-13)
            expected = LR * torch.tanh(keys @ first.T) @ second.T
            torch.testing.assert_close(change[row], expected, rtol=1e-10, atol=1e-13)
        state = after


def test_the_rates_are_below_the_curvature_of_the_objective() -> None:
    """At inner_lr 1 the rate of the output layer is at most one over its largest curvature: a step never overshoots."""
    rule = DeepMomentum(LR, 8, 1.0)
    zeros = torch.zeros(1, *SHAPE, dtype=torch.float64)
    state = rule.init(zeros)
    for number in range(1, 30):
        gradient = torch.randn_like(zeros)
        keys = gradient / gradient.square().mean().sqrt()
        hidden = torch.tanh(keys[0] @ rule.layers(state)[0][0].T)
        curvature = float(torch.linalg.matrix_norm(hidden.T @ hidden / SHAPE[0], ord=2))
        assert float(rule.inner_rates(state, keys)[1]) <= 1 / curvature
        _, state = rule.update(state, gradient, torch.tensor([number]))


def test_it_learns_the_direction_that_gradients_keep_taking() -> None:
    """After many noisy gradients with one steady part, its answer to noise points along minus the steady part."""
    generator = torch.Generator().manual_seed(0)
    rule = DeepMomentum(1.0, 4, 0.5)
    steady = torch.zeros(1, 8, 16, dtype=torch.float64)
    steady[:, :, 3] = 3.0
    state = rule.init(steady)
    for number in range(1, 300):
        noise = torch.randn(steady.shape, generator=generator, dtype=torch.float64)
        change, state = rule.update(state, steady + noise, torch.tensor([number]))
    along = -(change * steady).sum() / steady.norm() / change.norm()
    plain = ((steady + noise) * steady).sum() / steady.norm() / (steady + noise).norm()
    assert float(along) > float(plain) + 0.02


@pytest.mark.parametrize("output", ["sign", "tanh"])
def test_an_output_is_applied_to_what_the_memory_answers(output: str) -> None:
    """`W <- W + lr output(m(u))` (NL eq. 52), with the memory's state its own."""
    memory = Momentum(1.0, 0.8)
    rule = NonLinearOutput(LR, memory, output)  # type: ignore[arg-type]
    gradient = torch.randn(ROWS, *SHAPE, dtype=torch.float64)
    one = torch.ones(ROWS, dtype=torch.long)
    change, state = rule.update(rule.init(gradient), gradient, one)
    answer, kept = memory.update(memory.init(gradient), gradient, one)
    size = answer.square().mean(dim=(1, 2), keepdim=True).sqrt()
    expected = answer.sign() if output == "sign" else (answer / size).tanh()
    torch.testing.assert_close(change, LR * expected, rtol=1e-13, atol=0)
    assert torch.equal(state["first_moment"], kept["first_moment"])
    assert not rule.needs_matrix
