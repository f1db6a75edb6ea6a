"""Memory levels: each kind against weights that were merged by hand, and the flat layout that holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn import functional
from toys import MODEL, make_params

from hope_server.model.config import BlockKind, LevelSpec, Rule
from hope_server.model.levels import BlockMemory, LevelLayout, make_layout, mlp_block
from hope_server.model.params import BlockParams
from hope_server.optim import RULE_NAMES

KINDS: list[BlockKind] = ["low_rank", "dense", "residual"]
ROWS, TOKENS, BLOCK, RANK = 3, 5, 2, 3


def spec_of(kind: BlockKind) -> LevelSpec:
    """A level of this kind over blocks 1 and 2."""
    return LevelSpec("level", (1, BLOCK), kind, RANK)


def written(layout: LevelLayout, rows: int = ROWS) -> torch.Tensor:
    """Flat weights of rows that have all learned something else."""
    return torch.randn(rows, layout.num_weights, dtype=torch.float64) / 4


def plain_block(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """SwiGLU of one row's tokens through explicit matrices."""
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def merged_block(x: torch.Tensor, params: BlockParams, memory: BlockMemory, row: int) -> torch.Tensor:
    """One row's block with its fast weights added into the slow ones, or beside them."""
    gate, up = params.gate_up.chunk(2)
    down = params.down
    fast = {name: tensor[row] for name, tensor in memory.items()}
    if "in_gate_up" in fast:
        gate = gate + fast["out_gate"] @ fast["in_gate_up"][:RANK]
        up = up + fast["out_up"] @ fast["in_gate_up"][RANK:]
        down = down + fast["out_down"] @ fast["in_down"]
    if "delta_down" in fast:
        down = down + fast["delta_down"]
    out = plain_block(x, gate, up, down)
    if "in_residual" in fast:
        out = out + functional.silu(x @ fast["in_residual"].T) @ fast["out_residual"].T
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_acts_as_if_merged_into_the_weights(kind: BlockKind) -> None:
    """Each row's block equals the plain block whose matrices have that row's fast weights added in."""
    params, layout = make_params().blocks[BLOCK], make_layout(spec_of(kind), MODEL)
    memory = layout.views(written(layout))[BLOCK]
    x = torch.randn(ROWS, TOKENS, MODEL.hidden_size, dtype=torch.float64)
    actual = mlp_block(x, params, [memory])
    for row in range(ROWS):
        # float64 sums in another order.
        torch.testing.assert_close(actual[row], merged_block(x[row], params, memory, row), rtol=0, atol=1e-12)


