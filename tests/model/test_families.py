"""Every family of models, all from one config: split-invariant, row-isolated, of constant state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from toys import CONFIG, FAMILIES, FAST, MODEL, SLOW, family_params, make_params

from hope_server.errors import SettingsError
from hope_server.model.config import CmsForm, HopeConfig, TitansSpec
from hope_server.model.families import FAMILY_NAMES, family_config, retrofitted
from hope_server.model.hope import HopeModel
from hope_server.model.levels import mlp_block
from hope_server.model.params import Params, random_params
from hope_server.model.state import FastState, empty_state

ROWS, LENGTH = 3, 23
# Float64 sums in another order: chunks, batches and single tokens multiply matrices of other shapes.
CLOSE = {"rtol": 0.0, "atol": 1e-11}
names = pytest.mark.parametrize("name", FAMILIES)


def built(name: str) -> tuple[HopeModel, Params]:
    """A family's model with slow weights, in float64."""
    config = replace(FAMILIES[name], chunk_size=5, levels=())
    params = family_params(config)
    return HopeModel(config, torch.float64, params), params


def state_of(model: HopeModel, rows: int = ROWS) -> FastState:
    """Sessions that have seen nothing."""
    return empty_state(model.memory, rows, torch.float64)


def drawn_tokens(rows: int = ROWS, length: int = LENGTH) -> torch.Tensor:
    """Tokens [B, T]."""
    return torch.randint(0, MODEL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(4))


def prefilled(
    model: HopeModel, params: Params, tokens: torch.Tensor, cuts: Sequence[int]
) -> tuple[list[torch.Tensor], FastState]:
    """Read tokens in pieces of the given lengths: the logits after each, and the state."""
    state, found, start = state_of(model, tokens.shape[0]), [], 0
    for length in cuts:
        logits, state = model.prefill(params, state, tokens[:, start : start + length])
        found.append(logits)
        start += length
    return found, state


