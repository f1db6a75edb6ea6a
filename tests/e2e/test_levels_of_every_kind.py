"""Every inner rule and every form of the Continuum Memory System: split-invariant, and exact after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import CONFIG, FAST, SLOW, Bench, make_tokenizer, scripted

from hope_server.engine.state_codec import export_row, import_row
from hope_server.model.config import CmsForm, HopeConfig, Rule
from hope_server.model.state import FastState, empty_state
from hope_server.optim import RULE_NAMES

TOKENS = make_tokenizer().encode("Mira has a red cat. It sleeps! Otto (who is 9) keeps 2 dogs.\nAnd so on: one, two.")
FORMS: tuple[CmsForm, ...] = ("sequential", "nested")


def with_rule(rule: Rule) -> HopeConfig:
    """An online level that accumulates over two chunks and a consolidated one, both under this rule."""
    return replace(CONFIG, levels=(replace(FAST, rule=rule, update_period=16), replace(SLOW, rule=rule)))


def with_form(form: CmsForm) -> HopeConfig:
    """Three online levels on shared blocks and a consolidated one, in this form."""
    chained = replace(FAST, kind="residual", blocks=(1, 2))
    levels = (
        chained,
        replace(chained, name="slower", update_period=16, rule="muon", blocks=(2, 3)),
        replace(FAST, name="slowest", update_period=32, rule="m3"),
        replace(SLOW, kind="residual"),
    )
    return replace(CONFIG, levels=levels, cms=form)


CONFIGS = {rule: with_rule(rule) for rule in RULE_NAMES} | {form: with_form(form) for form in FORMS}


def assert_same_levels(left: Bench, left_slot: int, right: Bench, right_slot: int) -> None:
    """Every tensor of every level is the same, to the bit."""
    ours, theirs = left.pool.row(left_slot).levels, right.pool.row(right_slot).levels
    for name, level in ours.items():
        expected = theirs[name].tensors()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in level.tensors().items()), name


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_does_not_depend_on_how_the_text_was_split_into_turns(name: str) -> None:
    """Read at once and in uneven turns, consolidations included: every level ends the same, bit for bit."""
    whole, pieces = Bench(config=CONFIGS[name]), Bench(config=CONFIGS[name])
    one, many = whole.in_turns(TOKENS), pieces.in_turns(TOKENS, 1, 9, 37, 64)
    assert all(level.num_writes.item() > 0 for level in whole.pool.row(one.slot).levels.values())
    assert_same_levels(whole, one.slot, pieces, many.slot)


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_does_not_depend_on_prefill_or_decode(name: str) -> None:
    """Tokens that come one by one through decode leave the online levels as tokens read at once do, bit for bit."""
    read, spoken = (Bench(config=CONFIGS[name], is_automatic=False) for _ in range(2))
    one = read.in_turns(TOKENS)
    said = spoken.run(TOKENS[:5], generation=scripted(spoken, TOKENS[5:]))
    spoken.turn(said)
    assert_same_levels(read, one.slot, spoken, said.slot)
    assert read.pool.row(one.slot).levels[CONFIGS[name].levels[0].name].num_writes.item() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_restored_session_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    """Stored in the middle of a period and read back, the state is the same to the bit, and so is what follows."""
    bench = Bench(config=CONFIGS[name])
    run = bench.run(TOKENS[:44])
    bench.turn(run)
    row = bench.pool.row(run.slot)
    snapshot, _ = export_row(bench.model.memory, row, run.log, "f", {})
    other = Bench(config=CONFIGS[name])
    restored: FastState = empty_state(other.model.memory, 1, torch.float64)
    log = import_row(other.model.memory, restored, snapshot)
    found = restored.tensors()
    assert all(torch.equal(found[part], tensor) for part, tensor in row.tensors().items() if "pending" not in part)
    assert log.position == 44
    for model, state in ((bench, row), (other, restored)):
        tokens = torch.tensor([TOKENS[40:48]])
        state.window.positions -= 4
        model.writer._learner.write_chunk(model.params, state, tokens, torch.ones_like(tokens, dtype=torch.bool))
    for key, level in row.levels.items():
        expected = restored.levels[key].tensors()
        assert all(torch.equal(tensor, expected[part]) for part, tensor in level.tensors().items()), key
