"""Invented facts: fresh by seed, told and asked in words of their own."""

from __future__ import annotations

import re

import pytest

from hope_server.evaluation.learning_facts import NUM_CANDIDATES, chat_turns, draw_facts, tell, updated


def test_a_seed_draws_the_same_facts_and_another_seed_others():
    """Facts come from the seed alone; each is about somebody or something else."""
    facts = draw_facts(128, 5)
    assert draw_facts(128, 5) == facts
    assert len({fact.about for fact in facts}) == 128
    assert len({fact.statement for fact in facts} & {fact.statement for fact in draw_facts(128, 6)}) < 16


def test_candidates_are_eight_values_of_a_kind_in_no_telling_order():
    """The right one is among them, and its place says nothing."""
    facts = draw_facts(128, 1)
    assert all(len(set(fact.candidates)) == NUM_CANDIDATES and fact.answer in fact.candidates for fact in facts)
    assert {fact.right for fact in facts} == set(range(NUM_CANDIDATES))


def test_excluded_facts_leave_what_they_are_about_alone():
    """What was never taught is about nobody who was spoken of."""
    taught = draw_facts(32, 3)
    never = draw_facts(16, 4, exclude=taught)
    assert not {fact.about for fact in never} & {fact.about for fact in taught}


def test_more_facts_than_there_are_is_refused():
    """The number that can be drawn is told."""
    with pytest.raises(ValueError, match=r"at most \d+ different facts"):
        draw_facts(100_000, 0)


def test_an_update_has_another_value_and_keeps_the_old_one_among_the_candidates():
    """It is told as a change, about the same."""
    facts = draw_facts(24, 9)
    for old, new in zip(facts, updated(facts, 1), strict=True):
        assert (new.about, new.candidates, new.statement) == (old.about, old.candidates, new.change)
        assert new.answer != old.answer and old.answer in new.candidates


@pytest.mark.parametrize("how", ["list", "prose", "chat"])
def test_every_telling_holds_every_value(how):
    """Whatever stands around a fact, its answer is said."""
    facts = draw_facts(16, 2)
    told = "\n".join(tell(facts, how, 2, facts_per_text=2))
    assert [fact.answer for fact in facts if fact.answer not in told] == []


def test_questions_in_other_words_give_nothing_away():
    """No question holds its answer, and a rephrased one has no run of four words in common with the statement."""

    def runs(text: str, about: tuple[str, str]) -> set[tuple[str, ...]]:
        for part in filter(None, about):
            text = text.replace(part, "X")
        words = re.findall(r"\w+", text.casefold())
        return {tuple(words[start : start + 4]) for start in range(len(words) - 3)}

    for fact in draw_facts(128, 8):
        for question in (fact.question, *fact.rephrased):
            assert fact.answer.casefold() not in f"{question.text} {question.lead_in}".casefold()
        for question in fact.rephrased:
            asked = runs(question.text, fact.about) | runs(question.lead_in, fact.about)
            assert not asked & runs(fact.statement, fact.about)


def test_a_conversation_has_turns_of_about_60_words_and_small_talk_between():
    """Every fact is told once; behind every third telling turn comes one that tells none."""
    facts = draw_facts(32, 1)
    turns = chat_turns(facts, 1)
    assert len(turns) == 10
    assert all(sum(fact.answer in turn for turn in turns) >= 1 for fact in facts)
    assert all(35 <= len(turns[number].split()) <= 75 for number in (0, 1, 2, 4, 5, 6, 8, 9))
    assert not any(fact.about[0] in turn for fact in facts if fact.about[0] for turn in (turns[3], turns[7]))
