"""Sentences that later ones put out of date: by most of their words, by a word of change, and what they say then."""

from __future__ import annotations

import pytest

from hope_server.engine.cards import COMMON_WORDS
from hope_server.engine.superseded import SELDOM, find_revisions, restated

VIOLIN = "Mira keeps the violin in the red barn."
MOVED = "Mira has moved the violin, it is in the blue cabinet now."


def shares(*told: str, paragraphs: tuple[int, ...] = ()) -> list[float]:
    """How often each sentence is still rehearsed."""
    numbers = paragraphs or tuple(range(len(told)))
    out = [1.0] * len(told)
    for each in find_revisions(list(zip(told, numbers, strict=True)), COMMON_WORDS):
        assert each.earlier < each.later
        out[each.earlier] = min(out[each.earlier], each.share)
    return out


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([VIOLIN, MOVED], [SELDOM, 1]),
        ([VIOLIN, "Mira keeps the violin in the blue cabinet."], [SELDOM, 1]),
        (["Yuki grew up in Seoul.", "I was wrong about Yuki: Yuki grew up in Prague."], [0, 1]),
        (["Otto works as a baker.", "Otto works as a pilot.", "Now Otto works as a tailor."], [0, 0, 1]),
        # The nearest alone is changed by a word of change.
        ([VIOLIN, "Mira works as a baker.", MOVED], [SELDOM, 1, 1]),
        # Neither others' facts nor other facts of the same, nor the same again.
        ([VIOLIN, "Otto keeps the camera in the garden shed."], [1, 1]),
        (
            [VIOLIN, "Mira works as a baker.", "Mira has a parrot called Biscuit.", "Mira has a pony called Pepper."],
            [1] * 4,
        ),
        ([VIOLIN, VIOLIN], [1, 1]),
        (["The weather is nice now.", "I am tired now."], [1, 1]),
        # What they share is in any sentence.
        (["I will be back later.", "I have a new landlord, who is called Novak."], [1, 1]),
        (["Yuki grew up in Seoul.", "Irma has given that up and plays the clarinet now."], [1, 1]),
        # What differs is what they are about.
        (["Item 3 costs 21 crowns.", "Item 4 costs 28 crowns."], [1, 1]),
        ([], []),
    ],
)
def test_what_is_put_out_of_date(told: list[str], expected: list[float]) -> None:
    """Both signs, one sign, or none."""
    assert shares(*told) == expected


def test_sentences_of_one_paragraph_stand_together() -> None:
    """A list in one frame is a list."""
    likes = ("Anna likes apples.", "Anna likes pears.", "Anna likes plums.")
    assert shares(*likes, paragraphs=(3, 3, 3)) == [1, 1, 1]
    assert shares(*likes, paragraphs=(3, 3, 4)) == [SELDOM, SELDOM, 1]


def test_words_that_are_everywhere_tell_nothing_apart() -> None:
    """What many sentences hold puts none of them out of date; and a thousand sentences take no time."""
    many = [f"Item {number} costs {number * 7} crowns." for number in range(1000)]
    assert shares(*many) == [1.0] * 1000


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (VIOLIN, MOVED, "Mira keeps the violin in the blue cabinet."),
        (
            "On Sundays Irma practises the piano.",
            "Irma has given that up and plays the clarinet now.",
            "On Sundays Irma practises the clarinet.",
        ),
        (
            "My doctor is called Ferro.",
            "I have a new doctor, she is called Dr. Tanaka!",
            "My doctor is called Dr. Tanaka.",
        ),
        (
            "The spaniel of Dora is named Rocket.",
            "Dora has renamed the spaniel, it is called Noodle now.",
            "The spaniel of Dora is called Noodle.",
        ),
        # No start to speak of, no ending, or one too long to be a value.
        ("Rain falls.", "Now snow falls.", None),
        (VIOLIN, "Mira has moved it.", None),
        (VIOLIN, "Mira has moved the violin because people asked loudly again yesterday evening.", None),
        ("", "", None),
    ],
)
def test_what_it_says_now(old: str, new: str, expected: str | None) -> None:
    """The old start with the new ending, where both are plain."""
    assert restated(old, new, COMMON_WORDS) == expected
