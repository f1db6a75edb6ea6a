"""The attention window: its ring against a plain dictionary, its mask and rotations against their definitions, and its
attention against a history that forgets nothing.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from hope_server.model.config import HopeConfig, ModelConfig, WindowSpec
from hope_server.model.window import (
    attend,
    empty_window,
    ring_capacity,
    ring_places,
    ring_positions,
    rotary_angles,
    rotate,
    visible,
)

HEADS, SHARED, SIZE = 6, 2, 8
MODEL = ModelConfig("toy", 50, 16, 24, 2, HEADS, SHARED, SIZE, 10_000.0, 1e-5, 4096, True)
CONFIGS = [
    HopeConfig(MODEL, WindowSpec(size, sinks), (), chunk) for size, sinks, chunk in ((7, 2, 3), (5, 0, 5), (4, 4, 1))
]


def simulate(config: HopeConfig, num_tokens: int) -> list[dict[int, int]]:
    """What each place holds after every token: a dictionary that is written by hand, one token at a time."""
    sinks, room = config.window.num_sinks, config.window.size + config.chunk_size
    held: dict[int, int] = {}
    history = []
    following = sinks
    for position in range(num_tokens):
        if position < sinks:
            held[position] = position
        else:
            held[following] = position
            following = sinks if following == sinks + room - 1 else following + 1
        history.append(dict(held))
    return history


@pytest.mark.parametrize("config", CONFIGS)
def test_the_ring_holds_what_a_dictionary_holds_past_several_wraps(config: HopeConfig) -> None:
    """Places and positions agree with a simulation, at every length up to four times round."""
    capacity = ring_capacity(config)
    history = simulate(config, 4 * capacity)
    for last, held in enumerate(history):
        assert held[int(ring_places(config, torch.tensor(last)))] == last
        expected = [held.get(place, -1) for place in range(capacity)]
        assert ring_positions(config, torch.tensor([last]), capacity)[0].tolist() == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_of_different_length_have_rings_of_their_own(config: HopeConfig) -> None:
    """A batch of lengths, none of them read included, gives each row what it has alone."""
    capacity = ring_capacity(config)
    lasts = [-1, 0, 1, capacity - 1, capacity, 3 * capacity + 1]
    found = ring_positions(config, torch.tensor(lasts), capacity)
    history = simulate(config, 4 * capacity)
    for row, last in enumerate(lasts):
        held = history[last] if last >= 0 else {}
        assert found[row].tolist() == [held.get(place, -1) for place in range(capacity)]


def test_fewer_places_are_the_first_ones() -> None:
    """Asking for the used part of the ring gives the beginning of the whole."""
    config = CONFIGS[0]
    last = torch.tensor([4])
    assert ring_positions(config, last, 5).tolist() == ring_positions(config, last, 12)[:, :5].tolist()


def test_an_unfinished_chunk_can_be_replayed_from_its_start() -> None:
    """Whatever was read since a chunk's start, no token that the start can see has been overwritten."""
    for config in CONFIGS:
        sinks, size, chunk = config.window.num_sinks, config.window.size, config.chunk_size
        history = simulate(config, 60)
        for start in range(60 - chunk):
            seen = {p for p in range(start + 1) if p < sinks or p > start - size}
            assert seen <= set(history[start + chunk - 1].values())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_mask_shows_sinks_and_the_last_positions_only(config: HopeConfig) -> None:
    """A query sees itself, the window behind it and the sinks; never the future, never an empty place."""
    queries, keys = torch.tensor([[0, 3, 19]]), torch.tensor([[-1, *range(24)]])
    mask = visible(config, queries, keys, torch.float32)
    assert mask.dtype == torch.float32
    for row, query in enumerate(queries[0].tolist()):
        for column, key in enumerate(keys[0].tolist()):
            is_seen = 0 <= key <= query and (query - key < config.window.size or key < config.window.num_sinks)
            assert mask[0, row, column].item() == (0.0 if is_seen else -math.inf)


def test_rotary_scores_depend_on_the_distance_alone_at_position_a_million() -> None:
    """float32 queries and keys a million tokens into a session score as the same pair does at the start."""
    config = CONFIGS[0]
    query, key = torch.randn(2, 1, 1, 1, SIZE, dtype=torch.float64)

    def score(start: int, dtype: torch.dtype) -> torch.Tensor:
        turned = [
            rotate(x.to(dtype), rotary_angles(config, torch.tensor([[start + shift]]), dtype))
            for x, shift in ((query, 5), (key, 0))
        ]
        return (turned[0] * turned[1]).sum()

    near = score(0, torch.float64)
    # A million radians in float64 are exact to 1e-10.
    torch.testing.assert_close(score(10**6, torch.float64), near, rtol=0, atol=1e-8)
    # The angle is rounded to float32 only as a cosine: the error is that of a product of float32 numbers.
    torch.testing.assert_close(score(10**6, torch.float32).double(), near, rtol=0, atol=2e-6)


