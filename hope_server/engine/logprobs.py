"""The log-probabilities of a reply's tokens, held until the text that each token is part of is given out."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import TokenLogprob

MAX_TOP_LOGPROBS = 20
"""Most likely tokens that can be told at one place."""


class LogprobLog:
    """Log-probabilities of one reply, as the model gives them: before temperature, penalties, bias and constraint."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        """`num_top`: how many of the likeliest tokens are told at each place."""
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._held: deque[tuple[int, TokenLogprob]] = deque()

    def note(self, token: int, logits: Tensor, start: int) -> None:
        """Note a drawn token and the model's `logits` (V,) for it; its text begins at character `start`."""
        logprobs = logits.log_softmax(-1)
        top: tuple[TokenLogprob, ...] = ()
        if self._num_top:
            values, ids = logprobs.topk(min(self._num_top, logprobs.numel()))
            top = tuple(map(self._entry, ids.tolist(), values.tolist()))
        self._held.append((start, self._entry(token, float(logprobs[token]), top)))

    def take(self, end: int) -> tuple[TokenLogprob, ...]:
        """Give out the tokens whose text begins before character `end`."""
        taken = []
        while self._held and self._held[0][0] < end:
            taken.append(self._held.popleft()[1])
        return tuple(taken)

    def take_rest(self) -> tuple[TokenLogprob, ...]:
        """Give out all that is left, at the end of a reply that no stop string cut."""
        rest = tuple(entry for _, entry in self._held)
        self._held.clear()
        return rest

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text = self._tokenizer.token_text(token)
        data = self._tokenizer.token_bytes(token)
        # Nine digits are all that float32 has.
        return TokenLogprob(text, text.encode() if data is None else data, float(f"{logprob:.9g}"), top)
