"""Defining test 3: snapshot, restart, restore = never stopped, bit for bit on the same device and batch shape."""

from __future__ import annotations

import pytest
import torch
from hope_memory.codec import decode_level, encode_level
from hope_memory.snapshot import Snapshot
from toys import ROUNDED, Bench, make_tokenizer, scripted

SAID = [70, 71, 72, 73, 46, 32, 74, 75, 76]
TEXT = make_tokenizer().encode("Otto keeps bees. They are brown. " * 9)


def _stored(snapshot: Snapshot) -> Snapshot:
    """A snapshot after its levels went through the store's bytes."""
    levels = {name: decode_level(encode_level(level)) for name, level in snapshot.levels.items()}
    return Snapshot(snapshot.fingerprint, snapshot.meta, levels)


def _bytes(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: bytes(encode_level(level)) for name, level in snapshot.levels.items()}


@pytest.mark.parametrize("first", [1, 5, 8, 16, 23, 24, 25, 31, 64, 70, 131, 200])
def test_a_restored_session_goes_on_as_if_it_had_never_stopped(first: int) -> None:
    """Stopped anywhere, also between a block's end and its consolidation's effect, nothing differs later."""
    going, stopped = (Bench(config=ROUNDED, dtype=torch.float32) for _ in range(2))
    going.turn(going.run(TEXT[:first]), "v1")
    half = stopped.turn(stopped.run(TEXT[:first]), "v1")
    expected_run = going.run(TEXT[first:], version="v1", generation=scripted(going, SAID))
    expected = going.turn(expected_run, "v2")
    restarted = Bench(config=ROUNDED, dtype=torch.float32)
    actual_run = restarted.run(
        TEXT[first:],
        version="v1",
        snapshot=_stored(half.snapshot),
        generation=scripted(restarted, SAID),
    )
    actual = restarted.turn(actual_run, "v2")
    assert actual_run.stats.restored_from == "store"
    assert expected_run.stats.restored_from == "hot"
    assert _bytes(actual.snapshot) == _bytes(expected.snapshot)
    assert actual.snapshot.meta == expected.snapshot.meta
    for ours, theirs in zip(actual_run.generation.sampler.seen, expected_run.generation.sampler.seen, strict=True):
        assert torch.equal(ours, theirs)


def test_consolidation_in_idle_time_and_on_demand_give_the_same_memory() -> None:
    """A pending block computed between turns, partly or wholly, leaves what waiting for it leaves."""
    waited, idled, half = (Bench(config=ROUNDED, dtype=torch.float32) for _ in range(3))
    found = []
    for bench, num_steps in ((waited, 0), (idled, 1000), (half, 1)):
        bench.turn(bench.run(TEXT[:33]), "v1")
        steps = 0
        while steps < num_steps and bench.runner.idle([]):
            steps += 1
        assert (steps == 0) == (num_steps == 0)
        found.append(_bytes(bench.turn(bench.run(TEXT[33:60], version="v1"), "v2").snapshot))
    assert found[0] == found[1] == found[2]
    assert "slow" in found[0]
