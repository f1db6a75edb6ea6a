"""Texts of an exact number of tokens."""

from __future__ import annotations

import pytest
from wording import Wording


def pairs() -> Wording:
    """Texts for a tokenizer whose tokens are two characters where they can be: a cut changes how a text is read."""
    return Wording(
        lambda text: [ord(a) * 4096 + ord(b) for a, b in zip(text[::2], text[1::2] + "\0", strict=False)],
        lambda ids: "".join(chr(pair // 4096) + chr(pair % 4096) for pair in ids).replace("\0", ""),
    )


@pytest.mark.parametrize("wording", [Wording.of_bytes(), pairs()], ids=["bytes", "pairs"])
@pytest.mark.parametrize("num_tokens", [1, 2, 31, 64, 1000])
def test_a_text_has_as_many_tokens_as_asked(wording: Wording, num_tokens: int) -> None:
    """What is sent is read as exactly that many tokens."""
    assert [len(wording.encode(wording.text(num_tokens, seed))) for seed in range(5)] == [num_tokens] * 5


def test_a_seed_makes_a_text() -> None:
    """The same seed gives the same text, another one another."""
    wording = Wording.of_bytes()

    assert wording.text(64, 1) == wording.text(64, 1)
    assert len({wording.text(64, seed) for seed in range(20)}) == 20


def test_no_text_of_no_tokens() -> None:
    """A text of no tokens is refused."""
    with pytest.raises(ValueError, match="at least 1"):
        Wording.of_bytes().text(0, 1)


def test_a_length_that_cannot_be_had_is_an_error() -> None:
    """Where every text has an even number of tokens, an odd one is refused instead of given wrongly."""
    doubled = Wording(
        lambda text: [ord(char) for char in text for _ in "ab"], lambda ids: "".join(chr(i) for i in ids[::2])
    )

    assert len(doubled.encode(doubled.text(8, 1))) == 8
    with pytest.raises(ValueError, match="no text of exactly 9"):
        doubled.text(9, 1)
