"""Long texts: where they are cut, their parts' keys, and how learning goes on after a part that failed."""

from __future__ import annotations

import json

import pytest
from hope_client import HopeError
from hope_client.parts import part_key, read_teaching, split
from hypothesis import given, settings
from hypothesis import strategies as st

PARAGRAPH = "Ada wrote the first program. " * 60 + "\n\n"


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("a é\n.\u20ac\U0001f600\ud800"), max_size=600), st.integers(8, 64))
def test_nothing_is_lost_and_every_part_fits(text, limit):
    """The parts are the text again but for blank ones; each is within its bytes, or as few as there may be parts."""
    parts = split(text, limit)
    assert len(parts) <= 48
    assert "".join("".join(parts).split()) == "".join(text.split())
    size = len(text.encode("utf-8", "surrogatepass"))
    largest = max(limit, -(-size * 5 // (4 * 48)))
    assert all(len(part.encode("utf-8", "surrogatepass")) <= largest for part in parts)
    assert parts == [text] or all(part.strip() for part in parts)


def test_a_long_text_is_cut_behind_paragraphs():
    """Parts are about as large as asked and end where a paragraph does."""
    parts = split(PARAGRAPH * 20, 10_000)
    assert len(parts) == 4
    assert all(part.endswith("\n\n") for part in parts)


def test_a_text_without_a_break_is_cut_between_characters():
    """Never inside one."""
    assert split("\u20ac" * 10, 12) == ["\u20ac\u20ac\u20ac\u20ac", "\u20ac\u20ac\u20ac\u20ac", "\u20ac\u20ac"]


def test_more_text_than_fits_in_all_parts_makes_the_parts_larger(monkeypatch):
    """A server knows the keys of 64 turns, so there are never more than 48 parts; beyond their size is an error."""
    assert len(split("word " * 100_000, 100)) <= 48
    monkeypatch.setattr("hope_client.parts._LARGEST_PART_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the text has 500,000 bytes, one call takes about 38,400"):
        split("word " * 100_000, 100)


def test_texts_come_from_files_and_passages(tmp_path):
    """A byte order mark is no text; passages stay apart, lines that end are joined as they are."""
    file = tmp_path / "facts.txt"
    file.write_bytes("\ufeffA fact: é.\n".encode())
    assert read_teaching(file) == "A fact: é.\n"
    assert read_teaching(["One.", "Two."]) == "One.\n\nTwo."
    assert read_teaching(line for line in ("a\n", "b\n")) == "a\nb\n"
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"byte 0 is not"):
        read_teaching(file)
    with pytest.raises(FileNotFoundError):
        read_teaching(tmp_path / "none")


def test_one_part_has_the_key_itself():
    """Several have keys of their own that are the same each time."""
    assert part_key("k", 0, 1) == "k"
    assert [part_key("k", index, 3) for index in range(3)] == ["k/1of3", "k/2of3", "k/3of3"]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 2,000 bytes."""
    monkeypatch.setattr("hope_client.parts.split.__defaults__", (2_000,))


def _learned(tools, version: str, before: str | None, **changes: object) -> bytes:
    receipt = {**tools.receipt, "version_before": before, "version_after": version, **changes}
    progress = {"tokens_done": 1, "tokens_total": 4, "steps_done": 0, "steps_total": 2, "loss": None}
    done = {"object": "session.learn", "usage": tools.usage, "memory": receipt}
    return tools.sse({"object": "session.learn.progress", **progress}, done)


def test_a_long_text_goes_in_several_requests(session, server, tools, small_parts):
    """Each under a key of its own; the results are added up and the progress tells its part."""
    server.answer_bytes(_learned(tools, "v1", None))
    server.answer_bytes(_learned(tools, "v2", "v1"))
    seen = []
    result = session.learn([PARAGRAPH, PARAGRAPH], progress=seen.append, key="book")
    assert [request.headers["idempotency-key"] for request in server.requests] == ["book/1of2", "book/2of2"]
    assert "".join(json.loads(request.content)["text"] for request in server.requests) == PARAGRAPH * 2
    assert [(each.part, each.num_parts) for each in seen] == [(1, 2), (2, 2)]
    assert (result.receipt.version_after, result.tokens_learned, result.usage.total_tokens) == ("v2", 8, 10)
    assert len(result.receipts) == 2


def test_learning_goes_on_behind_the_last_part_that_was_learned(session, server, tools, small_parts):
    """The same text under the error's key: the first part is answered again, the second is learned."""
    server.answer_bytes(_learned(tools, "v1", None))
    server.answer({"error": {"message": "disk full", "code": "store_full"}}, 507)
    with pytest.raises(HopeError, match="disk full") as caught:
        session.learn(PARAGRAPH * 2)
    server.answer_bytes(_learned(tools, "v1", None, replayed=True))
    server.answer_bytes(_learned(tools, "v2", "v1"))
    result = session.learn(PARAGRAPH * 2, key=caught.value.key)
    first, second = server.requests[:2], server.requests[2:]
    assert [each.headers["idempotency-key"] for each in first] == [each.headers["idempotency-key"] for each in second]
    assert [receipt.replayed for receipt in result.receipts] == [True, False]
