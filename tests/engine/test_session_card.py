"""What belongs to a session and not to its versions."""

from __future__ import annotations

import pytest
from hope_memory.codec import MAX_INFO_BYTES, encode_info

from hope_server.engine.session_card import MAX_METADATA, MAX_TAGS, MAX_TURNS, SessionCard, TurnRecord
from hope_server.engine.transcript import Conversation
from hope_server.engine.turn import Message
from hope_server.errors import InvalidRequest

RECORD = TurnRecord(7, 1_800_000_000, "consolidate", 100, 90, 2.5, 1.25, {"fast": 0.5, "slow": 0.25})


def test_a_card_is_stored_and_read_again() -> None:
    """All of it comes back; a version of an earlier build has an empty one."""
    card = SessionCard(True, 60.0, {"a": "b"}, {"t": "f" * 32}, (RECORD,))
    assert SessionCard.of(card.fields()) == card
    assert SessionCard.of({}) == SessionCard()
    assert card.pins == {"f" * 32}


def test_the_fullest_card_fits_beside_the_longest_conversation() -> None:
    """Everything at its limit is below what a version's public part may hold."""
    card = SessionCard(True, 1e9).labelled({f"{n:02}": "x" * 250 for n in range(MAX_METADATA)})
    for number in range(MAX_TAGS):
        card = card.tagged(f"{number:064}", "f" * 32)
    for _ in range(MAX_TURNS + 5):
        card = card.with_turn(RECORD)
    assert len(card.turns) == MAX_TURNS
    talk = Conversation(epoch="12345678").hear(
        Message(role, str(n)) for n in range(500) for role in ("user", "assistant", "system")
    )
    sizes = dict.fromkeys(("fast", "slow", "window", "journal"), 1 << 40)
    info = {
        "turn": 1 << 40,
        "num_tokens": 1 << 40,
        "tokens_learned": 1 << 40,
        "state_bytes": sizes,
        "answer_id": "x" * 120,
    }
    assert len(encode_info(info | talk.fields() | card.fields())) < MAX_INFO_BYTES


def test_a_life_counts_from_the_last_commit() -> None:
    """Zero is for ever, None changes nothing, what cannot be is refused."""
    card = SessionCard().living(60)
    assert (card.expires(1000.0), card.is_expired(1000.0, 1059.0), card.is_expired(1000.0, 1060.0)) == (
        1060,
        False,
        True,
    )
    assert card.living(None) is card
    assert card.living(0).expires(1000.0) is None
    for seconds in (-1, 2e9, float("nan")):
        with pytest.raises(InvalidRequest):
            card.living(seconds)
