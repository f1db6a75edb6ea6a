"""Sessions that move beside sessions that stay: what is compared, and that differences are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from toy_server import toy_server

from loadtests.moves import Moves, Said, compare, compare_moves

RECEIPT: dict[str, Any] = {
    "turn": 1,
    "tokens_read": 30,
    "tokens_learned": 20,
    "loss_before": 5.5,
    "loss_after": None,
    "update_norm": {"fast": 0.25},
    "restored_from": "hot",
}


def said(index: int, **changes: object) -> Said:
    """The answer of turn `index` of a session, the receipt changed as told."""
    versions = {"version_before": f"v{index - 1}" if index else None, "version_after": f"v{index}"}
    return Said("a word", (-0.5, -1.25), RECEIPT | versions | changes)


def found(moved: list[Said]) -> Moves:
    """What comparing these turns with those of a session that stayed says."""
    moves = Moves()
    compare("session 0", [said(index) for index in range(len(moved))], moved, moves)
    return moves


def test_equal_turns_differ_in_nothing_and_moves_are_counted() -> None:
    """Versions are names of their own; where the state was is what makes a move."""
    moves = found([said(0, version_after="w0"), said(1, version_before="w0", restored_from="store")])

    assert (moves.differences, moves.stale) == ([], [])
    assert (moves.num_turns, moves.num_moves, moves.num_tokens, moves.tokens_learned) == (2, 1, 4, 40)


def test_the_last_bit_of_a_log_probability_is_a_difference() -> None:
    """Texts that are equal do not hide that the state was another."""
    nearly = replace(said(0), log_probs=(-0.5, -1.2500000000000002))

    assert len(found([nearly]).differences) == 1


def test_another_loss_or_norm_is_a_difference() -> None:
    """What was learned must be the same, not only what was said."""
    moves = found([said(0, loss_before=5.4, update_norm={"fast": 0.26})])

    assert [text.split(": ")[1].split()[0] for text in moves.differences] == ["loss_before", "update_norm"]


def test_a_turn_that_goes_on_from_an_older_version_is_stale() -> None:
    """A server that still has an old copy would go on from that."""
    moves = found([said(0), said(1), said(2, version_before="v0")])

    assert moves.stale == ["session 0 moves turn 2 goes on from v0"]


def test_a_live_server_says_the_same_to_two_sessions(tmp_path: Path) -> None:
    """The same conversation twice, on a toy server: all of it is equal, and something was learned."""
    with toy_server(tmp_path) as url:
        moves = compare_moves([url, url], None, 1, 3, "t-")

    assert (moves.differences, moves.stale, moves.num_moves) == ([], [], 0)
    assert moves.num_turns == 3 and moves.num_tokens > 0 and moves.tokens_learned > 0
