"""Turns the turns of a dialogue into tokens, exactly as the chat template does when served, with a weight for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from hope_server.training.batch import Batch
from hope_server.training.bpe import mark_ids

__all__ = ["ChatCodec", "TokenWeights", "Turn", "rows_batch"]

Role = Literal["system", "user", "assistant"]
Encoded = tuple[list[int], list[float]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. answer: characters (start, stop) of what was asked for; is_book: the text is not the user's own."""

    role: Role
    text: str
    answer: tuple[int, int] | None = None
    is_book: bool = False


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """How much each kind of token counts in the loss; 0 is not scored.

    assistant: what the model says, with the mark that ends it. answer: the part that was asked for.
    user: what is said to it, and the marks around messages. book: what is read aloud.
    """

    assistant: float = 1.0
    answer: float = 4.0
    user: float = 0.2
    book: float = 0.1


ANSWERS_ONLY = TokenWeights(assistant=0.0, answer=1.0, user=0.0, book=0.0)


class ChatCodec:
    """Encodes turns with a tokenizer of `bpe.train_tokenizer`; contents never become marks."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.padding, start, end = mark_ids(self._tokenizer)
        newline = self.encode("\n")
        self._openings = {role: [start, *self.encode(f"{role}\n")] for role in ("system", "user", "assistant")}
        self._closing = [end, *newline]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, marks included."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def encode_turn(self, turn: Turn, weights: TokenWeights) -> Encoded:
        """Return the tokens of a message with its marks, and how much the prediction of each of them counts."""
        found = self._tokenizer.encode(turn.text, add_special_tokens=False)
        spoken = turn.role == "assistant"
        plain = weights.assistant if spoken else weights.book if turn.is_book else weights.user
        opening = self._openings[turn.role]
        if turn.answer is None:
            content = [plain] * len(found.ids)
        else:
            since, until = turn.answer
            content = [weights.answer if since < stop and start < until else plain for start, stop in found.offsets]
        closing = [weights.assistant if spoken else weights.user, *[weights.user] * (len(self._closing) - 1)]
        ids: list[int] = found.ids
        return opening + ids + self._closing, [weights.user] * len(opening) + content + closing


def rows_batch(rows: list[Encoded], length: int, padding: int) -> Batch:
    """Return rows cut or padded to `length` tokens; each position's target is the token after it.

    rows: tokens and weights, as `encode_turn` returns them; a row should have length + 1 tokens, what lacks is not
    scored.
    """
    tokens = torch.full((len(rows), length + 1), padding, dtype=torch.long)
    weights = torch.zeros(len(rows), length + 1)
    for row, (ids, counts) in enumerate(rows):
        num = min(len(ids), length + 1)
        tokens[row, :num] = torch.tensor(ids[:num], dtype=torch.long)
        weights[row, :num] = torch.tensor(counts[:num])
    return Batch(_own(tokens[:, :-1]), _own(tokens[:, 1:]), _own(weights[:, 1:]))


def _own(tensor: Tensor) -> Tensor:
    return tensor.contiguous()
