"""Plain text as a task: pieces of books at random places, each token to be foretold.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hope_server.training.batch import Batch
from hope_server.training.chat_codec import ChatCodec

__all__ = ["BookTask"]

_HELD_OUT_SHARE = 20
_CHARACTERS_AT_ONCE = 100_000


class BookTask:
    """Draws stretches of text; the last twentieth of each text is kept for measuring."""

    def __init__(self, tokenizer_json: str, texts: Sequence[str], probe_length: int = 256) -> None:
        codec = ChatCodec(tokenizer_json)
        self._vocab_size = codec.vocab_size
        streams = [torch.tensor(_encode(codec, text), dtype=torch.long) for text in texts]
        cuts = [len(stream) - len(stream) // _HELD_OUT_SHARE for stream in streams]
        self._training = torch.cat([stream[:cut] for stream, cut in zip(streams, cuts, strict=True)])
        self._held_out = torch.cat([stream[cut:] for stream, cut in zip(streams, cuts, strict=True)])
        self._probe_length = probe_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the tokenizer."""
        return self._vocab_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw stretches of `length` tokens; raises ValueError when the text is shorter."""
        return _stretches(self._training, num_rows, length, generator)

    def probes(self, num_rows: int, generator: torch.Generator) -> dict[str, Batch]:
        """Return stretches of the held-out text."""
        length = min(self._probe_length, len(self._held_out) - 1)
        return {"held-out text": _stretches(self._held_out, num_rows, length, generator)} if length > 0 else {}


def _encode(codec: ChatCodec, text: str) -> list[int]:
    # One long text would be one piece of work; cut, it costs a wrong token at each seam at most.
    starts = range(0, len(text), _CHARACTERS_AT_ONCE)
    return [token for start in starts for token in codec.encode(text[start : start + _CHARACTERS_AT_ONCE])]


def _stretches(stream: torch.Tensor, num_rows: int, length: int, generator: torch.Generator) -> Batch:
    if len(stream) <= length:
        raise ValueError(f"the text has {len(stream):,} tokens; rows of {length:,} need more")
    starts = torch.randint(len(stream) - length, (num_rows, 1), generator=generator)
    rows = stream[starts + torch.arange(length + 1)]
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(num_rows, length))
