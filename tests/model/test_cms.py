"""The Continuum Memory System: NL eq. 70-74 against literal float64 recurrences, one by one.

Each recurrence is written out with plain matrices and autograd, and knows nothing of layouts, states or schedules of
the server; what it is compared with is what the server runs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from toys import CONFIG, MODEL, make_params

from hope_server.engine.learner import Learner
from hope_server.errors import SettingsError
from hope_server.model import cms
from hope_server.model.config import CmsForm, HopeConfig, LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.levels import make_layout, mlp_block
from hope_server.model.params import Params
from hope_server.model.state import FastState, empty_state

CHUNK, BLOCK, RANK, TOKENS = CONFIG.chunk_size, 2, 3, 5


def level(name: str, update_period: int = CHUNK, **changes: object) -> LevelSpec:
    """A residual level on block 2, written online by plain descent; gradients are neither clipped nor capped."""
    base = LevelSpec(name, (BLOCK,), "residual", RANK, "online", update_period, "sgd", 0.2, norm_cap=1e9)
    return replace(base, max_update_norm=1e9, **changes)  # type: ignore[arg-type]


SLOW, MIDDLE, FAST = level("slow", 4 * CHUNK, lr=0.05), level("middle", 2 * CHUNK, lr=0.1), level("fast")


def bench(form: CmsForm, *levels: LevelSpec) -> tuple[HopeModel, Params]:
    """A toy model with these levels."""
    return HopeModel(replace(CONFIG, levels=levels, cms=form), torch.float64), make_params()


def written(*levels: LevelSpec) -> list[dict[str, torch.Tensor]]:
    """Fast weights of one row at the block, of each level, all far from their start."""
    layouts = [make_layout(spec, MODEL) for spec in levels]
    return [layout.views(torch.randn(1, layout.num_weights).double() / 3)[BLOCK] for layout in layouts]


def own_mlp(x: torch.Tensor) -> torch.Tensor:
    """The block's own SwiGLU on tokens x [T, D]."""
    params = make_params().blocks[BLOCK]
    gate, up = params.gate_up.chunk(2)
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ params.down.T


