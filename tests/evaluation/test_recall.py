"""Associative recall, needles and selective copying, read back from the rows alone."""

from __future__ import annotations

import pytest
import torch

from hope_server.evaluation.recall import NeedleTask, PairsTask, SelectiveCopyTask


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("pairs", "length"), [(8, 64), (4, 16), (16, 128)])
def test_each_key_is_asked_once_for_the_value_it_was_given(pairs, length):
    """Keys and values of a row differ, and each key's only scored place has its value as the target."""
    batch = PairsTask(pairs, 128).sample(50, length, _generator())
    for tokens, targets, weights in zip(batch.tokens.tolist(), batch.targets, batch.weights, strict=True):
        given = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(given) == len(set(given.values())) == pairs
        assert all(1 <= key < 64 <= value for key, value in given.items())
        places = weights.nonzero()[:, 0].tolist()
        assert sorted(tokens[place] for place in places) == sorted(given)
        assert [int(targets[place]) for place in places] == [given[tokens[place]] for place in places]
        assert all(place >= 2 * pairs and place % 2 == 0 for place in places)


@pytest.mark.parametrize(("length", "pairs"), [(64, 8), (128, 16), (78, 9)])
def test_without_a_number_there_is_a_pair_to_eight_tokens(length, pairs):
    """Longer rows have more pairs, so that one training has many sizes."""
    batch = PairsTask(None).sample(3, length, _generator())
    assert batch.weights.sum(dim=1).tolist() == [pairs] * 3


def test_a_small_power_keeps_questions_near():
    """Gaps follow the power law: with the published power they are shorter than with even chances."""
    near, even = (
        PairsTask(8, 128, power).sample(200, 256, _generator()).weights.nonzero()[:, 1].float().mean()
        for power in (0.01, 1.0)
    )
    assert 16 <= near < 80
    assert even == pytest.approx(16 + 119, abs=8)


@pytest.mark.parametrize("length", [63, 30])
def test_lengths_without_room_for_the_pairs_are_refused(length):
    """An odd or short length is refused, with the shortest possible."""
    with pytest.raises(ValueError, match="even length of at least 32 tokens"):
        PairsTask(8).sample(1, length, _generator())


def test_too_few_tokens_are_refused():
    """Eight different keys do not come out of a vocabulary of ten."""
    with pytest.raises(ValueError, match="at least 18 tokens, not 10"):
        PairsTask(8, 10).sample(1, 64, _generator())


def _needles(row: list[int], task: NeedleTask) -> dict[int, tuple[int, int]]:
    """Value and place of each key outside the questions."""
    hay = len(row) - 2 * task.num_needles
    return {row[at]: (row[at + 1], at) for at in range(hay) if row[at] < task.num_keys}


@pytest.mark.parametrize("distance", [None, 0, 1, 40])
def test_needles_are_asked_at_the_end_in_any_order(distance):
    """Each needle is asked once behind a marker; all tokens in between are noise."""
    task = NeedleTask(distance=distance)
    batch = task.sample(40, 80, _generator(1))
    orders = set()
    for tokens, targets, weights in zip(batch.tokens.tolist(), batch.targets, batch.weights, strict=True):
        needles = _needles(tokens, task)
        assert len(needles) == 4
        assert weights.nonzero()[:, 0].tolist() == [73, 75, 77, 79]
        asked = [tokens[place] for place in (73, 75, 77, 79)]
        assert [tokens[place] for place in (72, 74, 76, 78)] == [task.vocab_size - 1] * 4
        assert [int(targets[place]) for place in (73, 75, 77, 79)] == [needles[key][0] for key in asked]
        if distance is not None:
            assert 72 - max(at for _, at in needles.values()) - 2 == distance
        orders.add(tuple(sorted(needles, key=lambda key: needles[key][1]).index(key) for key in asked))
        others = set(range(72)) - {place for _, at in needles.values() for place in (at, at + 1)}
        assert all(64 <= tokens[place] < 128 for place in others)
    assert len(orders) > 5


def test_scattered_needles_can_lie_anywhere():
    """Without a distance, needles are found in every part of the hay, up to its last place."""
    task = NeedleTask()
    rows = task.sample(300, 40, _generator(2)).tokens.tolist()
    places = {at for row in rows for _, at in _needles(row, task).values()}
    assert places == set(range(31))


def test_a_row_too_short_for_the_distance_is_refused():
    """The message says how long it must be."""
    with pytest.raises(ValueError, match="distance 40 need at least 56 tokens, not 55"):
        NeedleTask(distance=40).sample(1, 55, _generator())


def test_copied_tokens_are_asked_in_order():
    """What is asked behind the marker is what was scattered before it, in its order."""
    batch = SelectiveCopyTask(5, 10).sample(30, 40, _generator(3))
    for tokens, targets, weights in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.weights, strict=True):
        hay = tokens[:34]
        assert tokens[34:] == [9, 8, 8, 8, 8, 8]
        copied = [token for token in hay if token != 8]
        assert len(copied) == 5
        assert targets[35:] == copied
        assert weights.nonzero()[:, 0].tolist() == [35, 36, 37, 38, 39]
    with pytest.raises(ValueError, match="at least 11 tokens, not 10"):
        SelectiveCopyTask(5, 10).sample(1, 10, _generator())
