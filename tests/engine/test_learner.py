"""The online pass: its gradients against a plain Llama with merged weights, and when it writes which row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hope_kernels.cms_update import cap_drift, clip_norm
from plain_llama import chain_rule, llama, merged
from torch.nn import functional
from toys import CONFIG, make_params

from hope_server.engine.learner import Learner
from hope_server.model.config import HopeConfig, LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.state import FastState, empty_state
from hope_server.optim import make_rule

CHUNK = CONFIG.chunk_size


def learned_state(model: HopeModel, rows: int) -> FastState:
    """A state whose rows have all written something else into every level."""
    state = empty_state(model.memory, rows, torch.float64)
    for level in state.levels.values():
        level.weights += torch.randn_like(level.weights) / 10
        level.num_writes += 1
    return state


def bench(*levels: LevelSpec) -> tuple[HopeModel, Params]:
    """A toy model with these levels instead of its own."""
    config = replace(CONFIG, levels=levels) if levels else CONFIG
    return HopeModel(config, torch.float64), make_params()


ONLINE = LevelSpec("fast", (1, 3), rank=2, schedule="online", update_period=CHUNK, lr=1e-2)


def test_gradients_equal_those_of_a_plain_llama_with_merged_weights() -> None:
    """In the second chunk of two sessions, two levels on one block: autograd's gradient, by the chain rule."""
    model, params = bench()
    state = learned_state(model, 2)
    tokens = torch.randint(0, 256, (2, 2 * CHUNK))
    teaches = torch.rand(2, CHUNK) < 0.7
    model.prefill(params, state, tokens[:, :CHUNK])
    found = Learner(model).gradients(params, state, tokens[:, CHUNK:], teaches)
    for row in range(2):
        weights = merged(model, {name: level.weights[row] for name, level in state.levels.items()})
        _, past = llama(weights, tokens[row, :CHUNK])
        names = [f"layers.{block}.{key}.weight" for block in (2, 3) for key in ("gate", "up", "down")]
        leaves = {name: weights[name].detach().requires_grad_() for name in names}
        logits, _ = llama(weights | leaves, tokens[row, CHUNK:], past)
        losses = functional.cross_entropy(logits[:-1], tokens[row, CHUNK + 1 :], reduction="none")
        loss = losses[teaches[row, 1:]].sum()
        dense = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        expected = chain_rule(model, "fast", state.levels["fast"].weights[row], dense)
        # float64 through four layers.
        torch.testing.assert_close(found.levels["fast"][row], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.loss[row], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.logits[row], logits[-1].detach(), rtol=0, atol=1e-11)
        assert found.num_taught[row] == int(teaches[row, 1:].sum())
    assert set(found.levels) == {"fast"}


def test_taking_gradients_changes_nothing() -> None:
    """Only `write_chunk` moves the window or the memory."""
    model, params = bench()
    state = learned_state(model, 2)
    before = state.clone().tensors()
    Learner(model).gradients(params, state, torch.randint(0, 256, (2, CHUNK)), torch.ones(2, CHUNK, dtype=torch.bool))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_gradients_of_the_other_kinds_are_those_of_finite_differences(kind: str) -> None:
    """Along a random direction, the loss of the chunk changes as the gradient says."""
    model, params = bench(replace(ONLINE, kind=kind))
    state = learned_state(model, 1)
    tokens, teaches = torch.randint(0, 256, (1, CHUNK)), torch.ones(1, CHUNK, dtype=torch.bool)
    found = Learner(model).gradients(params, state, tokens, teaches).levels["fast"]
    direction = torch.randn_like(found)
    direction /= direction.norm()
    losses = []
    for sign in (1, -1):
        moved = state.clone()
        moved.levels["fast"].weights += sign * 1e-5 * direction
        losses.append(Learner(model).gradients(params, moved, tokens, teaches).loss)
    difference = (losses[0] - losses[1]) / 2e-5
    # Central differences err by the third derivative times 1e-10, rounding by 1e-16 / 1e-5.
    torch.testing.assert_close(difference[0], (found * direction).sum(), rtol=1e-6, atol=1e-8)


