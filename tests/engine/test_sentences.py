"""Which sentences tell something: what is put on cards, and what is left out."""

from __future__ import annotations

import pytest
from toys import make_tokenizer

from hope_server.engine.journal import Journal
from hope_server.engine.rehearsal import Piece
from hope_server.engine.sentences import sentences

TOKENIZER = make_tokenizer()


def told(text: str, source: str = "user", passes: int = 3) -> list[str]:
    """What the journal's pieces of a text tell."""
    journal = Journal()
    for token in TOKENIZER.encode(text):
        journal.read(token, TOKENIZER.token_text(token), passes, source)
    journal.end_paragraph()
    return [sentence for sentence, _ in sentences(journal.pieces, TOKENIZER.decode)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Xenia has a new dish: plum cake.", ["Xenia has a new dish: plum cake."]),
        ("It is where it was: in the red barn", ["It is where it was: in the red barn"]),
        ("I was wrong about Yuki: Yuki grew up in Rome.", ["I was wrong about Yuki:", "Yuki grew up in Rome."]),
        ("By the way: Mira keeps a fine violin.", ["Mira keeps a fine violin."]),
        ("Before I forget: Karim has a tortoise.", ["Before I forget: Karim has a tortoise."]),
        ("There is one thing: ask me. Otto paints boats.", ["There is one thing: ask me.", "Otto paints boats."]),
    ],
)
def test_what_stands_before_a_colon_goes_with_a_short_rest(text: str, expected: list[str]) -> None:
    """A value behind a colon is learned with what it is of; a whole sentence stands alone, its announcement nowhere."""
    assert told(text) == expected


def test_paragraphs_and_writers_are_not_joined() -> None:
    """What one says before a colon has nothing to do with what another says behind it."""
    one, two = (tuple(TOKENIZER.encode(text)) for text in ("Xenia has a new dish:", " plum cake."))
    for first, second in (
        (Piece(one, 3, 0), Piece(two, 3, 1)),
        (Piece(one, 3, 0), Piece(two, 3, 0, "assistant")),
        (Piece(one, 3, 0), Piece(two, 0, 0)),
        (Piece(one, 3, 0), Piece(two, 3, 0, levels=("slow",))),
    ):
        assert sentences([first, second], TOKENIZER.decode) == []
    ((text, piece),) = sentences([Piece(one, 3, 0), Piece(two, 3, 0)], TOKENIZER.decode)
    assert (text, piece) == ("Xenia has a new dish: plum cake.", Piece(one + two, 3, 0))


@pytest.mark.parametrize(
    "text",
    ["Where is the barn?", "Two words.", "Tell me something nice.", "Please write a poem about rain.", "Well then:"],
)
def test_what_tells_nothing_is_left_out(text: str) -> None:
    """Questions, fragments, requests and announcements."""
    assert told(text) == []


def test_requests_are_left_out_of_what_a_user_says_alone() -> None:
    """In a text that is learned an imperative tells something."""
    assert told("Write a poem about rain.", source="text") == ["Write a poem about rain."]


def test_nothing_is_told_by_what_is_not_to_be_rehearsed() -> None:
    """Pieces without passes."""
    assert told("The barn is red.", passes=0) == []