def assert_same_state(actual: FastState, expected: FastState, chunk_size: int) -> None:
    """Every tensor, but for places of an unfinished chunk that no token has taken."""
    pending = int(expected.window.positions[0]) % chunk_size
    theirs = expected.tensors()
    for name, tensor in actual.tensors().items():
        wanted = theirs[name]
        if name.startswith("titans") and name.endswith((".keys", ".values", ".rates")):
            tensor, wanted = tensor[:, :, :pending], wanted[:, :, :pending]
        torch.testing.assert_close(tensor, wanted, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


@names
def test_whole_is_pieces_is_token_by_token(name: str) -> None:
    """Logits after every token, and the state at the end, do not depend on how the tokens came."""
    model, params = built(name)
    tokens = drawn_tokens()
    single, state = prefilled(model, params, tokens, [1] * LENGTH)
    for cuts in ((LENGTH,), (3, 7, 13), (5, 5, 13), (4, 1, 1, 17)):
        found, other = prefilled(model, params, tokens, cuts)
        ends = torch.tensor(cuts).cumsum(0) - 1
        for logits, end in zip(found, ends.tolist(), strict=True):
            torch.testing.assert_close(logits, single[end], **CLOSE)
        assert_same_state(other, state, 5)
    decoded, active = state_of(model), torch.ones(ROWS, dtype=torch.bool)
    for t in range(LENGTH):
        logits, decoded = model.decode(params, decoded, tokens[:, t], active)
        torch.testing.assert_close(logits, single[t], **CLOSE)
    assert_same_state(decoded, state, 5)


@names
def test_rows_at_different_places_of_their_chunks_are_rows_alone(name: str) -> None:
    """Rows of 4, 7 and 10 tokens read and say more together: each gets what it gets alone."""
    model, params = built(name)
    tokens = drawn_tokens()
    together = state_of(model)
    lengths = (4, 7, 10)
    for row, length in enumerate(lengths):
        model.prefill(params, together.rows(row, row + 1), tokens[row : row + 1, :length])
    alone = [together.rows(row, row + 1).clone() for row in range(ROWS)]
    for t in range(6):
        said = torch.stack([tokens[row, length + t] for row, length in enumerate(lengths)])
        logits, together = model.decode(params, together, said, torch.ones(ROWS, dtype=torch.bool))
        for row in range(ROWS):
            own, alone[row] = model.decode(params, alone[row], said[row : row + 1], torch.ones(1, dtype=torch.bool))
            torch.testing.assert_close(logits[row : row + 1], own, **CLOSE)
    more = torch.stack([tokens[row, length + 6 : length + 13] for row, length in enumerate(lengths)])
    logits, together = model.prefill(params, together, more)
    for row in range(ROWS):
        own, alone[row] = model.prefill(params, alone[row], more[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1], own, **CLOSE)
        assert_same_state(together.rows(row, row + 1), alone[row], 5)


@names
def test_rows_of_several_states_are_rows_alone(name: str) -> None:
    """One step for rows that lie apart in a pool: each gets what it gets alone, and what lies between is left alone."""
    model, params = built(name)
    tokens = drawn_tokens()
    pool = state_of(model)
    for row, length in enumerate((4, 7, 10)):
        model.prefill(params, pool.rows(row, row + 1), tokens[row : row + 1, :length])
    alone = [pool.rows(row, row + 1).clone() for row in range(ROWS)]
    for cuts in (((0, 1), (2, 3)), ((0, 2), (2, 3)), ((2, 3), (0, 1))):
        rows = [row for low, high in cuts for row in range(low, high)]
        said = tokens[rows, 12]
        states = [pool.rows(low, high) for low, high in cuts]
        logits = model.decode_stretches(params, states, said, torch.ones(len(rows), dtype=torch.bool))
        for place, row in enumerate(rows):
            own, _ = model.decode(params, alone[row], said[place : place + 1], torch.ones(1, dtype=torch.bool))
            torch.testing.assert_close(logits[place : place + 1], own, **CLOSE)
        for row in range(ROWS):
            assert_same_state(pool.rows(row, row + 1), alone[row], 5)


@names
def test_what_a_row_reads_changes_no_bit_of_another(name: str) -> None:
    """In batches of one shape, a row's logits and state are the same to the bit whatever its neighbours read."""
    model, params = built(name)
    tokens = drawn_tokens()
    others = tokens.clone()
    others[0], others[2] = tokens[1], (tokens[2] + 1) % MODEL.vocab_size
    (ours,), first = prefilled(model, params, tokens, [LENGTH])
    (theirs,), second = prefilled(model, params, others, [LENGTH])
    active = torch.ones(ROWS, dtype=torch.bool)
    said, _ = model.decode(params, first, tokens[:, 0], active)
    heard, _ = model.decode(params, second, others[:, 0], active)
    assert torch.equal(ours[1], theirs[1]) and torch.equal(said[1], heard[1])
    assert not torch.equal(ours[2], theirs[2])
    kept = second.rows(1, 2).tensors()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in first.rows(1, 2).tensors().items())


@names
def test_a_row_that_is_not_decoded_is_left_as_it_was(name: str) -> None:
    """Decoding its neighbours, through the end of a chunk, changes no bit of an inactive row."""
    model, params = built(name)
    _, state = prefilled(model, params, drawn_tokens(), [8])
    before = state.clone()
    active = torch.tensor([True, False, True])
    for token in (1, 2, 3):
        model.decode(params, state, torch.tensor([token] * ROWS), active)
    kept = before.rows(1, 2).tensors()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in state.rows(1, 2).tensors().items())
    assert state.window.positions.tolist() == [11, 8, 11]


@names
def test_the_state_has_the_same_bytes_whatever_was_read(name: str) -> None:
    """A session of no token and one of many are equally large."""
    model, params = built(name)
    sizes = {key: (tensor.shape, tensor.dtype) for key, tensor in state_of(model, 1).tensors().items()}
    state = state_of(model, 1)
    for _ in range(4):
        _, state = model.prefill(params, state, drawn_tokens(1, 50))
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in state.tensors().items()} == sizes