def test_rotation_is_that_of_each_pair_of_coordinates() -> None:
    """Coordinates i and i + d/2 turn by position x theta^(-2i/d); rotation by nothing changes nothing."""
    config = CONFIGS[0]
    x = torch.randn(1, 1, 1, SIZE, dtype=torch.float64)
    turned = rotate(x, rotary_angles(config, torch.tensor([[13]]), torch.float64))
    for index in range(SIZE // 2):
        angle = 13 * 10_000.0 ** (-2 * index / SIZE)
        low, high = float(x[..., index]), float(x[..., index + SIZE // 2])
        assert float(turned[..., index]) == pytest.approx(low * math.cos(angle) - high * math.sin(angle), abs=1e-12)
        assert float(turned[..., index + SIZE // 2]) == pytest.approx(
            high * math.cos(angle) + low * math.sin(angle), abs=1e-12
        )
    assert torch.equal(rotate(x, rotary_angles(config, torch.tensor([[0]]), torch.float64)), x)


def full_history(config: HopeConfig, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of the last token over everything ever read, [T, heads, d] each, as the definition has it.

    Every key that the token sees gets the position that it has in a text of sinks and window alone.
    """
    now = len(key) - 1
    sinks, size = config.window.num_sinks, config.window.size
    seen = [p for p in range(now + 1) if p < sinks or p > now - size]
    places = torch.arange(len(seen))
    if now < sinks + size:
        assert seen == list(range(now + 1))
    turned = rotate(key[seen][None], rotary_angles(config, places[None], key.dtype))[0]
    asked = rotate(query[-1][None, None], rotary_angles(config, places[-1:][None], key.dtype))[0]
    out = functional.scaled_dot_product_attention(
        asked.transpose(0, 1)[None], turned.transpose(0, 1)[None], value[seen].transpose(0, 1)[None], enable_gqa=True
    )
    return out[0, :, 0].flatten()


@pytest.mark.parametrize("config", CONFIGS)
def test_attention_through_the_ring_equals_attention_over_the_full_history(config: HopeConfig) -> None:
    """Token by token past three wraps, the ring with its re-indexed sinks gives what the whole history gives."""
    capacity, length = ring_capacity(config), 3 * ring_capacity(config) + 2
    sinks, furthest = config.window.num_sinks, config.window.num_sinks + config.window.size - 1
    query = torch.randn(length, HEADS, SIZE, dtype=torch.float64)
    key, value = torch.randn(2, length, SHARED, SIZE, dtype=torch.float64)
    window = empty_window(config, 1, torch.float64)
    assert window.keys.shape == (2, 1, SHARED, capacity, SIZE)
    for position in range(length):
        here = torch.tensor([[position]])
        place = int(ring_places(config, here))
        window.keys[0, 0, :, place] = rotate(key[position][None, None], rotary_angles(config, here, torch.float64))[
            0, 0
        ]
        window.values[0, 0, :, place] = value[position]
        held = ring_positions(config, here[0], capacity)
        asked = rotate(query[position][None, None], rotary_angles(config, here, torch.float64))
        far = rotate(query[position][None, None], rotary_angles(config, here.clamp(max=furthest), torch.float64))
        mask = visible(config, here, held, torch.float64)
        actual = attend(asked, far if sinks else None, sinks, window.keys[0], window.values[0], mask)
        expected = full_history(config, query[: position + 1], key[: position + 1], value[: position + 1])
        torch.testing.assert_close(actual[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_sinks", [None, 0, 2])
def test_attention_is_a_softmax_over_scaled_scores(num_sinks: int | None) -> None:
    """Grouped heads, several rows and tokens, any mask; a far query asks the first keys, where there is one."""
    query, far = torch.randn(2, 2, 5, HEADS, SIZE, dtype=torch.float64)
    keys, values = torch.randn(2, 2, SHARED, 9, SIZE, dtype=torch.float64)
    mask = torch.zeros(2, 5, 9, dtype=torch.float64).masked_fill(torch.rand(2, 5, 9) < 0.4, -math.inf)
    mask[:, :, 0] = 0.0
    actual = attend(query, None if num_sinks is None else far, num_sinks or 0, keys, values, mask)
    for head in range(HEADS):
        group = head // (HEADS // SHARED)
        scores = torch.einsum("btd,bnd->btn", query[:, :, head], keys[:, group])
        if num_sinks is not None:
            seen = torch.einsum("btd,bnd->btn", far[:, :, head], keys[:, group])
            scores = torch.cat([seen[..., :num_sinks], scores[..., num_sinks:]], dim=-1)
        weights = (scores / math.sqrt(SIZE) + mask).softmax(-1)
        expected = torch.einsum("btn,bnd->btd", weights, values[:, group])
        found = actual[:, :, head * SIZE : (head + 1) * SIZE]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_key_that_is_not_seen_does_not_matter() -> None:
    """Rubbish in places that the mask hides changes no bit of the result."""
    query = torch.randn(1, 2, HEADS, SIZE)
    keys, values = torch.randn(2, 1, SHARED, 4, SIZE)
    mask = torch.tensor([[[0.0, 0.0, -math.inf, -math.inf]] * 2])
    expected = attend(query, query, 1, keys, values, mask)
    keys[:, :, 2:], values[:, :, 2:] = 1e30, -1e30
    assert torch.equal(attend(query, query, 1, keys, values, mask), expected)