def test_a_write_is_one_step_along_the_mean_gradient_of_the_taught_tokens() -> None:
    """Weights, moments, count and the reported norm are those of the rule on the clipped mean gradient."""
    model, params = bench(ONLINE)
    state = learned_state(model, 2)
    tokens, teaches = torch.randint(0, 256, (2, CHUNK)), torch.ones(2, CHUNK, dtype=torch.bool)
    teaches[1, :5] = False
    before = state.clone()
    found = Learner(model).gradients(params, state, tokens, teaches)
    outcome = Learner(model).write_chunk(params, state, tokens, teaches)
    level, old = state.levels["fast"], before.levels["fast"]
    gradient = clip_norm(found.levels["fast"] / torch.tensor([[7.0], [3.0]]), ONLINE.max_update_norm)
    rule = make_rule("adam", ONLINE.lr, ONLINE.betas)
    change, moments = rule.update(old.moments, gradient, old.num_writes + 1)
    torch.testing.assert_close(level.weights, old.weights + change, rtol=0, atol=1e-15)
    assert set(level.moments) == {"first_moment", "second_moment"}
    assert all(torch.equal(level.moments[name], moments[name]) for name in moments)
    assert level.num_writes.tolist() == [2, 2]
    torch.testing.assert_close(outcome.update_norm["fast"], change.norm(dim=1), rtol=1e-9, atol=0)
    assert state.window.positions.tolist() == [CHUNK, CHUNK]


def test_a_write_stays_within_the_norm_cap() -> None:
    """However large the step, the level drifts no further from its initial weights than the cap."""
    model, params = bench(replace(ONLINE, lr=5.0, norm_cap=0.7))
    state = empty_state(model.memory, 1, torch.float64)
    Learner(model).write_chunk(params, state, torch.randint(0, 256, (1, CHUNK)), torch.ones(1, CHUNK, dtype=torch.bool))
    drift = (state.levels["fast"].weights - model.memory.initial["fast"]).norm()
    assert float(drift) == pytest.approx(0.7, rel=1e-12)


def test_a_long_period_accumulates_chunks_and_then_writes_once() -> None:
    """Over a period of three chunks the weights stand still for two, then take one step along the sum."""
    spec = replace(ONLINE, update_period=3 * CHUNK)
    model, params = bench(spec)
    state = empty_state(model.memory, 1, torch.float64)
    taught = torch.ones(1, CHUNK, dtype=torch.bool)
    total = torch.zeros_like(state.levels["fast"].weights)
    for number in range(3):
        tokens = torch.randint(0, 256, (1, CHUNK))
        total += Learner(model).gradients(params, state, tokens, taught).levels["fast"] / (CHUNK - 1)
        outcome = Learner(model).write_chunk(params, state, tokens, taught)
        level = state.levels["fast"]
        if number < 2:
            torch.testing.assert_close(level.accumulator, total, rtol=0, atol=1e-15)
            assert torch.equal(level.weights[0], model.memory.initial["fast"])
            assert (level.num_writes.item(), outcome.update_norm["fast"].item()) == (0, 0.0)
    rule = make_rule(spec.rule, spec.lr, spec.betas)
    change, _ = rule.update(rule.init(total), clip_norm(total, 1.0), torch.tensor([1]))
    torch.testing.assert_close(
        level.weights, cap_drift(model.memory.initial["fast"] + change, model.memory.initial["fast"], 60.0)
    )
    assert level.num_writes.item() == 1
    assert not level.accumulator.any()


def test_rows_with_different_positions_reach_their_periods_apart() -> None:
    """In one batch, only the row whose own position ends a period writes its accumulated gradient."""
    model, params = bench(replace(ONLINE, update_period=2 * CHUNK))
    state = empty_state(model.memory, 2, torch.float64)
    taught = torch.ones(2, CHUNK, dtype=torch.bool)
    Learner(model).write_chunk(params, state.rows(0, 1), torch.randint(0, 256, (1, CHUNK)), taught[:1])
    Learner(model).write_chunk(params, state, torch.randint(0, 256, (2, CHUNK)), taught)
    level = state.levels["fast"]
    assert level.num_writes.tolist() == [1, 0]
    assert level.accumulator.any(dim=1).tolist() == [False, True]


def test_tokens_that_do_not_teach_leave_no_trace_in_the_memory() -> None:
    """A chunk in which nothing teaches moves the window on and changes no bit of any level."""
    model, params = bench(ONLINE)
    state = learned_state(model, 1)
    before = state.clone()
    outcome = Learner(model).write_chunk(
        params, state, torch.randint(0, 256, (1, CHUNK)), torch.zeros(1, CHUNK, dtype=torch.bool)
    )
    after = state.levels["fast"].tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.levels["fast"].tensors().items())
    assert state.window.positions.item() == CHUNK
    assert (outcome.num_taught.item(), outcome.loss.item(), outcome.is_finite.item()) == (0, 0.0, True)