def level_mlp(memory: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A level's two layers on one token's input x [D]."""
    return memory["out_residual"][0] @ functional.silu(memory["in_residual"][0] @ x)


# -- what the levels compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sequential", "nested"])
def test_eq_70_levels_form_a_chain(form: CmsForm) -> None:
    """y = MLP_k(... MLP_1(MLP_0(x))), each MLP residual and its input normalised, token by token."""
    memories = written(SLOW, MIDDLE, FAST)
    x = torch.randn(1, TOKENS, MODEL.hidden_size, dtype=torch.float64)
    found = mlp_block(x, make_params().blocks[BLOCK], memories, form)
    for token in range(TOKENS):
        y = x[0, token] + own_mlp(x[0, token : token + 1])[0]
        for memory in memories:
            y = y + level_mlp(memory, y / y.square().mean().sqrt())
        # float64 sums in another order; the norm of the model adds the dtype's smallest step to the mean.
        torch.testing.assert_close(found[0, token], y - x[0, token], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shares", [None, (0.5, -2.0, 1.5)])
def test_eq_74_levels_side_by_side_are_summed_by_weight(shares: tuple[float, ...] | None) -> None:
    """y = Agg(MLP_k(x), ..., MLP_1(x)) with the plain sum, the levels' own shares, or learned weights."""
    specs = [SLOW, MIDDLE, FAST]
    own = [1.0, 0.25, 1 / 3]
    memories = written(*(replace(spec, share=share) for spec, share in zip(specs, own, strict=True)))
    x = torch.randn(1, TOKENS, MODEL.hidden_size, dtype=torch.float64)
    learned = None if shares is None else torch.tensor(shares, dtype=torch.float64, requires_grad=True)
    found = mlp_block(x, make_params().blocks[BLOCK], memories, "independent", learned)
    weights = [share * (1.0 if shares is None else shares[number]) for number, share in enumerate(own)]
    for token in range(TOKENS):
        y = own_mlp(x[0, token : token + 1])[0]
        for weight, memory in zip(weights, memories, strict=True):
            y = y + weight * level_mlp(memory, x[0, token])
        torch.testing.assert_close(found[0, token], y, rtol=0, atol=1e-12)
    if learned is not None:
        slope = torch.autograd.grad(found.sum(), learned)[0]
        expected = [float(sum(level_mlp(memory, x[0, t]).sum() for t in range(TOKENS))) for memory in memories]
        torch.testing.assert_close(slope / torch.tensor(own), torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)


def test_the_mean_of_levels_is_a_share_of_one_over_their_number() -> None:
    """Shares of 1 / k give the mean of the outputs (NL eq. 74)."""
    specs = [replace(spec, share=1 / 3) for spec in (SLOW, MIDDLE, FAST)]
    memories = written(*specs)
    x = torch.randn(1, 1, MODEL.hidden_size, dtype=torch.float64)
    found = mlp_block(x, make_params().blocks[BLOCK], memories)
    outputs = torch.stack([level_mlp(memory, x[0, 0]) for memory in memories])
    torch.testing.assert_close(found[0, 0], own_mlp(x[0])[0] + outputs.mean(dim=0), rtol=0, atol=1e-12)


def test_the_chain_runs_from_the_slowest_level_to_the_fastest_however_they_are_listed() -> None:
    """The lowest frequency comes first (NL eq. 70, 73); side by side the order stays as it was given."""
    for levels in ((FAST, SLOW, MIDDLE), (MIDDLE, FAST, SLOW)):
        for form in ("sequential", "nested"):
            assert list(bench(form, *levels)[0].memory.layouts) == ["slow", "middle", "fast"]
        assert list(bench("independent", *levels)[0].memory.layouts) == [spec.name for spec in levels]


@pytest.mark.parametrize("form", ["independent", "sequential", "nested"])
@pytest.mark.parametrize("kind", ["low_rank", "dense", "residual"])
def test_level_stacking_without_learning_is_the_pretrained_model(form: CmsForm, kind: str) -> None:
    """With every inner lr 0 a text gives the bits of the model without levels (NL §7.3), in every form and kind."""
    levels = [replace(spec, kind=kind, lr=0.0) for spec in (SLOW, MIDDLE, FAST)]
    stacked, params = bench(form, *levels)
    plain, _ = bench("independent")
    tokens, taught = torch.randint(0, 256, (2, 1, CHUNK)), torch.ones(1, CHUNK, dtype=torch.bool)
    ours, theirs = (empty_state(model.memory, 1, torch.float64) for model in (stacked, plain))
    for chunk in tokens:
        found = Learner(stacked).write_chunk(params, ours, chunk, taught)
        expected = Learner(plain).write_chunk(params, theirs, chunk, taught)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(state.weights[0], stacked.memory.initial[name]) for name, state in ours.levels.items())


@pytest.mark.parametrize("form", ["independent", "sequential", "nested"])
def test_a_vanishing_inner_rate_tends_to_the_pretrained_model(form: CmsForm) -> None:
    """As lr goes to 0 the logits after several writes tend to the base model's, in proportion."""
    tokens, taught = torch.randint(0, 256, (5, 1, CHUNK)), torch.ones(1, CHUNK, dtype=torch.bool)
    distances = []
    for lr in (1e-3, 1e-6, 0.0):
        levels = [replace(spec, kind="dense", lr=lr) for spec in (SLOW, MIDDLE, FAST)]
        model, params = bench(form, *levels)
        state = empty_state(model.memory, 1, torch.float64)
        for chunk in tokens:
            logits = Learner(model).write_chunk(params, state, chunk, taught).logits
        distances.append(logits)
    near, far = ((distances[n] - distances[2]).norm().item() for n in (1, 0))
    assert 0 < near < 2e-3 * far