@names
def test_segments_are_read_as_if_each_stood_alone(name: str) -> None:
    """Texts side by side in one row, behind a session in the middle of a chunk: hidden states of separate reads."""
    model, params = built(name)
    tokens = drawn_tokens(1)
    for behind in (0, 8):
        state = state_of(model, 1)
        if behind:
            model.prefill(params, state, tokens[:, :behind])
        kept = state.clone().tensors()
        pieces = [tokens[:, 8:9], tokens[:, 9:16], tokens[:, 12:20]]
        numbers = torch.tensor([0] * 1 + [1] * 7 + [2] * 8)
        together, _ = model.read(params, state, torch.cat(pieces, dim=1), numbers)
        alone = [model.read(params, state, piece)[0] for piece in pieces]
        torch.testing.assert_close(together, torch.cat(alone, dim=1), **CLOSE)
        assert all(torch.equal(tensor, kept[key]) for key, tensor in state.tensors().items())


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].titans is not None])
def test_memories_matter_and_are_written(name: str) -> None:
    """What was read chunks ago changes the prediction through the memories, where nothing else could know it."""
    model, params = built(name)
    tokens = drawn_tokens(1)
    _, state = prefilled(model, params, tokens, [15])
    for block, titans in state.titans.items():
        initial = model.memory.titans_initial[block]
        assert all(not torch.equal(tensor[0], initial[key]) for key, tensor in titans.memories.items())
    state.empty_window()
    after, _ = model.prefill(params, state, tokens[:, 15:17])
    fresh, _ = model.prefill(params, state_of(model, 1), tokens[:, 15:17])
    assert float((after - fresh).abs().max()) > 1e-3


@pytest.mark.parametrize("form", get_args(CmsForm))
def test_levels_act_together_in_the_form_of_the_config(form: CmsForm) -> None:
    """A block's MLPs are the chain, or the sum, that the config names, of levels that were written."""
    model_config = replace(MODEL, num_layers=1)
    near = replace(FAST, name="near", blocks=(0,), kind="residual", rank=4)
    levels = (near, replace(near, name="far", update_period=16))
    config = family_config("hope", model_config, CONFIG.window, 8, levels=levels, cms=form)
    params = family_params(config)
    model = HopeModel(config, torch.float64, params)
    state = state_of(model, 1)
    generator = torch.Generator().manual_seed(5)
    for level in state.levels.values():
        level.weights += torch.randn(level.weights.shape, generator=generator, dtype=torch.float64)
        level.num_writes += 1
    tokens = drawn_tokens(1, 6)
    found, _ = model.read(params, state, tokens)
    silent = params.replaced(params.named() | {"blocks.0.down": torch.zeros_like(params.blocks[0].down)})
    mixed, _ = HopeModel(replace(config, levels=()), torch.float64, silent).read(silent, state, tokens)
    normed = torch.nn.functional.rms_norm(mixed, (MODEL.hidden_size,), params.blocks[0].mlp_norm, MODEL.rms_norm_eps)
    memories = [model.memory.layouts[name].views(state.levels[name].weights)[0] for name in ("far", "near")]
    expected = mixed + mlp_block(normed, params.blocks[0], memories, form)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_retrofit_with_closed_branches_and_lr_0_is_the_base_network_exactly() -> None:
    """Whatever is read and learned, logits are those of the base network, to the bit."""
    levels = (replace(FAST, lr=0.0), replace(SLOW, lr=0.0))
    config = family_config("retrofit", MODEL, CONFIG.window, 8, {"blocks": (0, 2)}, levels)
    base = make_params()
    params = retrofitted(base, config, seed=7)
    model, plain = HopeModel(config, torch.float64, params), HopeModel(replace(CONFIG, levels=()), torch.float64)
    ours, theirs = state_of(model), state_of(plain)
    tokens = drawn_tokens()
    for cut in (tokens[:, :9], tokens[:, 9:]):
        logits, ours = model.prefill(params, ours, cut)
        expected, theirs = plain.prefill(base, theirs, cut)
        assert torch.equal(logits, expected)
    active = torch.ones(ROWS, dtype=torch.bool)
    logits, _ = model.decode(params, ours, tokens[:, 0], active)
    expected, _ = plain.decode(base, theirs, tokens[:, 0], active)
    assert torch.equal(logits, expected)
    assert base.named().keys() < params.named().keys()
    assert all(tensor is params.named()[key] for key, tensor in base.named().items())


def test_a_network_keeps_its_attention_when_it_is_retrofitted() -> None:
    """Without branches nothing changes; Titans in place of attention are refused."""
    base = make_params()
    assert retrofitted(base, CONFIG, 0) is base
    with pytest.raises(SettingsError, match="keeps its attention"):
        retrofitted(base, FAMILIES["hope"], 0)


