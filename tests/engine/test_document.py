"""Long texts as tokens: the same ids as in one go, in little memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import make_tokenizer

from hope_server.engine import document
from hope_server.engine.document import cut, encode_long, taught
from hope_server.engine.tokenizer import Tokenizer
from hope_server.model.checkpoint import resolve_model
from hope_server.settings import Settings

WORDS = st.text(alphabet="ab \n\t.é", max_size=600)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 characters, so that every text has many."""
    monkeypatch.setattr(document, "LONGEST_PIECE", 64)


@given(WORDS)
def test_pieces_are_the_text(text: str) -> None:
    """Nothing is lost or doubled, no piece is too long, and none is empty but that of an empty text."""
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 64 for piece in pieces) or pieces == [""]


def test_a_piece_begins_where_a_run_of_blanks_begins() -> None:
    """Never inside one: blanks in a row can be one token."""
    text = "word \n\n  " * 40
    for piece in list(cut(text))[1:]:
        assert piece.startswith(" \n\n  word")


def test_one_enormous_word_is_cut_where_a_piece_is_full() -> None:
    """A text without blanks is no reason to take it in one go."""
    assert [len(piece) for piece in cut("x" * 150)] == [64, 64, 22]


@given(WORDS)
def test_ids_are_those_of_the_pieces_in_order(text: str) -> None:
    """Four bytes each, and the toy tokenizer's bytes are the same in one go."""
    tokenizer = make_tokenizer()
    ids = encode_long(text, tokenizer.encode)
    assert list(ids) == tokenizer.encode(text)


@pytest.mark.model
def test_the_default_tokenizer_gives_the_same_ids_in_pieces() -> None:
    """Prose, code and tables with words, numbers, runs of blanks and other scripts."""
    tokenizer = Tokenizer.load(resolve_model(Settings().model, Settings.load([]).cache_dir, None))
    text = "Mira's barn,  12 345 cows;\n\n\tdef f(x):\n        return x ** 2  # naïve\n"
    text = (text + "| a | b |\n\u4eca\u65e5\u306f 再见 …\r\n") * 30
    assert list(encode_long(text, tokenizer.encode)) == tokenizer.encode(text)


def test_equal_tokens_are_one_object_and_the_closing_does_not_teach() -> None:
    """A million tokens take the room of their places."""
    feed = taught([5, 6, 5], [7], 3)
    assert [(item.token, item.source, item.passes) for item in feed] == [
        (5, "text", 3),
        (6, "text", 3),
        (5, "text", 3),
        (7, None, 0),
    ]
    assert feed[0] is feed[2]
