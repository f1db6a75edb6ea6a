"""The gate of a level that has studied: what it does to a token by hand, what sets it, and a gated level's layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_llama import norm
from toys import CONFIG, MODEL, make_params

from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_reader import read_general_keys
from hope_server.model.levels import make_layout, mlp_block, mlp_keys
from hope_server.model.recognition import SHARPNESS, GeneralKeys, recognition

SPEC = LevelSpec("level", (1, 2), "dense", rule="muon", is_whitened=True, gate=0.75)
TEXTS = [[5, 9, 20, 7, 8, 3], [40, 41], [42, 43, 44, 45, 46]]
ROWS, TOKENS = 3, 5


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers of a seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_level_speaks_where_its_change_is_long_beside_the_blocks() -> None:
    """By hand: a half at the threshold, nothing far below it, all far above it, and always where there is no gate."""
    slow = torch.tensor([[[3.0, 4.0]]]).double()
    for length, threshold, expected in ((1.0, 0.2, 0.5), (0.5, 0.2, 4.54e-5), (2.0, 0.2, 1.0), (1e-3, 0.0, 1.0)):
        change = torch.tensor([[[0.0, length]]]).double()
        found = recognition(change, slow, torch.tensor([[[threshold]]]).double())
        assert found.shape == (1, 1, 1)
        assert found.item() == pytest.approx(expected, rel=1e-3)
    almost = recognition(torch.tensor([[[0.0, 1.1]]]).double(), slow, torch.tensor([[[0.2]]]).double())
    assert almost.logit().item() == pytest.approx(0.1 * SHARPNESS)


def test_a_row_that_has_learned_nothing_stays_as_it_is_beside_others() -> None:
    """No change, no threshold and a block that says nothing give no value that is not finite."""
    nothing = torch.zeros(1, 1, 2)
    assert torch.equal(nothing * recognition(nothing, nothing, torch.zeros(1, 1, 1)), nothing)


def test_thresholds_shut_the_gate_at_a_share_of_general_text() -> None:
    """Of 80 tokens, three quarters are below a half at the threshold that a share of 0.75 gives."""
    keys, slow = drawn(80, 6), drawn(4, 6, seed=1)
    deltas = torch.stack([drawn(4, 6, seed=2), 100 * drawn(4, 6, seed=3)])
    general = GeneralKeys({7: keys, 9: keys}, dict.fromkeys((7, 9), (keys @ slow.T).norm(dim=-1)))
    thresholds = general.thresholds(deltas, (7, 9), 0.75)
    for delta, threshold in zip(deltas, thresholds, strict=True):
        found = recognition((keys @ delta.T)[None], (keys @ slow.T)[None], threshold.view(1, 1, 1))
        assert int((found < 0.5).sum()) == 60


def test_general_keys_are_what_the_slow_weights_say_of_each_text() -> None:
    """Computed up to the block and its attention apart; texts do not see each other, first tokens are left out."""
    params = make_params()
    found = read_general_keys(MODEL, params, TEXTS, (0, 2), skip=2)
    model = HopeModel(CONFIG, torch.float64)
    none: list[list[dict[str, torch.Tensor]]] = [[] for _ in params.blocks]
    for block in (0, 2):
        silent, expected = params.blocks[block], []
        for text in (TEXTS[0], TEXTS[2]):
            past = model.empty_past(1, torch.float64)
            sight, hidden = model.sight(past.window, len(text)), params.embed[torch.tensor([text])]
            hidden, _ = model.run_blocks(params, hidden, past, none, sight, range(block))
            # Without its MLP a block adds what it attends to alone.
            mute = replace(silent, down=torch.zeros_like(silent.down))
            mixed, _ = model.run_block(mute, block, hidden, past, [], sight)
            expected.append(mlp_keys(norm(mixed), silent)[0, 2:])
        torch.testing.assert_close(found.keys[block], torch.cat(expected))
        torch.testing.assert_close(found.lengths[block], (torch.cat(expected) @ silent.down.T).norm(dim=1))


def test_a_gated_level_acts_as_its_delta_where_it_recognises() -> None:
    """Every row by its own threshold: the block's output, and of what the delta adds as much as the gate lets by."""
    layout, params = make_layout(SPEC, MODEL), make_params().blocks[2]
    flat = drawn(ROWS, layout.num_weights) / 8
    flat[:, -2:] = torch.tensor([[9.0, 0.0], [9.0, 0.5], [9.0, 1.0]])
    memory, x = layout.views(flat)[2], drawn(ROWS, TOKENS, MODEL.hidden_size, seed=1)
    actual = mlp_block(x, params, [memory])
    shares = []
    for row, threshold in enumerate((0.0, 0.5, 1.0)):
        for token in range(TOKENS):
            key = mlp_keys(x[row : row + 1, token : token + 1], params)[0, 0]
            slow, change = params.down @ key, memory["delta_down"][row] @ key
            ratio = (change.norm() / slow.norm()).item()
            share = 1.0 if not threshold else torch.tensor(SHARPNESS * (ratio / threshold - 1)).double().sigmoid()
            torch.testing.assert_close(actual[row, token], slow + share * change)
            shares.append(float(share))
    assert min(shares) < 0.3 and 0.3 < sorted(shares)[TOKENS] < 1.0


def test_thresholds_stand_behind_the_matrices_and_are_not_learned() -> None:
    """One for each block; no gradient reaches them, a step leaves them as they are."""
    layout, plain = make_layout(SPEC, MODEL), make_layout(replace(SPEC, gate=0.0), MODEL)
    assert (layout.places, layout.num_weights) == (plain.places, plain.num_weights + 2)
    flat = drawn(ROWS, layout.num_weights)
    views = layout.views(flat)
    assert torch.equal(torch.cat([views[block]["threshold"][:, 0] for block in (1, 2)], dim=1), flat[:, -2:])
    leaves = layout.leaves(flat)
    assert all(list(leaves[block]) == ["delta_down"] for block in (1, 2))
    gradient = layout.flatten([leaves[block][name].detach() for block, name in layout.places])
    assert torch.equal(gradient[:, :-2], flat[:, :-2]) and not gradient[:, -2:].any()
    moments, steps = layout.moments(ROWS, torch.float64), torch.ones(ROWS, dtype=torch.long)
    change, _ = layout.step(moments, gradient, steps, torch.zeros_like(gradient))
    assert change[:, :-2].any() and not change[:, -2:].any()
