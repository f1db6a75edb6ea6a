"""What the engine's parts are made of: the texts that set the gates of studied levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from toys import CONFIG, make_params, make_tokenizer

from hope_server.engine import assembly
from hope_server.engine.general import general_blocks
from hope_server.engine.speller import Speller
from hope_server.model.config import LevelSpec

GATED = LevelSpec("slow", (1, 2), "dense", update_period=16, is_whitened=True, gate=0.9)


def test_gates_are_set_by_prose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stored piece of prose, its first tokens; no chat, or what is taught in chats would be kept silent."""
    taken: list[Sequence[int]] = []

    def take(model: object, params: object, texts: Sequence[Sequence[int]], blocks: Sequence[int]) -> Sequence[int]:
        taken.extend(texts)
        return blocks

    monkeypatch.setattr(assembly, "read_general_keys", take)
    tokenizer = make_tokenizer()
    found = assembly._general_keys(replace(CONFIG, levels=(GATED,)), make_params(), tokenizer)
    assert found == [1, 2]
    pieces = general_blocks()
    prose = [piece for piece in pieces if not piece.startswith("> ")]
    assert 8 <= len(prose) < len(pieces)
    assert [tuple(text) for text in taken] == [tuple(tokenizer.encode(piece.strip())[:64]) for piece in prose]
    opening = Speller(tokenizer).frame.questions[-1][0]
    assert not any(opening in text for text in taken)


def test_without_gates_nothing_is_read() -> None:
    """Levels that always speak need no general text."""
    assert (
        assembly._general_keys(replace(CONFIG, levels=(replace(GATED, gate=0.0),)), make_params(), make_tokenizer())
        is None
    )
