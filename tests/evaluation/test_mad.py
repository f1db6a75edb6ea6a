"""MAD-style tasks, read back from the rows alone."""

from __future__ import annotations

import pytest
import torch

from hope_server.evaluation.mad import CompressionTask, FuzzyRecallTask, MemorisationTask


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_compression_asks_for_every_token_but_the_last():
    """Targets are the tokens; the last token is the one that marks the code."""
    task = CompressionTask(num_tokens=6, code_size=12)
    batch = task.sample(20, 9, _generator())
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, :-1])
    assert batch.tokens[:, -1].tolist() == [5] * 20
    assert int(batch.tokens[:, :-1].max()) == 4
    assert batch.weights.tolist() == [[1.0] * 8 + [0.0]] * 20
    with pytest.raises(ValueError, match="2 to 128 tokens, not 129"):
        task.sample(1, 129, _generator())


def test_the_decoder_sees_nothing_but_the_last_output():
    """What is read out depends on the last position's logits alone, and differs from place to place."""
    task = CompressionTask(num_tokens=6, code_size=12)
    tensors = task.readout_tensors(0)
    logits = torch.randn(3, 9, 12, generator=_generator())
    other = logits.clone()
    other[:, :-1] += 1.0
    read = task.read_out(logits, tensors)
    assert read.shape == (3, 9, 6)
    assert torch.equal(read, task.read_out(other, tensors))
    assert not torch.allclose(read[:, 0], read[:, 1])
    other[:, -1] *= -1
    assert not torch.allclose(read, task.read_out(other, tensors))


def _pairs(row: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Keys, values and the values' first place, in order: keys are tokens 0-6, values 7-14, filler 15."""
    found, at = [], 0
    while at < len(row):
        if row[at] == 15:
            at += 1
            continue
        middle = next(place for place in range(at, len(row)) if row[place] >= 7)
        end = next((place for place in range(middle, len(row)) if row[place] < 7), len(row))
        found.append((tuple(row[at:middle]), tuple(row[middle:end]), middle))
        at = end
    return found


def test_a_repeated_key_is_followed_by_its_value_again():
    """In test rows exactly the values of keys seen before are scored, and the last pair is one of them."""
    batch = FuzzyRecallTask(is_test=True).sample(60, 128, _generator(1))
    num_repeats = 0
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        row = [*tokens.tolist(), int(targets[-1])]
        assert targets[:-1].tolist() == row[1:-1]
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        scored: set[int] = set()
        for key, value, place in _pairs(row):
            assert len(key) == len(set(key)) == 3
            assert 1 <= len(value) <= 3
            if key in known:
                assert value == known[key]
                scored |= {place + offset - 1 for offset in range(len(value))}
                num_repeats += 1
            known[key] = value
        assert set(weights.nonzero()[:, 0].tolist()) == scored
        assert len(row) - 2 in scored
    assert num_repeats >= 60


def test_training_rows_have_keys_of_all_sizes_and_score_every_next_token():
    """In training, motifs of one to three tokens occur, and only the filler in front is not a target."""
    batch = FuzzyRecallTask().sample(60, 64, _generator(2))
    rows = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1).tolist()
    sizes = {len(key) for row in rows for key, _, _ in _pairs(row)}
    assert sizes == {1, 2, 3}
    assert torch.equal(batch.weights, (batch.targets != 15).float())


def test_fuzzy_rows_that_are_too_short_are_refused():
    """Two pairs must fit."""
    with pytest.raises(ValueError, match="at least 12 tokens, not 11"):
        FuzzyRecallTask().sample(1, 11, _generator())


def test_the_dictionary_is_one_to_one_and_always_the_same():
    """Each key's blank has the same value in every row, and different keys have different values."""
    task = MemorisationTask(num_tokens=31)
    seen: dict[int, int] = {}
    for seed in (0, 1):
        batch = task.sample(100, 20, _generator(seed))
        assert bool((batch.tokens[:, 1::2] == 30).all())
        assert batch.weights[0].tolist() == [0.0, 1.0] * 10
        for key, value in zip(batch.tokens[:, ::2].flatten(), batch.targets[:, 1::2].flatten(), strict=True):
            assert seen.setdefault(int(key), int(value)) == int(value)
    assert sorted(seen) == list(range(15))
    assert sorted(seen.values()) == list(range(15, 30))
    with pytest.raises(ValueError, match="even length"):
        task.sample(1, 7, _generator())
