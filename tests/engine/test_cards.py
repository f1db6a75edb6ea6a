"""What is put on cards: every sentence as often as asked, never a question, and the past beside it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hope_server.engine.cards import COMMON_WORDS, LEADS, Card, CardMaker, CardSettings
from hope_server.engine.rehearsal import Frame, Piece

FRAME = Frame(((1, 2), (3,)), (4,), (5,), (6,), (7,))
FACT = "Mira keeps the violin in the red barn."


def encode(text: str) -> list[int]:
    """One number for each character, above those of the frame."""
    return [ord(character) + 100 for character in text]


def decode(tokens: tuple[int, ...] | list[int]) -> str:
    """The characters again; the frame's tokens are left out."""
    return "".join(chr(token - 100) for token in tokens if token >= 100)


def piece(text: str, passes: int = 3) -> Piece:
    """A sentence that was told."""
    return Piece(tuple(encode(text)), passes, 0)


def maker(**changes: float) -> CardMaker:
    """A maker with other shares."""
    return CardMaker(encode, decode, FRAME, CardSettings(**changes))


def cards(new: list[Piece], old: list[Piece] | None = None, seed: int = 1, **changes: float) -> list[list[Card]]:
    """The steps of a plan."""
    return [list(step) for step in maker(**changes).plan(new, old or [], seed)]


def test_every_sentence_is_in_as_many_steps_as_it_has_passes() -> None:
    """A sentence with two passes is gone when one with four is still studied."""
    steps = cards([piece("Anna plays the flute.", 2), piece(FACT, 4)], cards=0, cued=0, plain=1)
    texts = [sorted(decode(card.reply) for card in step) for step in steps]
    assert texts == [["Anna plays the flute.", FACT]] * 2 + [[FACT]] * 2


@pytest.mark.parametrize(
    "text", ["Where does Mira keep the violin?", '"Is that so?"', "Good morning.", "  ", "a b\ufffd c d"]
)
def test_questions_and_fragments_teach_nothing(text: str) -> None:
    """Nothing is planned for them, neither as new text nor as the past."""
    assert cards([piece(text)]) == []
    with_past = cards([piece(FACT)], [piece(text)], cards=0, cued=0, plain=1)
    assert {decode(card.reply) for step in with_past for card in step} == {FACT}


REQUESTS = ["Tell me something nice in one sentence.", "Please, write a poem about rain!", "list the planets in order"]
TELLINGS = [
    "Remind me that the rent is due on Friday.",
    "Remind me that the rent is due soon.",
    "Write to Anna, who lives in Oslo.",
    "Please give me 250 grams of flour.",
    "Listing the planets is what she likes.",
    "Telling me was kind of her.",
    "I wrote a poem about rain.",
]


@pytest.mark.parametrize("text", REQUESTS)
def test_what_a_user_asks_for_teaches_nothing(text: str) -> None:
    """But in a document it is part of what is to be known."""
    assert cards([piece(text)]) == []
    assert cards([replace(piece(text), source="text")])


@pytest.mark.parametrize("text", TELLINGS)
def test_what_tells_something_is_no_request(text: str) -> None:
    """Names, numbers, what follows "that", and sentences that only begin alike."""
    assert cards([piece(text)])


def test_a_card_asks_with_the_first_words_and_answers_with_the_rest() -> None:
    """The reply is an end of the sentence that begins with a telling word; no word of it is in the question."""
    seen = set()
    for seed in range(40):
        for step in cards([piece(FACT)], seed=seed, cued=0, plain=0):
            for card in step:
                answer, asked = decode(card.reply).strip(), decode(card.prompt)
                assert FACT.endswith(answer)
                assert answer.split()[0] not in COMMON_WORDS
                assert any(asked.endswith(lead) for lead in LEADS)
                told = {word for word in answer.strip(".").split() if word not in COMMON_WORDS}
                assert not told & set(re.findall(r"\w+", asked))
                assert card.reply[-1] == FRAME.ending[-1]
                seen.add(answer)
    assert seen == {"violin in the red barn.", "red barn.", "barn."}


def test_prompts_stand_behind_the_system_message_or_open_a_turn() -> None:
    """Those that share it do not hold it; the others begin as a later turn does; both end where a reply begins."""
    found = [card for seed in range(20) for step in cards([piece(FACT)], seed=seed, plain=0, cards=0) for card in step]
    assert {card.sees_system for card in found} == {True, False}
    assert all((card.prompt[0] == 3) != card.sees_system for card in found)
    assert all(card.prompt[-1] == 4 for card in found)


