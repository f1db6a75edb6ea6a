"""Invented languages: that the lessons suffice to know what is asked."""

from __future__ import annotations

import pytest
import torch

from hope_server.evaluation.translation import SLOT, Grammar, TranslationTask, draw_sentence

FILLER, MARKERS = 66, (64, 65)


def _slots(row: list[int]) -> list[tuple[list[int], int, list[int], int]]:
    """Source words, marker, foreign words and the marker's place of every slot that is filled."""
    found = []
    for start in range(0, len(row), SLOT):
        slot = row[start : start + SLOT]
        if slot[5] != FILLER:
            source = [token for token in slot[:5] if token != FILLER]
            found.append((source, slot[5], [token for token in slot[6:] if token != FILLER], start + 5))
    return found


@pytest.mark.parametrize("case", ["alone", "first of two", "second of two"])
def test_what_is_asked_can_be_known_from_the_lessons(case):
    """Every scored word is one that all lessons with one of the asked source words share."""
    task = TranslationTask(case)
    batch = task.sample(30, task.length, torch.Generator().manual_seed(0))
    for row, weights in zip(batch.tokens.tolist(), batch.weights, strict=True):
        slots = _slots(row)
        asked = slots[-task.num_asked :]
        lessons = [slot for slot in slots[: -task.num_asked] if slot[1] == asked[0][1]]
        assert len(lessons) == task.num_taught
        in_all = set.intersection(*(set(foreign) for _, _, foreign, _ in lessons))
        for source, _, foreign, place in asked:
            shared = [[set(told) for words, _, told, _ in lessons if word in words] for word in source]
            known = [set.intersection(*sets) for sets in shared if sets]
            scored = [word for offset, word in enumerate(foreign) if weights[place + offset]]
            assert all(word in in_all or any(word in each for each in known) for word in scored)
            assert len(scored) >= sum(bool(sets) for sets in shared)
        assert int(weights.sum()) == sum(int(weights[place : place + 7].sum()) for *_, place in asked)


def test_cases_say_which_lesson_is_asked_about():
    """The asked language is that of the first or the second lesson, or the only one."""
    for case, expected in (("alone", 0), ("first of two", 0), ("second of two", 1)):
        batch = TranslationTask(case, 4).sample(20, TranslationTask(case, 4).length, torch.Generator().manual_seed(1))
        for row in batch.tokens.tolist():
            slots = _slots(row)
            taught = list(dict.fromkeys(marker for _, marker, _, _ in slots[:-3]))
            assert taught.index(slots[-1][1]) == expected
            assert len(taught) == (1 if case == "alone" else 2)


def test_markers_do_not_tell_the_order_of_lessons():
    """Either marker may be the first language's."""
    rows = TranslationTask("first of two").sample(40, TranslationTask().length, torch.Generator().manual_seed(2)).tokens
    assert set(rows[:, 5].tolist()) == set(MARKERS)


def test_a_mixture_has_all_cases():
    """In training, about a third of the rows teach one language."""
    rows = TranslationTask(num_taught=2).sample(
        90, TranslationTask(num_taught=2).length, torch.Generator().manual_seed(3)
    )
    assert 15 < int((rows.tokens[:, 5] == FILLER).sum()) < 45


def test_grammar_orders_parts_adjectives_and_particle():
    """A sentence written out by hand comes out in the language's order, each word with its source."""
    words = tuple(range(100, 116))
    sentence = [12, 3, 9, 5]
    grammar = Grammar(words, ("object", "subject", "verb"), False, 47)
    assert grammar.translate(sentence) == [(105, 5), (47, None), (103, 3), (112, 12), (109, 9)]
    grammar = Grammar(words, ("verb", "subject", "object"), True, None)
    assert grammar.translate(sentence) == [(109, 9), (112, 12), (103, 3), (105, 5)]


def test_sentences_fit_their_slots():
    """Sentences have three to five words, one verb among them."""
    generator = torch.Generator().manual_seed(4)
    sentences = [draw_sentence(generator) for _ in range(200)]
    assert {len(sentence) for sentence in sentences} == {3, 4, 5}
    assert all(sum(8 <= token < 12 for token in sentence) == 1 for sentence in sentences)


def test_another_length_is_refused():
    """The layout has one length."""
    with pytest.raises(ValueError, match="tokens, not 10"):
        TranslationTask().sample(1, 10, torch.Generator())
