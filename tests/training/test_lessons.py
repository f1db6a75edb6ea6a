"""Sessions of invented facts: what is told and asked, and that what is held out stays held out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from hope_server.engine.cards import CardMaker
from hope_server.engine.rehearsal import Frame
from hope_server.training.dialogue_facts import load_language
from hope_server.training.lessons import LessonBook

FRAME = Frame(((1, 2), (3,)), (4,), (5,), (6,), (7,))


def encode(text: str) -> list[int]:
    """One number for each character, above those of the frame."""
    return [ord(character) + 100 for character in text]


def text_of(tokens: Sequence[int]) -> str:
    """The characters again, without the frame."""
    return "".join(chr(token - 100) for token in tokens if token >= 100)


def book(*, is_held_out: bool = False, seed: int = 0) -> LessonBook:
    """A book of one seed."""
    return LessonBook(load_language(), CardMaker(encode, text_of, FRAME), random.Random(seed), is_held_out=is_held_out)


@pytest.mark.parametrize("is_held_out", [False, True])
def test_no_two_facts_are_about_the_same(is_held_out: bool) -> None:
    """Neither among themselves nor with those before; all of the share that was asked for, some about the user."""
    lessons = book(is_held_out=is_held_out)
    first = lessons.draw(30, [])
    second = lessons.draw(30, first)
    assert len({fact.key for fact in (*first, *second)}) == 60
    assert all(fact.is_held_out == is_held_out for fact in (*first, *second))
    assert any(not fact.about for fact in first) and sum(not fact.about for fact in first) < 15


@pytest.mark.parametrize("is_held_out", [False, True])
def test_a_reply_comes_to_the_value(is_held_out: bool) -> None:
    """Its place is where the value begins; the question is one of the share's phrasings and does not hold it."""
    lessons = book(is_held_out=is_held_out)
    heads = set()
    for fact in lessons.draw(60, []):
        asked = lessons.ask(fact)
        patterns = fact.kind.held_out_ask if is_held_out else fact.kind.ask
        assert text_of(asked.card.prompt) in {fact.phrase(pattern) for pattern in patterns}
        assert text_of(asked.card.reply[asked.value :]).strip().startswith(fact.value)
        assert asked.card.reply[-1:] == FRAME.ending
        assert asked.card.sees_system == (asked.card.prompt[0] != 3)
        heads.add(text_of(asked.card.reply[: asked.value]).replace(" ".join(fact.about), ""))
        assert fact.value in lessons.tell(fact)
    assert len(heads) > 20


def test_a_seed_gives_one_book() -> None:
    """The same facts, tellings and questions."""
    assert [book(seed=3).ask(fact) for fact in book(seed=3).draw(4, [])] == [
        book(seed=3).ask(fact) for fact in book(seed=3).draw(4, [])
    ]
    assert book(seed=3).draw(4, []) != book(seed=4).draw(4, [])