def test_the_past_is_drawn_into_every_step() -> None:
    """At least four cards of it, only sentences that were to be rehearsed, and none where there is no past."""
    old = [piece(f"Person {number} likes colour {number}.", number % 2) for number in range(40)]
    steps = cards([piece(FACT)], old, cards=0, cued=0, plain=1)
    for step in steps:
        past = [decode(card.reply) for card in step if "Person" in decode(card.reply)]
        assert 1 <= len(past) <= 4
        assert all(int(text.split()[1]) % 2 for text in past)
    assert all(len(step) == 1 for step in cards([piece(FACT)], cards=0, cued=0, plain=1))


def test_long_text_is_cut_into_steps_of_about_one_size() -> None:
    """No step has more than the group and one sentence's cards; together they hold every sentence."""
    new = [piece(f"Person {number} likes colour {number}.", 1) for number in range(50)]
    steps = cards(new, cards=0, cued=0, plain=1, group=100)
    assert all(sum(card.num_tokens for card in step) < 100 + 40 for step in steps)
    assert sum(len(step) for step in steps) == 50


def test_a_seed_gives_one_plan() -> None:
    """The same seed the same cards, another seed others."""
    new, old = [piece(FACT)], [piece("Anna plays the flute.")]
    assert cards(new, old, 5) == cards(new, old, 5)
    assert cards(new, old, 5) != cards(new, old, 6)


def test_words_with_braces_are_words() -> None:
    """A text that looks like a template is asked for as it is."""
    assert cards([piece("The key {cue} opens {0} and {} here.")])


@pytest.mark.parametrize(
    "text",
    [
        "米拉把小提琴放在红色的谷仓里。",
        "ミラはバイオリンを赤い納屋に置いている。",
        "มีราเก็บไวโอลินไว้ในโรงนาสีแดง",
        "米拉 keeps 小提琴 here.",
    ],
)
def test_scripts_without_spaces_are_put_on_cards(text: str) -> None:
    """Their characters are words; what is answered is an end of the sentence, letter by letter."""
    found = [card for seed in range(8) for step in cards([piece(text)], seed=seed, cued=0, plain=0) for card in step]
    assert len(found) == 24
    for card in found:
        answer = decode(card.reply).strip()
        assert answer and answer != text and text.endswith(answer)


@pytest.mark.parametrize("text", ["米拉把小提琴放在哪里？", "أين تحتفظ ميرا بالكمان الأحمر؟"])
def test_questions_of_other_scripts_teach_nothing(text: str) -> None:
    """Their marks are not the Latin one."""
    assert cards([piece(text)]) == []


def test_a_sentence_cut_inside_a_character_is_studied_without_it() -> None:
    """Half a character at either end is left out."""
    (step,) = cards([piece("\ufffd" + FACT + "\ufffd\ufffd", 1)], cards=0, cued=0, plain=1)
    assert decode(step[0].reply) == FACT


def test_what_is_out_of_date_is_rehearsed_seldom_and_asked_for_anew() -> None:
    """An old value is drawn a quarter as often as others; its sentence is put on cards with the new value."""
    moved = replace(piece("Mira has moved the violin, it is in the attic now.", 40), paragraph=2)
    old = [piece(FACT, 40), replace(piece("Otto feeds the goat at noon.", 40), paragraph=1)]
    steps = cards([moved], old, cards=0, cued=0, plain=1, past=1.0)
    replies = [decode(card.reply) for step in steps for card in step]
    assert len(steps) == 40
    assert replies.count("Otto feeds the goat at noon.") > 35 and 5 < replies.count(FACT) < 28
    anew = [card for step in steps for card in step if decode(card.reply).endswith("attic.")]
    assert len(anew) == 40
    for card in anew:
        assert "barn" not in decode(card.prompt) + decode(card.reply)
        assert {"keeps", "violin"} & set(re.findall(r"\w+", decode(card.prompt) + decode(card.reply)))
    sure = replace(piece("Now Mira keeps the violin in the attic.", 40), paragraph=2)
    assert FACT not in [decode(card.reply) for step in cards([sure], old, cards=0, cued=0, plain=1) for card in step]