def test_the_gradient_does_not_see_what_a_token_that_does_not_teach_would_be() -> None:
    """Changing the last token, which is not taught and which no other sees, changes no bit of the write."""
    model, params = bench(ONLINE)
    teaches = torch.ones(1, CHUNK, dtype=torch.bool)
    teaches[0, -1] = False
    tokens = torch.randint(0, 256, (1, CHUNK))
    states = [empty_state(model.memory, 1, torch.float64) for _ in range(2)]
    for state, last in zip(states, (3, 200), strict=True):
        tokens[0, -1] = last
        Learner(model).write_chunk(params, state, tokens, teaches)
    first, second = (state.levels["fast"].weights for state in states)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], model.memory.initial["fast"])


@pytest.mark.parametrize("level", ["fast", "slow"])
def test_a_row_whose_gradient_is_not_finite_keeps_its_memory(level: str) -> None:
    """NaN in one session's weights is reported for that row, writes nothing there, and does not reach the others."""
    model, params = bench()
    state = learned_state(model, 3)
    state.levels[level].weights[1, 5] = torch.nan
    before = state.clone()
    clean = learned_state(model, 3)
    clean.copy_(before)
    clean.levels[level].weights[1, 5] = 0.0
    tokens, teaches = torch.randint(0, 256, (3, CHUNK)), torch.ones(3, CHUNK, dtype=torch.bool)
    outcome = Learner(model).write_chunk(params, state, tokens, teaches)
    Learner(model).write_chunk(params, clean, tokens, teaches)
    assert outcome.is_finite.tolist() == [True, False, True]
    for name in state.levels:
        after, kept, expected = (s.levels[name].tensors() for s in (state, before, clean))
        for key, tensor in after.items():
            torch.testing.assert_close(tensor[1], kept[key][1], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(tensor[[0, 2]], expected[key][[0, 2]]), f"{name}.{key}"


def test_a_broken_chunk_at_the_end_of_a_period_writes_nothing() -> None:
    """The accumulated gradient of good chunks is not applied in the step that found a bad one."""
    model, params = bench(replace(ONLINE, update_period=2 * CHUNK))
    state = empty_state(model.memory, 1, torch.float64)
    tokens, taught = torch.randint(0, 256, (1, CHUNK)), torch.ones(1, CHUNK, dtype=torch.bool)
    Learner(model).write_chunk(params, state, tokens, taught)
    state.window.values[:, :, :, :4] = torch.nan
    before = state.levels["fast"].clone().tensors()
    outcome = Learner(model).write_chunk(params, state, tokens, taught)
    assert outcome.is_finite.tolist() == [False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.levels["fast"].tensors().items())


def test_a_period_that_ends_with_a_chunk_that_does_not_teach_still_writes() -> None:
    """What a period has accumulated takes effect at its end, whatever its last chunk is, alone as in a batch."""
    model, params = bench(replace(ONLINE, update_period=2 * CHUNK))
    batch = empty_state(model.memory, 2, torch.float64)
    tokens, taught = torch.randint(0, 256, (2, CHUNK)), torch.ones(2, CHUNK, dtype=torch.bool)
    Learner(model).write_chunk(params, batch, tokens, taught)
    alone = batch.rows(0, 1).clone()
    taught[0] = False
    Learner(model).write_chunk(params, batch, tokens, taught)
    Learner(model).write_chunk(params, alone, tokens[:1], taught[:1])
    assert alone.levels["fast"].num_writes.tolist() == [1]
    # One float64 product of a batch may sum in another order than that of a row.
    torch.testing.assert_close(batch.levels["fast"].weights[:1], alone.levels["fast"].weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [(replace(ONLINE, lr=0.0),), (LevelSpec("slow", (1,), update_period=16),)])
def test_a_model_without_online_learning_still_reads(levels: tuple[LevelSpec, ...]) -> None:
    """With every online level switched off, a chunk is read as `prefill` reads it and nothing is written."""
    model, params = bench(*levels)
    config: HopeConfig = model.config
    assert config.levels == levels
    state, other = (empty_state(model.memory, 1, torch.float64) for _ in range(2))
    tokens = torch.randint(0, 256, (1, CHUNK))
    outcome = Learner(model).write_chunk(params, state, tokens, torch.ones(1, CHUNK, dtype=torch.bool))
    logits, other = model.prefill(params, other, tokens)
    # The same product, computed beside the taught ones.
    torch.testing.assert_close(outcome.logits, logits, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in state.tensors().items())
    assert outcome.num_taught.item() == CHUNK - 1
    assert float(outcome.loss) > 0