def test_levels_on_one_block_add_up() -> None:
    """Two low-rank levels and a dense one on a block act as all their deltas together."""
    params = make_params().blocks[BLOCK]
    layouts = [make_layout(spec_of(kind), MODEL) for kind in ("low_rank", "dense", "low_rank")]
    memories = [layout.views(written(layout, 1))[BLOCK] for layout in layouts]
    x = torch.randn(1, TOKENS, MODEL.hidden_size, dtype=torch.float64)
    first, dense, second = ({name: tensor[0] for name, tensor in memory.items()} for memory in memories)
    gate, up = params.gate_up.chunk(2)
    for fast in (first, second):
        gate = gate + fast["out_gate"] @ fast["in_gate_up"][:RANK]
        up = up + fast["out_up"] @ fast["in_gate_up"][RANK:]
    down = params.down + dense["delta_down"] + sum(fast["out_down"] @ fast["in_down"] for fast in (first, second))
    torch.testing.assert_close(mlp_block(x, params, memories)[0], plain_block(x[0], gate, up, down), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unwritten_level_changes_nothing(kind: BlockKind) -> None:
    """Initial weights give the block's own output, to the bit, although inputs' sides are not zero."""
    params, layout = make_params().blocks[BLOCK], make_layout(spec_of(kind), MODEL)
    memory = layout.views(layout.initial(torch.float64).expand(ROWS, -1))[BLOCK]
    x = torch.randn(ROWS, TOKENS, MODEL.hidden_size, dtype=torch.float64)
    assert torch.equal(mlp_block(x, params, [memory]), mlp_block(x, params, []))


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_are_drawn_once_and_store_exactly(kind: BlockKind) -> None:
    """The same level always starts the same, in any dtype; its input sides can learn, and bfloat16 holds them."""
    layout = make_layout(spec_of(kind), MODEL)
    initial = layout.initial(torch.float32)
    assert torch.equal(initial, make_layout(spec_of(kind), MODEL).initial(torch.float32))
    assert torch.equal(initial.double(), layout.initial(torch.float64))
    assert torch.equal(initial.bfloat16().float(), initial)
    for block, memory in layout.views(initial[None]).items():
        for name, matrix in memory.items():
            assert bool(matrix.any()) == name.startswith("in"), (block, name)


def test_the_start_of_a_block_does_not_depend_on_the_levels_other_blocks() -> None:
    """A level over more blocks starts with the same weights at those it shares; different blocks start differently."""
    narrow, wide = (make_layout(replace(spec_of("low_rank"), blocks=blocks), MODEL) for blocks in ((2,), (0, 2)))
    ours = narrow.views(narrow.initial(torch.float32)[None])
    theirs = wide.views(wide.initial(torch.float32)[None])
    assert all(torch.equal(ours[2][name], theirs[2][name]) for name in ours[2])
    assert not torch.equal(theirs[0]["in_gate_up"], theirs[2]["in_gate_up"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_holds_every_weight_once(kind: BlockKind) -> None:
    """Splitting into matrices and flattening in layout order gives the same vector; places neither overlap nor gap."""
    layout = make_layout(spec_of(kind), MODEL)
    flat = torch.arange(2 * layout.num_weights, dtype=torch.float64).view(2, -1)
    views = layout.views(flat)
    assert torch.equal(layout.flatten([views[block][name] for block, name in layout.places]), flat)
    covered = sorted(i for start, rows, columns in layout.places.values() for i in range(start, start + rows * columns))
    assert covered == list(range(layout.num_weights))


def test_views_write_through_and_leaves_do_not_leak() -> None:
    """A view is the vector's own memory; a leaf takes a gradient that the vector itself never sees."""
    layout = make_layout(spec_of("dense"), MODEL)
    flat = torch.zeros(1, layout.num_weights)
    layout.views(flat)[1]["delta_down"].fill_(1.0)
    assert flat.sum().item() == layout.num_weights / 2
    leaves = layout.leaves(flat)
    (leaves[1]["delta_down"].sum() * 2).backward()
    assert bool((leaves[1]["delta_down"].grad == 2.0).all())
    assert leaves[BLOCK]["delta_down"].grad is None
    assert flat.grad is None
    assert not flat.requires_grad


def test_a_row_does_not_see_anothers_memory() -> None:
    """NaN in one row's memory stays in that row."""
    params, layout = make_params().blocks[BLOCK], make_layout(spec_of("low_rank"), MODEL)
    flat = written(layout)
    flat[1] = torch.nan
    out = mlp_block(torch.randn(ROWS, TOKENS, 32, dtype=torch.float64), params, [layout.views(flat)[BLOCK]])
    assert out.isfinite().all(dim=(1, 2)).tolist() == [True, False, True]


def test_levels_may_name_every_rule_that_works_from_a_gradient() -> None:
    """The config's list and the rules' own are one."""
    assert get_args(Rule) == RULE_NAMES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_rule_acts_on_each_matrix_of_a_level_by_itself(rule: Rule, kind: BlockKind) -> None:
    """A level's step is, matrix by matrix, the step of the rule on that matrix, over several steps and rows.

    Element-wise rules that scale by the size of a gradient see the level's whole vector instead.
    """
    layout = make_layout(replace(spec_of(kind), rule=rule), MODEL)
    inner = layout.rule
    moments = layout.moments(2, torch.float64)
    drift = written(layout, 2)
    parts = {place: inner.init(layout.views(drift)[place[0]][place[1]]) for place in layout.places}
    for number in range(1, 4):
        gradient, steps = written(layout, 2), torch.tensor([number, number + 4])
        kept = {name: tensor.clone() for name, tensor in moments.items()}
        change, after = layout.step(moments, gradient, steps, drift)
        assert all(torch.equal(moments[name], tensor) for name, tensor in kept.items())
        if rule == "feature_momentum":
            expected, _ = inner.update(moments, gradient, steps, drift)
            assert torch.equal(change, expected)
        else:
            slopes, drifts = layout.views(gradient), layout.views(drift)
            for block, name in layout.places:
                found = layout.views(change)[block][name]
                expected, parts[block, name] = inner.update(
                    parts[block, name], slopes[block][name], steps, drifts[block][name]
                )
                # Matrices of one shape are multiplied as one batch.
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            for name, flat in after.items():
                own = torch.cat([parts[place][name].flatten(1) for place in layout.places], dim=1)
                torch.testing.assert_close(flat, own, rtol=1e-9, atol=1e-12)
        moments = after


def test_moments_of_the_first_builds_rules_keep_their_names_and_layout() -> None:
    """Adam's and momentum's are flat vectors like the weights, under the names that snapshots hold."""
    for rule, names in (("sgd", ()), ("momentum", ("first_moment",)), ("adam", ("first_moment", "second_moment"))):
        layout = make_layout(replace(spec_of("low_rank"), rule=rule), MODEL)
        moments = layout.moments(ROWS, torch.float32)
        assert tuple(moments) == names
        assert all(tensor.shape == (ROWS, layout.num_weights) for tensor in moments.values())
