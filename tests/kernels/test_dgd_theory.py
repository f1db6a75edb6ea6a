"""What theory says of `dgd_memory`: it is a gated delta rule, and it is stable exactly where it should be."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import Gates, write_chunk
from hope_kernels.dgd_memory.gated_delta import as_gated_delta_rule
from memory_cases import EXACT, draw, draw_case, draw_gates, draw_keys

NUM_CHUNKS = 200


def gated_delta_rule(
    state: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: torch.Tensor, log_decay: torch.Tensor
) -> torch.Tensor:
    """The gated delta rule as its authors print it, values first: S = S (a (I - b k k')) + b v k'."""
    for k, v, b, a in zip(keys, values, beta, log_decay.exp(), strict=True):
        state = state @ (a * (torch.eye(len(k), dtype=k.dtype) - b * torch.outer(k, k))) + b * torch.outer(v, k)
    return state


@pytest.mark.parametrize("num_tokens", [1, 16, 33])
def test_a_chunk_is_a_gated_delta_rule(num_tokens: int) -> None:
    """With beta = lr / retention and values = retention (target - prediction) both rules write the same."""
    keys, targets = draw_keys(num_tokens, 6), draw(num_tokens, 4)
    weights, gates = draw(6, 4), draw_gates(num_tokens)
    residuals = keys @ weights - targets
    rule = as_gated_delta_rule(residuals, gates)

    expected = gated_delta_rule(weights.T, keys, rule.values, rule.beta, rule.log_decay)
    torch.testing.assert_close(write_chunk(weights, keys, residuals, gates, 1.0).final()[0], expected.T, **EXACT)


def test_the_gated_delta_rule_has_no_momentum() -> None:
    """Rates with momentum are refused."""
    with pytest.raises(ValueError, match="no momentum"):
        as_gated_delta_rule(draw(3, 2), draw_gates(3, momentum="some"))


def test_a_dot_product_memory_is_the_gated_delta_rule_of_its_values() -> None:
    """With the targets' negative as residual, the values of the rule are retention times the targets: no snapshot."""
    targets, gates = draw(5, 3), draw_gates(5)
    rule = as_gated_delta_rule(-targets, gates)

    torch.testing.assert_close(rule.values, gates.log_retention.exp()[:, None] * targets, **EXACT)


def gain(factor: float, delta: float, retention: float, num_tokens: int, lr: float) -> float:
    """How much of a memory of one number is left after a chunk with one repeated key and target 0.

    factor: of the loss's gradient, 1 for half the squared error, 2 for the squared error.
    """
    ones = torch.ones(num_tokens, 1, dtype=torch.float64)
    gates = draw_gates(num_tokens, lr=lr, retention=retention)
    weights = torch.ones(1, 1, dtype=torch.float64)
    return write_chunk(weights, ones, factor * ones, gates, delta).final()[0].item()


# Largest lr at which a chunk does not amplify what is stored along a repeated key, for C = 1, 4, 16, 64.
LIMITS = [
    (1, 1.0, 1.0, (1.0, 2.0, 2.0, 2.0)),
    (1, 1.0, 0.9, (0.95, 1.9, 1.9, 1.9)),
    (1, 0.0, 1.0, (2.0, 0.5, 0.125, 0.03125)),
    (2, 1.0, 1.0, (0.667, 0.24, 0.066, 0.017)),
    (2, 0.0, 1.0, (1.0, 0.25, 0.0625, 0.015625)),
    (2, 0.0, 0.9, (0.95, 0.24, 0.0725, 0.05)),
]


@pytest.mark.parametrize(("factor", "delta", "retention", "limits"), LIMITS)
def test_the_largest_stable_step_is_where_theory_puts_it(
    factor: int, delta: float, retention: float, limits: tuple[float, ...]
) -> None:
    """Just below the limit a chunk shrinks or keeps what is stored, just above it a chunk amplifies it."""
    for num_tokens, limit in zip((1, 4, 16, 64), limits, strict=True):
        # 4%: the limits of the table are rounded to two digits.
        assert abs(gain(factor, delta, retention, num_tokens, 0.96 * limit)) <= 1
        assert abs(gain(factor, delta, retention, num_tokens, 1.04 * limit)) > 1


def largest_norm(
    lr: float, retention: float, factor: float, delta: float, num_tokens: int, correlation: float
) -> float:
    """Largest spectral norm of a memory over chunks of unit keys and unit targets, infinite where it diverges."""
    weights = draw(32, 32) / 32**0.5
    common = draw_keys(1, 32)
    gates = draw_gates(num_tokens, lr=lr, retention=retention)
    largest = 0.0
    for _ in range(NUM_CHUNKS):
        keys = torch.nn.functional.normalize(
            correlation * common + (1 - correlation) * draw(num_tokens, 32) / 32**0.5, dim=-1
        )
        residuals = factor * (keys @ weights - draw_keys(num_tokens, 32))
        weights = write_chunk(weights, keys, residuals, gates, delta).final()[0]
        largest = max(largest, torch.linalg.matrix_norm(weights, 2).item())
        if not largest < 1e8:
            return float("inf")
    return largest


@pytest.mark.parametrize("num_tokens", [1, 16, 64])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize(("lr", "retention"), [(0.5, 1.0), (0.9, 1.0), (0.9, 0.9), (0.5, 0.99)])
def test_a_memory_stays_bounded_where_lr_is_at_most_retention(
    num_tokens: int, correlation: float, lr: float, retention: float
) -> None:
    """With half the squared error and the delta rule, 200 chunks of the same keys' direction leave a small memory."""
    # A fresh memory's norm is about 2; targets have norm 1, and a chunk can store each of 32 directions once.
    assert largest_norm(lr, retention, 1.0, 1.0, num_tokens, correlation) < 32


@pytest.mark.parametrize(
    ("lr", "factor", "delta", "num_tokens", "correlation"),
    [
        (1.5, 1.0, 1.0, 16, 0.0),  # a step above retention
        (0.25, 2.0, 1.0, 64, 0.9),  # the gradient of the whole squared error
        (0.25, 1.0, 0.0, 64, 0.9),  # no decay along the key
    ],
)
def test_a_memory_diverges_where_a_rule_is_broken(
    lr: float, factor: float, delta: float, num_tokens: int, correlation: float
) -> None:
    """The rules are needed: each of them, left out, makes a memory diverge at retention 1."""
    assert largest_norm(lr, 1.0, factor, delta, num_tokens, correlation) == float("inf")


def test_a_full_step_at_chunk_size_one_reflects() -> None:
    """Gradient and decay add up: at lr 1 a chunk of one token turns what is stored along its key around."""
    key, weights = draw_keys(1, 6), draw(6, 4)
    gates = Gates(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    final = write_chunk(weights, key, key @ weights, gates, 1.0).final()[0]

    torch.testing.assert_close(key @ final, -(key @ weights), **EXACT)


def test_the_memory_of_self_made_targets_is_multiplied() -> None:
    """With targets that a memory makes of given values, one matrix of keys, values and rates multiplies any memory."""
    case, values = draw_case(12, 6, 4, ()), draw_keys(12, 6)

    def after(weights: torch.Tensor) -> torch.Tensor:
        return write_chunk(weights, case.keys, (case.keys - values) @ weights, case.gates, 1.0).final()[0]

    multiplier = after(torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(after(case.weights), multiplier @ case.weights, **EXACT)