# -- when the levels are written -------------------------------------------------------------------------------------


def read_text(model: HopeModel, params: Params, num_chunks: int) -> tuple[FastState, list[FastState]]:
    """Write a fixed text of so many chunks into one row; the state, and a copy of it before each chunk."""
    generator = torch.Generator().manual_seed(3)
    state, before = empty_state(model.memory, 1, torch.float64), []
    for _ in range(num_chunks):
        before.append(state.clone())
        tokens = torch.randint(0, 256, (1, CHUNK), generator=generator)
        Learner(model).write_chunk(params, state, tokens, torch.ones(1, CHUNK, dtype=torch.bool))
    return state, before


def mean_gradients(model: HopeModel, params: Params, before: list[FastState]) -> dict[str, list[torch.Tensor]]:
    """Mean gradient of each chunk of the fixed text for each level, by finite-difference-free autograd on the loss."""
    generator = torch.Generator().manual_seed(3)
    out: dict[str, list[torch.Tensor]] = {name: [] for name in model.memory.layouts}
    for state in before:
        tokens = torch.randint(0, 256, (1, CHUNK), generator=generator)
        leaves = {name: kept.weights.clone().requires_grad_() for name, kept in state.levels.items()}
        views = {name: model.memory.layouts[name].views(leaf) for name, leaf in leaves.items()}
        sight = model.sight(state.window, CHUNK)
        memories = model.memories(state, views)
        hidden, _ = model.run_blocks(
            params, params.embed[tokens], state.past, memories, sight, range(len(params.blocks))
        )
        loss = functional.cross_entropy(model.logits(params, hidden[0, :-1]), tokens[0, 1:])
        for name, slope in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            out[name].append(slope[0])
    return out


@pytest.mark.parametrize("form", ["independent", "sequential"])
def test_eq_71_each_level_is_written_once_a_period_by_the_sum_of_its_errors(form: CmsForm) -> None:
    """theta moves by -lr times its chunk gradients' sum where i = 0 mod C, and stands still elsewhere; 9 chunks."""
    model, params = bench(form, SLOW, MIDDLE, FAST)
    last, before = read_text(model, params, 9)
    gradients = mean_gradients(model, params, before)
    for spec in (SLOW, MIDDLE, FAST):
        theta, waiting = model.memory.initial[spec.name].clone(), torch.zeros(())
        for number, after in enumerate([*before[1:], last], start=1):
            waiting = waiting + gradients[spec.name][number - 1]
            if number * CHUNK % spec.update_period == 0:
                theta, waiting = theta - spec.lr * waiting, torch.zeros(())
            torch.testing.assert_close(after.levels[spec.name].weights[0], theta, rtol=0, atol=1e-12)
        assert last.levels[spec.name].num_writes.item() == 9 * CHUNK // spec.update_period


