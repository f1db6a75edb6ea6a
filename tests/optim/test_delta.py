"""Rules with the delta rule inside: delta momentum, delta gradient descent and its generalisation."""

from __future__ import annotations

import pytest
import torch

from hope_server.optim.delta import DeltaGradientDescent, DeltaMomentum, GeneralizedGradientDescent, proximal_change

ROWS, TOKENS, OUT, IN, LR = 2, 4, 3, 5, 0.7


def layer(tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [B, m, n], inputs [B, T, n] and local surprises [B, T, m] of a layer."""
    shapes = ((ROWS, OUT, IN), (ROWS, tokens, IN), (ROWS, tokens, OUT))
    weights, inputs, surprise = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return weights, inputs, surprise


# -- delta momentum --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["raw", "unit"])
def test_delta_momentum_descends_its_inner_objective(key: str) -> None:
    """Each step keeps a share of m and takes one gradient step on half of ||m k^T + lr P||^2 (NL eq. 48)."""
    rule = DeltaMomentum(LR, 0.9, key, "identity")  # type: ignore[arg-type]
    gradients = torch.randn(5, OUT, IN, dtype=torch.float64) / 3
    memory, state = torch.zeros(OUT, IN, dtype=torch.float64), rule.init(gradients[:1])
    for number, gradient in enumerate(gradients, start=1):
        change, state = rule.update(state, gradient[None], torch.tensor([number]))
        size = 1.0 if key == "raw" else float(gradient.norm())
        leaf = memory.clone().requires_grad_()
        # The value P answers the key k = g / size, so that P g is the key times size.
        wanted = -LR * size * torch.eye(OUT, dtype=torch.float64)
        objective = (leaf @ (gradient / size).T - wanted).square().sum() / 2
        memory = 0.9 * memory - torch.autograd.grad(objective, leaf)[0]
        torch.testing.assert_close(change[0], memory, rtol=1e-12, atol=1e-15)


def test_printed_delta_momentum_is_the_plain_loop() -> None:
    """`m <- m (alpha I - g^T g) - lr P g` with explicit sums over every index (NL eq. 49)."""
    rule = DeltaMomentum(LR, 0.8, "raw", "identity")
    gradients = (torch.randn(4, OUT, IN, dtype=torch.float64) / 3).tolist()
    memory = [[0.0] * IN for _ in range(OUT)]
    state = rule.init(torch.zeros(1, OUT, IN, dtype=torch.float64))
    for number, g in enumerate(gradients, start=1):
        gram = [[sum(g[a][i] * g[a][j] for a in range(OUT)) for j in range(IN)] for i in range(IN)]
        memory = [
            [0.8 * memory[a][j] - sum(memory[a][i] * gram[i][j] for i in range(IN)) - LR * g[a][j] for j in range(IN)]
            for a in range(OUT)
        ]
        gradient = torch.tensor([g], dtype=torch.float64)
        change, state = rule.update(state, gradient, torch.tensor([number]))
        torch.testing.assert_close(change[0], torch.tensor(memory, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(2, 9), (9, 2)])
def test_delta_momentum_is_the_same_for_wide_and_tall_matrices(shape: tuple[int, int]) -> None:
    """Whichever product comes first, m k^T k is the same; the diagonal P divides by the root mean square."""
    rule = DeltaMomentum(LR, 0.9)
    past, gradient = torch.randn(1, *shape, dtype=torch.float64), torch.randn(1, *shape, dtype=torch.float64)
    state = {"first_moment": past, "second_moment": torch.zeros_like(past)}
    change, _ = rule.update(state, gradient, torch.tensor([1]))
    key = gradient[0] / gradient.norm()
    expected = 0.9 * past[0] - past[0] @ (key.T @ key) + gradient[0] / (gradient[0].abs() + 1e-8)
    torch.testing.assert_close(change[0], -LR * expected, rtol=1e-12, atol=1e-14)


def test_delta_momentum_forgets_along_the_gradient_and_nowhere_else() -> None:
    """A past surprise along the new unit key is gone; one across it keeps its retention."""
    rule = DeltaMomentum(LR, 1.0, preconditioner="identity")
    past = torch.tensor([[[3.0, 5.0]]], dtype=torch.float64)
    _, state = rule.update({"first_moment": past}, torch.tensor([[[0.0, 2.0]]]).double(), torch.tensor([1]))
    assert state["first_moment"].tolist() == [[[3.0, 2.0]]]


# -- delta gradient descent ------------------------------------------------------------------------------------------


def objective(weights: torch.Tensor, old: torch.Tensor, inputs: torch.Tensor, surprise: torch.Tensor) -> torch.Tensor:
    """The proximal problem of NL eq. 56 over all tokens of all rows."""
    return (inputs @ weights.mT - surprise).square().sum() / 2 + (weights - old).square().sum() / (2 * LR)


@pytest.mark.parametrize("tokens", [1, 2, 4, 9])
def test_delta_gradient_descent_solves_its_proximal_problem(tokens: int) -> None:
    """The gradient of the stated problem vanishes at the new weights, and any other weights are worse."""
    weights, inputs, surprise = layer(tokens)
    change, _ = DeltaGradientDescent(LR).update({}, weights, inputs, surprise)
    leaf = (weights + change).requires_grad_()
    best = objective(leaf, weights, inputs, surprise)
    assert float(torch.autograd.grad(best, leaf)[0].abs().max()) < 1e-12
    for scale in (1e-4, 1e-2, 1.0):
        other = leaf.detach() + scale * torch.randn_like(weights)
        assert objective(other, weights, inputs, surprise) > best


def test_delta_gradient_descent_is_least_squares() -> None:
    """Stacking the tokens and the pull to the old weights into one least-squares system gives the same weights."""
    weights, inputs, surprise = layer()
    change, _ = DeltaGradientDescent(LR).update({}, weights, inputs, surprise)
    for row in range(ROWS):
        keys = torch.cat([inputs[row], torch.eye(IN, dtype=torch.float64) / LR**0.5])
        values = torch.cat([surprise[row], weights[row].T / LR**0.5])
        expected = torch.linalg.lstsq(keys, values).solution.T
        torch.testing.assert_close(weights[row] + change[row], expected, rtol=1e-11, atol=1e-12)


def test_for_a_unit_key_it_is_the_printed_rule() -> None:
    """`W (I - s x x^T) - s dL/dy x^T` with s = lr / (1 + lr), by Sherman and Morrison (NL eq. 57)."""
    weights, inputs, surprise = layer(1)
    inputs = inputs / inputs.norm(dim=2, keepdim=True)
    change, _ = DeltaGradientDescent(LR).update({}, weights, inputs, surprise)
    share = LR / (1 + LR)
    for row in range(ROWS):
        x, slope = inputs[row, 0], -surprise[row, 0]
        forget = torch.eye(IN, dtype=torch.float64) - share * torch.outer(x, x)
        expected = weights[row] @ forget - share * torch.outer(slope, x)
        torch.testing.assert_close(weights[row] + change[row], expected, rtol=1e-13, atol=1e-13)


def test_a_small_step_of_delta_gradient_descent_is_gradient_descent_on_its_objective() -> None:
    """For lr to 0 the change over lr is minus the gradient of half of ||W x - u||^2."""
    weights, inputs, surprise = layer()
    leaf = weights.clone().requires_grad_()
    slope = torch.autograd.grad((inputs @ leaf.mT - surprise).square().sum() / 2, leaf)[0]
    change, _ = DeltaGradientDescent(1e-9).update({}, weights, inputs, surprise)
    # The next order in lr is 1e-9 times the squared size of the inputs.
    torch.testing.assert_close(change / 1e-9, -slope, rtol=1e-6, atol=1e-6)


def test_rows_of_a_layer_do_not_interact() -> None:
    """A row of NaN leaves the other's step as it was, to the bit."""
    weights, inputs, surprise = layer()
    expected = proximal_change(weights, inputs, surprise, LR)
    surprise[1], inputs[1] = torch.nan, torch.nan
    assert torch.equal(proximal_change(weights, inputs, surprise, LR)[0], expected[0])


# -- generalized gradient descent ------------------------------------------------------------------------------------


def test_generalized_descent_with_one_recent_weight_is_dgd_or_gradient_descent() -> None:
    """Its special cases: the L2 objective is NL eq. 57, the dot product NL eq. 55, that is plain descent."""
    weights, inputs, surprise = layer()
    one = torch.ones(ROWS, dtype=torch.long)
    for kind in ("l2", "dot"):
        rule = GeneralizedGradientDescent(LR, kind)  # type: ignore[arg-type]
        change, state = rule.update(rule.init(weights), weights, inputs, surprise, one)
        expected = proximal_change(weights, inputs, surprise, LR) if kind == "l2" else LR * surprise.mT @ inputs
        torch.testing.assert_close(change, expected, rtol=1e-12, atol=1e-13)
        assert state["recent"].shape == (ROWS, 0, OUT, IN)


@pytest.mark.parametrize("kind", ["l2", "dot"])
def test_generalized_descent_solves_its_stated_problem_over_recent_weights(kind: str) -> None:
    """With self-made values and a pull to the last three weights, no step has a gradient left (NL eq. 59-60)."""
    rule = GeneralizedGradientDescent(LR, kind, num_recent=3, recency=0.4)  # type: ignore[arg-type]
    weights, _, _ = layer()
    state, trail = rule.init(weights), [weights]
    for number in range(1, 6):
        inputs = torch.randn(ROWS, TOKENS, IN, dtype=torch.float64)
        values = torch.tanh(inputs @ weights.mT)
        steps = torch.full((ROWS,), number)
        change, state = rule.update(state, weights, inputs, values, steps)
        leaf = (weights + change).requires_grad_()
        read = inputs @ leaf.mT
        loss = (read - values).square().sum() / 2 if kind == "l2" else -(read * values).sum()
        recent = trail[-3:][::-1]
        shares = [0.4**age for age in range(len(recent))]
        retention = sum(
            share / sum(shares) * (leaf - past).square().sum() / (2 * LR)
            for share, past in zip(shares, recent, strict=True)
        )
        assert float(torch.autograd.grad(loss + retention, leaf)[0].abs().max()) < 1e-11
        weights = leaf.detach()
        trail.append(weights)
