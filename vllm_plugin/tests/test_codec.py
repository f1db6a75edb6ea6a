"""States in snapshots: exact, by ranks, and refused where anything is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hope_memory.snapshot import Level, Snapshot
from hope_vllm.codec import Shard, State, StateCodec
from hope_vllm.errors import ShardMissing
from hope_vllm.hope_config import empty_row, titans_of
from hope_vllm.sessions import cut_shards
from toy_models import CHUNK, toy_config

from hope_server.errors import StateCorrupt

CONFIG = toy_config()
SPEC = titans_of(CONFIG)
CODEC = StateCodec(CONFIG, "f" * 32)


def random_state(num_tokens: int) -> State:
    """A state with something in every place that is used after so many tokens."""
    generator = torch.Generator().manual_seed(num_tokens)
    blocks = {}
    for block in SPEC.blocks:
        row = {name: tensor[0] for name, tensor in empty_row(CONFIG, SPEC).tensors().items()}
        blocks[block] = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in row.items()}
        for name in ("keys", "values", "rates"):
            blocks[block][name][:, num_tokens % CHUNK :] = 0
    return State(blocks, num_tokens)


def shards_of(state: State, num_ranks: int) -> list[Shard]:
    """The state as ranks hand it over."""
    return cut_shards(CONFIG, state, num_ranks)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("num_tokens", [0, 5, 16, 31])
def test_a_state_comes_back_bit_for_bit(num_tokens: int, num_ranks: int) -> None:
    """Whatever ranks stored it, and wherever in its chunk the session stands."""
    state = random_state(num_tokens)

    snapshot = CODEC.encode(shards_of(state, num_ranks), num_tokens, {"turn": 3})
    found = CODEC.decode(snapshot)

    assert found.num_tokens == num_tokens and found.info["turn"] == 3
    assert set(snapshot.levels) == {f"rank.{rank}" for rank in range(num_ranks)}
    for block, tensors in state.blocks.items():
        assert all(torch.equal(found.blocks[block][name], tensor) for name, tensor in tensors.items())


def test_what_waits_for_its_chunk_is_stored_as_far_as_it_is_there() -> None:
    """A session at a chunk's end stores none of the places for its next tokens."""
    full, empty = (CODEC.encode(shards_of(random_state(n), 1), n, {}).num_bytes for n in (31, 32))

    per_token = len(SPEC.blocks) * SPEC.num_heads * (2 * SPEC.head_dim + 3) * 4
    assert full - empty == 15 * per_token


def test_a_missing_shard_is_named() -> None:
    """A snapshot that lacks a rank's level."""
    snapshot = CODEC.encode(shards_of(random_state(5), 4), 5, {})
    levels = {name: level for name, level in snapshot.levels.items() if name != "rank.2"}

    with pytest.raises(ShardMissing, match="lacks shard 2 of 4"):
        CODEC.decode(Snapshot(snapshot.fingerprint, snapshot.meta, levels))


@pytest.mark.parametrize("part", ["0.memory.weights", "2.tail", "2.keys"])
def test_a_missing_or_misshapen_part_is_refused(part: str) -> None:
    """An array that is not there, or has another shape than its rank's layer."""
    snapshot = CODEC.encode(shards_of(random_state(5), 2), 5, {})
    arrays = snapshot.levels["rank.1"].arrays
    gone = {name: array for name, array in arrays.items() if name != part}
    other = {**arrays, part: replace(arrays[part], shape=(1, *arrays[part].shape))}
    for changed in (gone, other):
        levels = {**snapshot.levels, "rank.1": Level(changed)}
        with pytest.raises(StateCorrupt, match="lacks or misshapes"):
            CODEC.decode(Snapshot(snapshot.fingerprint, snapshot.meta, levels))


@pytest.mark.parametrize("meta", [{}, {"format": 2}, {"ranks": 0}, {"ranks": 3}, {"ranks": "x"}], ids=str)
def test_another_form_is_refused(meta: dict[str, object]) -> None:
    """A snapshot of another format, or of ranks that cannot be."""
    snapshot = CODEC.encode(shards_of(random_state(5), 2), 5, {})
    changed = {**snapshot.meta, **meta} if meta else {"info": snapshot.info}

    with pytest.raises(StateCorrupt):
        CODEC.decode(Snapshot(snapshot.fingerprint, changed, snapshot.levels))


def test_ranks_at_different_places_are_not_kept() -> None:
    """Ranks that do not agree on where the chunk stands cannot be of one turn."""
    first, second = shards_of(random_state(5), 2)

    with pytest.raises(StateCorrupt, match=r"\[4, 5\] of a chunk, the session at 5"):
        CODEC.encode([first, replace(second, num_pending=4)], 5, {})


def test_a_state_without_a_tail_comes_back() -> None:
    """A convolution of window 1 keeps nothing of earlier tokens: its parts have no bytes."""
    config = toy_config(conv_size=1)
    codec = StateCodec(config, "f" * 32)
    row = {name: torch.ones(part.shape[1:]) for name, part in empty_row(config, titans_of(config)).tensors().items()}
    assert row["tail"].numel() == 0

    found = codec.decode(codec.encode(cut_shards(config, State({0: row, 2: row}, 16), 2), 16, {}))

    assert torch.equal(found.blocks[2]["memory.weights"], row["memory.weights"])
    assert found.blocks[0]["tail"].shape == row["tail"].shape