def test_eq_73_every_level_of_a_chain_starts_where_the_lowest_frequency_put_it_and_never_returns() -> None:
    """All starts are slow weights, shared and not written; their gradients reach each through the chain."""
    model, params = bench("sequential", SLOW, MIDDLE, FAST)
    fresh = empty_state(model.memory, 1, torch.float64)
    starts = {name: kept.clone() for name, kept in model.memory.initial.items()}
    assert all(torch.equal(fresh.levels[name].weights[0], start) for name, start in starts.items())
    last, _ = read_text(model, params, 8)
    assert all(torch.equal(model.memory.initial[name], start) for name, start in starts.items())
    assert all(not torch.equal(last.levels[name].weights[0], start) for name, start in starts.items())
    assert all(not state.is_nested and state.start.shape == (1, 0) for state in last.levels.values())
    # Chained through one another: each level's start gets its gradient through every later level.
    flats = {
        name: torch.randn(1, layout.num_weights).double().requires_grad_()
        for name, layout in model.memory.layouts.items()
    }
    x = torch.randn(1, 1, MODEL.hidden_size, dtype=torch.float64)
    memories = [layout.views(flats[name])[BLOCK] for name, layout in model.memory.layouts.items()]
    found = mlp_block(x, params.blocks[BLOCK], memories, "sequential")[0, 0]
    y = x[0, 0] + own_mlp(x[0])[0]
    for memory in memories:
        y = y + level_mlp(memory, y / y.square().mean().sqrt())
    direction = torch.randn_like(y)
    ours = torch.autograd.grad((found * direction).sum(), list(flats.values()))
    theirs = torch.autograd.grad((y * direction).sum(), list(flats.values()))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def test_eq_72_a_nested_level_begins_anew_from_the_start_that_the_slower_level_learned() -> None:
    """When the slower period ends, start <- start - lr_slower sum g, and theta <- start; the slowest never returns."""
    model, params = bench("nested", SLOW, MIDDLE, FAST)
    last, before = read_text(model, params, 13)
    gradients = mean_gradients(model, params, before)
    for spec, slower in ((FAST, MIDDLE), (MIDDLE, SLOW), (SLOW, None)):
        start = model.memory.initial[spec.name].clone()
        theta, waiting, context = start, torch.zeros(()), torch.zeros(())
        for number, after in enumerate([*before[1:], last], start=1):
            waiting, context = (total + gradients[spec.name][number - 1] for total in (waiting, context))
            if number * CHUNK % spec.update_period == 0:
                theta, waiting = theta - spec.lr * waiting, torch.zeros(())
            if slower is not None and number * CHUNK % slower.update_period == 0:
                start = start - slower.lr * context
                theta, context = start, torch.zeros(())
            found = after.levels[spec.name]
            torch.testing.assert_close(found.weights[0], theta, rtol=0, atol=1e-12)
            if slower is not None:
                kept = model.memory.initial[spec.name] + found.start[0]
                torch.testing.assert_close(kept, start, rtol=0, atol=1e-12)


def test_a_new_context_starts_the_rule_anew() -> None:
    """Moments and step count of a nested level are those of its current context alone; its writes are counted on."""
    levels = (replace(FAST, rule="adam"), replace(SLOW, rule="adam"))
    model, params = bench("nested", *levels)
    last, before = read_text(model, params, 6)
    assert [state.levels["fast"].num_steps.item() for state in (*before, last)] == [0, 1, 2, 3, 0, 1, 2]
    assert [state.levels["fast"].num_writes.item() for state in (*before, last)] == [0, 1, 2, 3, 5, 6, 7]
    assert not before[4].levels["fast"].moments["first_moment"].any()
    gradient = mean_gradients(model, params, before)["fast"][4]
    change = before[5].levels["fast"].weights[0] - before[4].levels["fast"].weights[0]
    # The first step of Adam is lr in the direction of the gradient.
    torch.testing.assert_close(change, -FAST.lr * gradient / (gradient.abs() + 1e-8), rtol=1e-6, atol=1e-12)


def test_a_context_ends_at_its_position_even_where_nothing_teaches() -> None:
    """A chunk that teaches nothing still ends the context, and counts as a write, so that the store takes it."""
    model, params = bench("nested", SLOW, FAST)
    state = read_text(model, params, 3)[0]
    moved, writes = state.levels["fast"].weights.clone(), state.levels["fast"].num_writes.item()
    tokens = torch.randint(0, 256, (1, CHUNK))
    Learner(model).write_chunk(params, state, tokens, torch.zeros(1, CHUNK, dtype=torch.bool))
    initial = model.memory.initial["fast"]
    expected = initial + SLOW.lr / FAST.lr * (moved - initial)
    torch.testing.assert_close(state.levels["fast"].weights, expected, rtol=0, atol=1e-14)
    assert state.levels["fast"].num_writes.item() == writes + 1
    again = state.clone()
    again.window.positions -= CHUNK
    Learner(model).write_chunk(params, again, tokens, torch.zeros(1, CHUNK, dtype=torch.bool))
    assert again.levels["fast"].num_writes.item() == writes + 1


