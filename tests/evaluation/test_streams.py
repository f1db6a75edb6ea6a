"""Class-incremental streams, sorted out from the rows alone."""

from __future__ import annotations

import pytest
import torch

from hope_server.evaluation.streams import StreamTask

TASK = StreamTask(num_groups=3, group_size=2, shots=2, example_size=5, num_symbols=12, noise=0.0)
MARKER = TASK.vocab_size - 1


def _read(tokens: list[int]) -> list[tuple[tuple[int, ...], int | None, int]]:
    """Each example, its label where it is told, and the marker's place, in order."""
    found, start = [], 0
    for place, token in enumerate(tokens):
        if token == MARKER:
            told = tokens[place + 1] if place + 1 < len(tokens) else 0
            is_label = TASK.num_symbols <= told < MARKER
            found.append((tuple(tokens[start:place]), told if is_label else None, place))
            start = place + (2 if is_label else 1)
    return found


def test_labels_are_those_of_the_lessons():
    """Without noise, every question is about an example that was shown before with the target as its label."""
    batch = TASK.sample(30, TASK.length, torch.Generator().manual_seed(0))
    for tokens, targets, weights in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.weights, strict=True):
        shown: dict[tuple[int, ...], int] = {}
        asked = []
        for example, label, place in _read(tokens):
            assert len(example) == 5
            if label is None:
                assert shown[example] == targets[place]
                asked.append(place)
            else:
                shown[example] = label
        assert weights.nonzero()[:, 0].tolist() == asked
        assert len(asked) == 2 + 4 + 6
        assert sorted(shown.values()) == list(range(12, 18))


def test_groups_of_positions_are_lessons_and_the_first_group():
    """After each lesson all classes so far are asked; the first group's two classes are among them in any order."""
    batch, groups = TASK.sample_groups(40, TASK.length, torch.Generator().manual_seed(1))
    assert list(groups) == TASK.group_names
    assert [int(groups[f"all, after lesson {lesson}"][0].sum()) for lesson in (1, 2, 3)] == [2, 4, 6]
    orders = set()
    for row in range(40):
        labels = {label for _, label, _ in _read(batch.tokens[row].tolist())[:4]}
        for lesson in (1, 2, 3):
            mask = groups[f"group 1, after lesson {lesson}"][row]
            assert set(batch.targets[row][mask].tolist()) == labels
        last = groups["all, after lesson 3"][row].nonzero()[:, 0]
        orders.add(tuple(groups["group 1, after lesson 3"][row][last].tolist()))
    assert len(orders) > 5


def test_noise_changes_symbols_but_not_labels():
    """With noise, examples of one class differ."""
    noisy = StreamTask(noise=0.3)
    clean, changed = (
        task.sample(5, task.length, torch.Generator().manual_seed(2)) for task in (StreamTask(noise=0.0), noisy)
    )
    share = float((clean.tokens != changed.tokens)[clean.tokens < 16].float().mean())
    assert 0.2 < share < 0.35
    assert torch.equal(clean.targets, changed.targets)


def test_another_length_is_refused():
    """The layout has one length, and the message names it."""
    with pytest.raises(ValueError, match=f"has {TASK.length} tokens, not 100"):
        TASK.sample(1, 100, torch.Generator())
