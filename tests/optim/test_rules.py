"""What every update rule keeps to: rows apart, arguments untouched, zeros as the fresh state; and norms of a write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hope_server.optim import RULE_NAMES, State, UpdateRule, make_rule
from hope_server.optim.deep import DeepMomentum, NonLinearOutput
from hope_server.optim.delta import DeltaMomentum
from hope_server.optim.gradient import FeatureMomentum, Momentum, PreconditionedMomentum
from hope_server.optim.m3 import M3
from hope_server.optim.rules import unit_rms

ROWS, SHAPE, STEPS, WIDTH = 3, (4, 6), 12, 7
RULES: dict[str, UpdateRule] = {name: make_rule(name, 0.03, (0.8, 0.95)) for name in RULE_NAMES} | {
    "momentum_accumulating": Momentum(0.03, 0.8, "accumulating"),
    "preconditioned_accumulating": PreconditionedMomentum(0.03, (0.8, 0.95), "accumulating"),
    "feature_accumulating": FeatureMomentum(0.03, 0.8, form="accumulating"),
    "delta_printed": DeltaMomentum(0.03, key="raw", preconditioner="identity"),
    "deep_dot": DeepMomentum(0.03, retention=0.9, objective="dot"),
    "m3_printed": M3(0.03, slow_period=3, form="accumulating", is_rescaled=False),
    "deep_newton_schulz": NonLinearOutput(0.03, DeepMomentum(1.0)),
    "sign_of_momentum": NonLinearOutput(0.03, Momentum(1.0), "sign"),
}


def run_rule(rule: UpdateRule, gradients: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, State]:
    """Weights [B, m, n] from zero, and state, after all gradients; row b skips the first offsets[b]."""
    weights = torch.zeros_like(gradients[0])
    state, counts = rule.init(weights), torch.zeros(gradients.shape[1], dtype=torch.long)
    for number, gradient in enumerate(gradients):
        rows = offsets <= number
        change, new = rule.update(state, gradient, counts + 1, weights)
        mask = rows[:, None, None]
        weights = torch.where(mask, weights + change, weights)
        state = {name: torch.where(rows.view(-1, *[1] * (t.ndim - 1)), new[name], t) for name, t in state.items()}
        counts = counts + rows
    return weights, state


@pytest.mark.parametrize("name", RULES)
def test_rows_that_began_at_different_times_move_as_they_would_alone(name: str) -> None:
    """Every row of a batch ends with the weights and state of a run of its own, whatever its neighbours did."""
    rule = RULES[name]
    gradients = torch.randn(STEPS, ROWS, *SHAPE, dtype=torch.float64) / 5
    offsets = torch.tensor([0, 2, 7])
    weights, state = run_rule(rule, gradients, offsets)
    for row, offset in enumerate(offsets.tolist()):
        alone, kept = run_rule(rule, gradients[offset:, row : row + 1], torch.zeros(1, dtype=torch.long))
        # A batched matrix product may sum in another order than a single one.
        torch.testing.assert_close(weights[row : row + 1], alone, rtol=0, atol=1e-12)
        for key, tensor in kept.items():
            torch.testing.assert_close(state[key][row : row + 1], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_see_the_gradient_of_another(name: str) -> None:
    """A row whose gradient is NaN leaves the others' steps as they are, to the bit."""
    gradients = torch.randn(2, ROWS, *SHAPE, dtype=torch.float64)
    now = torch.zeros(ROWS, dtype=torch.long)
    expected, _ = run_rule(RULES[name], gradients, now)
    gradients[:, 1] = torch.nan
    found, _ = run_rule(RULES[name], gradients, now)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert bool(found[1].isnan().any())


@pytest.mark.parametrize("name", RULES)
def test_an_update_leaves_its_arguments_as_they_were(name: str) -> None:
    """Rules are pure: gradient, state and weights come out of the call unchanged."""
    rule = RULES[name]
    weights, gradient = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    state = {key: torch.rand_like(tensor) for key, tensor in rule.init(weights).items()}
    kept = [tensor.clone() for tensor in (weights, gradient, *state.values())]
    rule.update(state, gradient, torch.tensor([1, 4]), weights)
    assert all(torch.equal(now, then) for now, then in zip((weights, gradient, *state.values()), kept, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_saw_nothing_is_all_zeros_and_is_not_moved_by_a_gradient_of_zero(name: str) -> None:
    """A fresh state is zeros of the promised row count; no gradient, no step, and never a NaN."""
    rule = RULES[name]
    state = rule.init(torch.randn(ROWS, *SHAPE))
    assert all(tensor.shape[0] == ROWS and not tensor.any() for tensor in state.values())
    change, after = rule.update(state, torch.zeros(ROWS, *SHAPE), torch.ones(ROWS, dtype=torch.long), torch.zeros(1))
    assert not change.any()
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())


@pytest.mark.parametrize("name", RULES)
def test_a_step_grows_with_the_learning_rate_alone(name: str) -> None:
    """Twice the lr is twice the change, from the same state to the same state."""
    rule = RULES[name]
    gradient = torch.randn(1, *SHAPE, dtype=torch.float64)
    state, one = rule.init(gradient), torch.ones(1, dtype=torch.long)
    change, after = rule.update(state, gradient, one, torch.zeros_like(gradient))
    double, same = replace(rule, lr=2 * rule.lr).update(state, gradient, one, torch.zeros_like(gradient))
    torch.testing.assert_close(double, 2 * change, rtol=1e-14, atol=0)
    assert all(torch.equal(same[key], after[key]) for key in after)


@pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].needs_matrix])
def test_an_element_wise_rule_takes_any_shape(name: str) -> None:
    """Vectors and scalars a row are stepped as well as matrices."""
    for shape in ((ROWS, 5), (ROWS,), (ROWS, 2, 3, 4)):
        gradient = torch.randn(shape)
        change, _ = RULES[name].update(
            RULES[name].init(gradient), gradient, torch.ones(ROWS, dtype=torch.long), torch.zeros_like(gradient)
        )
        assert change.shape == gradient.shape
        assert bool((change * gradient <= 0).all())


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    """A misspelt rule never becomes another."""
    with pytest.raises(ValueError, match="unknown rule 'lion'; known are sgd, momentum"):
        make_rule("lion", 0.1)


def test_adamw_needs_the_weights_that_it_decays() -> None:
    """Weight decay without weights is an error, not a silent no."""
    rule, gradient = make_rule("adamw", 0.1), torch.ones(1, 2)
    with pytest.raises(ValueError, match="AdamW decays weights"):
        rule.update(rule.init(gradient), gradient, torch.tensor([1]))


def test_unit_rms_scales_each_row_by_itself() -> None:
    """Rows end at a root mean square of 1 in their own direction; a row of zeros stays zero."""
    found = unit_rms(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1e-20, 0.0]], dtype=torch.float64))
    size = 2**0.5
    expected = torch.tensor([[0.6 * size, 0.8 * size], [0.0, 0.0], [-size, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