def test_rows_of_a_batch_end_their_contexts_apart() -> None:
    """Two sessions at other positions: each begins anew where its own slower period ends, as it would alone."""
    model, params = bench("nested", MIDDLE, FAST)
    texts = torch.randint(0, 256, (4, 2, CHUNK))
    taught = torch.ones(2, CHUNK, dtype=torch.bool)
    batch = empty_state(model.memory, 2, torch.float64)
    alone = [empty_state(model.memory, 1, torch.float64) for _ in range(2)]
    Learner(model).write_chunk(params, batch.rows(0, 1), texts[0, :1], taught[:1])
    Learner(model).write_chunk(params, alone[0], texts[0, :1], taught[:1])
    for tokens in texts[1:]:
        Learner(model).write_chunk(params, batch, tokens, taught)
        for row, state in enumerate(alone):
            Learner(model).write_chunk(params, state, tokens[row : row + 1], taught[:1])
    for row, state in enumerate(alone):
        for name, kept in state.levels.items():
            for key, tensor in kept.tensors().items():
                # One float64 product of a batch may sum in another order than that of a row.
                torch.testing.assert_close(batch.levels[name].tensors()[key][row : row + 1], tensor, rtol=0, atol=1e-12)
    assert [state.levels["fast"].num_steps.item() for state in alone] == [0, 1]


# -- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slow", "fast", "rate"), [(0.0, 0.1, 0.0), (0.05, 0.1, 0.5), (0.3, 0.1, 1.0), (0.1, 0.0, 0.0)]
)
def test_the_start_keeps_the_slower_rate_over_its_own(slow: float, fast: float, rate: float) -> None:
    """0 forgets the whole context, 1 keeps all of it; a level that does not learn has nothing to keep."""
    assert cms.start_rate(replace(FAST, lr=fast), replace(SLOW, lr=slow)) == rate


def test_only_nested_online_levels_have_a_context() -> None:
    """Each faster level's is the next slower one; consolidated levels and other forms have none."""
    late = LevelSpec("late", (1,), update_period=2 * CHUNK)
    levels = (FAST, late, SLOW, MIDDLE)
    assert cms.contexts(levels, "nested") == {"fast": MIDDLE, "middle": SLOW}
    assert cms.contexts(levels, "sequential") == cms.contexts(levels, "independent") == {}


def test_a_slower_level_with_rate_zero_only_resets() -> None:
    """With the slower lr 0 the nested level begins each context at its slow weights, to the bit."""
    model, params = bench("nested", replace(SLOW, lr=0.0), FAST)
    state, _ = read_text(model, params, 4)
    assert torch.equal(state.levels["fast"].weights[0], model.memory.initial["fast"])
    assert not state.levels["fast"].start.any()


@pytest.mark.parametrize(("slow", "fast"), [(3 * CHUNK, 2 * CHUNK), (CHUNK, CHUNK)])
def test_a_context_that_is_no_whole_number_of_periods_is_refused(slow: int, fast: int) -> None:
    """The message names both levels and their periods; other forms take any periods."""
    levels = (replace(SLOW, update_period=slow), replace(FAST, update_period=fast))
    with pytest.raises(SettingsError, match=f"level 'fast': update_period {fast} must divide .* 'slow', {slow}"):
        bench("nested", *levels)
    assert bench("sequential", *levels)[0].config.cms == "sequential"


def test_an_unknown_form_is_refused() -> None:
    """The message lists the forms."""
    with pytest.raises(SettingsError, match="cms 'parallel' is unknown; known are independent, sequential, nested"):
        HopeConfig(MODEL, cms="parallel")  # type: ignore[arg-type]
