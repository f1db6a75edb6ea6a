"""Text to token ids and back, and chats to spans of ids, with one rule: what users write is never a special token."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, pre_tokenizers

from hope_server.engine.chat_template import ChatTemplate, Piece
from hope_server.engine.turn import Message
from hope_server.errors import InvalidRequest
from hope_server.model.base_import import TokenizerSource, parse_tokenizer
from hope_server.model.checkpoint import load_config, load_tokenizer_source


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive token ids of a chat.

    role: of the message that the ids belong to, as the caller named it, or "template" for text that belongs to none.
    is_content: True for what the message says, False for the template's text around it.
    is_untrusted: the caller marked it so; a token that is so in part counts as a whole.
    """

    role: str
    ids: tuple[int, ...]
    is_content: bool
    is_untrusted: bool = False


class Tokenizer:
    """A model's tokenizer and chat template.

    eos_ids: ids that end a reply. vocab_size: number of ids the tokenizer knows, at most the rows of the embedding.
    fingerprint: sha256 (hex) of tokenizer and template.
    """

    def __init__(self, source: TokenizerSource, num_embeddings: int) -> None:
        """Build from `source`, whose ids must be below `num_embeddings`; raises CheckpointError otherwise."""
        # Two instances: whether special tokens in the text are parsed is a property of the instance, not of the call.
        self._literal = parse_tokenizer(source.tokenizer_json, num_embeddings, "tokenizer")
        self._plain = parse_tokenizer(source.tokenizer_json, num_embeddings, "tokenizer")
        self._plain.encode_special_tokens = True
        self._bytes = _token_bytes(self._plain)
        self._template = ChatTemplate(source.chat_template, self._template_variables(source))
        self._closing = self._encode_literal(self._template.assistant_closing())
        self.eos_ids = frozenset(source.eos_token_ids)
        self.vocab_size: int = self._plain.get_vocab_size(with_added_tokens=True)
        parts = f"{source.tokenizer_json}\0{source.chat_template or ''}"
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load the tokenizer of a converted model folder; raises CheckpointError when it is damaged."""
        return cls(load_tokenizer_source(folder), load_config(folder).vocab_size)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; names of special tokens in it are text like any other.

        Bytes that the vocabulary lacks (in SmolLM2 a few control characters) are left out.
        Raises InvalidRequest when `text` is not valid Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            reason = f"text has a lone surrogate at character {exc.start:,}; send valid Unicode"
            raise InvalidRequest(reason) from exc
        # A batch lets other threads run meanwhile, which `encode` does not: a long text would hold up everything.
        ids: list[int] = self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        text: str = self._plain.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text of one id for display; special tokens show their name, an unknown id is empty."""
        text: str = self._plain.decode([token_id], skip_special_tokens=False)
        return text

    def to_json(self) -> str:
        """Return the tokenizer as the JSON of the tokenizers library."""
        text: str = self._plain.to_str()
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes that an id adds to the text; None for every id when the tokenizer is not byte-level.

        Special tokens and unknown ids add none.
        """
        return None if self._bytes is None else self._bytes.get(token_id, b"")

    def render_chat(self, messages: Sequence[Message], *, continuing: bool, open_last: bool = False) -> list[Span]:
        """Return the spans of a chat, ending with the prompt for the assistant's reply.

        continuing: the spans follow a conversation that `close_assistant` closed; nothing of a beginning is repeated.
        open_last: end after the content of the last message instead, which must be the assistant's.
        Contents are encoded apart from the template's text, so a message has the same ids wherever it stands.
        Raises InvalidRequest when a role is unknown, the template refuses the messages, or text is not valid Unicode.
        """
        pieces = self._template.pieces(messages, continuing=continuing, open_last=open_last)
        return [span for piece in pieces for span in self._spans(piece)]

    def close_assistant(self) -> tuple[int, ...]:
        """Return the ids that close an assistant message after its content."""
        return self._closing

    def _spans(self, piece: Piece) -> list[Span]:
        if not piece.is_content:
            return [Span(piece.role, self._encode_literal(piece.text), is_content=False)]
        ids = tuple(self.encode(piece.text))
        if not piece.untrusted:
            return [Span(piece.role, ids, is_content=True)]
        # The ids must be those of the whole text, so they are marked afterwards, by the characters they stand for.
        offsets = self._plain.encode_batch([piece.text], add_special_tokens=False)[0].offsets
        marked = _touched(offsets, piece.untrusted)
        spans: list[Span] = []
        for is_untrusted, run in groupby(zip(ids, marked, strict=True), key=lambda pair: pair[1]):
            spans.append(Span(piece.role, tuple(token for token, _ in run), True, is_untrusted))
        return spans

    def _encode_literal(self, text: str) -> tuple[int, ...]:
        return tuple(self._literal.encode(text, add_special_tokens=False).ids)

    def _template_variables(self, source: TokenizerSource) -> dict[str, str]:
        # `prefix` is what the tokenizer itself puts before a text; only models without a template need it.
        added = self._literal.encode("", add_special_tokens=True).ids
        named = {
            "bos_token": source.bos_token_id,
            "eos_token": source.eos_token_ids[0],
            "pad_token": source.pad_token_id,
        }
        variables = {name: self._literal.id_to_token(token) or "" for name, token in named.items() if token is not None}
        variables["prefix"] = "".join(self._literal.id_to_token(token) or "" for token in added)
        return variables


def _touched(offsets: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token, given by its characters, whether one of the ranges has any of them."""
    # How many marked characters come before each one: one look at a token, however many ranges there are.
    num_before = [0]
    num_chars = max((0, *(until for _, until in ranges)))
    is_inside = bytearray(num_chars)
    for since, until in ranges:
        since = max(0, since)
        is_inside[since:until] = b"\1" * max(0, until - since)
    num_before.extend(itertools.accumulate(is_inside))
    # A token may stand for a part of a character only; it counts as the whole one.
    spans = ((start, max(stop, start + 1)) for start, stop in offsets)
    return [num_before[min(stop, num_chars)] > num_before[min(start, num_chars)] for start, stop in spans]


def _token_bytes(tokenizer: FastTokenizer) -> dict[int, bytes] | None:
    """Return the bytes of every id of a byte-level tokenizer, special tokens left out; None for other tokenizers."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    letters = _byte_letters()
    special = {token_id for token_id, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    table: dict[int, bytes] = {}
    for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id not in special:
            is_mapped = all(letter in letters for letter in text)
            table[token_id] = bytes(letters[letter] for letter in text) if is_mapped else text.encode()
    return table


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for (the table of GPT-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
    if letters.keys() != set(pre_tokenizers.ByteLevel.alphabet()):
        raise ValueError("the byte-level alphabet of the tokenizers library has changed")
    return letters