def test_the_families_are_told_apart_by_their_fields() -> None:
    """What each one mixes tokens with, and how its memories are written."""
    blocks = tuple(range(MODEL.num_layers))
    configs = {name: family_config(name, MODEL) for name in FAMILY_NAMES}
    assert {name: config.attention_blocks for name, config in configs.items()} == {
        "hope": (),
        "hope-attention": blocks,
        "retrofit": blocks,
        "transformer": blocks,
        "titans": (),
        "delta": (),
    }
    paper = TitansSpec(blocks, MODEL.num_heads, MODEL.head_dim)
    assert configs["hope"].titans == paper
    assert configs["titans"].titans == replace(
        paper, memory="mlp", dgd_scope="none", adaptive=(), self_targets=False, has_momentum=True
    )
    assert configs["delta"].titans == replace(
        paper, objective="dot", reads="current", adaptive=(), self_targets=False, is_residual=False
    )
    branch = family_config("retrofit", MODEL, titans={"blocks": (2,), "head_dim": 4}).titans
    assert branch == replace(paper, blocks=(2,), head_dim=4, beside_attention=True)


@pytest.mark.parametrize(
    ("family", "titans", "levels", "message"),
    [
        ("mamba", {}, (), "there is no family 'mamba'; there are: hope, hope-attention"),
        ("titans", {}, (FAST,), "the family 'titans' has no levels"),
        ("transformer", {"memory": "mlp"}, (), "the family 'transformer' has no titans"),
        ("hope", {"heads": 2}, (), "unknown fields heads; known are adaptive"),
        ("hope", {"beside_attention": True}, (), "the family 'hope' has Titans instead of attention"),
        ("retrofit", {"beside_attention": False}, (), "the family 'retrofit' has Titans beside attention"),
        ("hope", {"blocks": (9,)}, (), "blocks must rise within 0..3"),
    ],
)
def test_what_a_family_does_not_have_is_refused(
    family: str, titans: dict[str, object], levels: tuple[object, ...], message: str
) -> None:
    """One line with the reason."""
    with pytest.raises(SettingsError, match=message):
        family_config(family, MODEL, CONFIG.window, 8, titans, levels)


def gated_delta_rule(config: HopeConfig, params: Params, x: torch.Tensor) -> torch.Tensor:
    """What memory 0 of block 0 of the `delta` family holds after inputs x [T, D], as the delta rule is written."""
    titans, spec = params.blocks[0].titans, config.titans
    assert titans is not None and spec is not None
    memory = titans.initial["weights"].clone()[0]
    heads, size = spec.num_heads, spec.head_dim
    projected = x @ torch.cat([titans.qkv, titans.rates]).T
    padded = torch.cat([projected.new_zeros(spec.conv_size - 1, projected.shape[1]), projected])
    for t in range(x.shape[0]):
        mixed = (padded[t : t + spec.conv_size] * titans.conv.T).sum(0)
        heads_of, rates_of = mixed.split([3 * heads * size, 2 * heads])
        _, key, value = torch.nn.functional.normalize(heads_of.view(3, heads, size)[:, 0], dim=-1)
        rates = (rates_of + titans.rate_bias).view(2, heads)[:, 0]
        alpha = torch.exp(-torch.nn.functional.softplus(rates[1]))
        beta = torch.sigmoid(rates[0])
        # S = alpha (S - beta k (k S - v / alpha ...)): with lr = alpha beta, both parts carry alpha.
        memory = alpha * (memory - beta * key[:, None] * (key @ memory)[None, :]) + alpha * beta * torch.outer(
            key, value
        )
    return memory


def test_delta_is_the_gated_delta_rule() -> None:
    """S = alpha (I - beta k k') S + alpha beta k v', token by token, whatever the chunk."""
    config = FAMILIES["delta"]
    params = random_params(config, 3, torch.float64)
    model = HopeModel(config, torch.float64, params)
    tokens = drawn_tokens(1, 16)
    _, state = model.prefill(params, state_of(model, 1), tokens)
    hidden = params.embed[tokens[0]]
    inputs = torch.nn.functional.rms_norm(hidden, (MODEL.hidden_size,), eps=MODEL.rms_norm_eps)
    expected = gated_delta_rule(config, params, inputs)
    torch.testing.assert_close(state.titans[0].memories["weights"][0, 0], expected, **CLOSE)
