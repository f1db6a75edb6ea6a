"""Whether a session that moves from server to server says, to the last bit, what it would have said on one of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests import texts
from loadtests.http_client import Client, whole

_FACTS_A_TURN = 6
_SAME = ("turn", "tokens_read", "tokens_learned", "loss_before", "loss_after", "update_norm")
"""What two receipts of the same turn must agree on; versions are names, drawn anew for each commit."""


@dataclass(frozen=True, slots=True)
class Said:
    """One turn's answer. log_probs: of its tokens, in nats; receipt: with the versions and where the state was."""

    text: str
    log_probs: tuple[float, ...]
    receipt: dict[str, Any]


@dataclass(slots=True)
class Moves:
    """What came out. num_moves: turns that found their session's state in the store, as another server had it last.

    differences: answers that were not the same; stale: turns that did not go on from the version before.
    """

    num_turns: int = 0
    num_tokens: int = 0
    num_moves: int = 0
    tokens_learned: int = 0
    differences: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def compare_moves(
    urls: Sequence[str], key: str | None, num_sessions: int, num_turns: int, prefix: str, seed: int = 1
) -> Moves:
    """Hold the same conversations twice: once at the first server, once at each server in turn.

    Nothing else may be asked of the servers meanwhile: how many are computed together may show in the last bits.
    Raises RuntimeError for an answer that is none, and what `BROKEN` lists.
    """
    found = Moves()
    clients = [Client(url, key, silence_seconds=600.0) for url in urls]
    for number in range(num_sessions):
        turns = _conversation(random.Random(f"{seed} moves {number}"), number, num_turns)
        stayed = [_say(clients[0], f"{prefix}stays-{number}", said) for said in turns]
        moved = [
            _say(clients[index % len(clients)], f"{prefix}moves-{number}", said) for index, said in enumerate(turns)
        ]
        compare(f"session {number}", stayed, moved, found)
    for client in clients:
        client.close()
    return found


def _conversation(chance: random.Random, number: int, num_turns: int) -> list[str]:
    """Turns that tell facts, long enough for blocks to be studied, and now and then ask."""
    found = []
    for index in range(num_turns):
        label = f"{number}/{index}"
        facts = [texts.fact(chance, f"{label}.{fact}") for fact in range(_FACTS_A_TURN)]
        found.append(texts.question(chance, label) if index % 3 == 2 else " ".join(facts))
    return found


def _say(client: Client, session: str, said: str) -> Said:
    body = {
        "messages": [{"role": "user", "content": said}],
        "max_tokens": 24,
        "temperature": 0,
        "logprobs": True,
    }
    with client.open("POST", "/v1/chat/completions", body, {"X-Session-ID": session}) as response:
        reply = whole(response)
    if reply.status != 200 or reply.body is None:
        raise RuntimeError(f"{session}: {reply.status} {reply.error_code}")
    (choice,) = reply.body["choices"]
    log_probs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
    return Said(choice["message"]["content"], log_probs, reply.body["memory"])


def compare(name: str, stayed: Sequence[Said], moved: Sequence[Said], found: Moves) -> None:
    """Add to `found` what differs between the same turns of a session that stayed and of one that moved."""
    for index, (here, there) in enumerate(zip(stayed, moved, strict=True)):
        found.num_turns += 1
        found.num_tokens += len(here.log_probs)
        found.tokens_learned += here.receipt["tokens_learned"]
        found.num_moves += there.receipt["restored_from"] == "store"
        if (here.text, here.log_probs) != (there.text, there.log_probs):
            most = max((abs(a - b) for a, b in zip(here.log_probs, there.log_probs, strict=False)), default=0.0)
            found.differences.append(f"{name} turn {index}: {here.text!r}, {there.text!r}, log-probabilities by {most}")
        for field_name in _SAME:
            if here.receipt[field_name] != there.receipt[field_name]:
                was, came = here.receipt[field_name], there.receipt[field_name]
                found.differences.append(f"{name} turn {index}: {field_name} {was}, {came}")
    for kind, said in (("stays", stayed), ("moves", moved)):
        for index, (older, newer) in enumerate(itertools.pairwise(said), 1):
            if newer.receipt["version_before"] != older.receipt["version_after"]:
                found.stale.append(f"{name} {kind} turn {index} goes on from {newer.receipt['version_before']}")
