"""The general text that comes with the package: about this and that, which no session was told."""

from __future__ import annotations

from importlib import resources

from hope_server.engine.rehearsal import Tokens
from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import Message

CHAT_MARK = "> "
"""What a block that is a question and its answer begins with; the others are prose."""


def general_blocks() -> list[str]:
    """The blocks of the text, in their order."""
    text = resources.files("hope_server.engine").joinpath("data", "general.txt").read_text(encoding="utf-8")
    return text.split("\n\n")


def encode_block(tokenizer: Tokenizer, block: str) -> Tokens:
    """A block's tokens; a question and its answer as a chat."""
    if not block.startswith(CHAT_MARK):
        return tuple(tokenizer.encode(block.strip()))
    question, answer = block[2:].strip().split("\n", 1)
    messages = [Message("user", question), Message("assistant", answer)]
    spans = tokenizer.render_chat(messages, continuing=False, open_last=True)
    return tuple(token for span in spans for token in span.ids)
