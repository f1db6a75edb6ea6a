"""sillage, a memory without gradients for a frozen model, asked like a session: its own code, from its own wheel.

Its pieces are put together as its `complete` does, so that candidates can be scored too: frozen logits, its adapter,
its memories keyed by the last tokens. Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hope_client import Score

from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import Message
from hope_server.evaluation.learning_facts import Question
from hope_server.evaluation.learning_probe import ANSWER_TOKENS
from hope_server.evaluation.learning_texts import Window
from hope_server.training.corpora import fetch_wheel

__all__ = ["READINGS", "Sillage"]

_WHEEL = "sillage==1.9.2"
_SHA256 = "72ebecb9a75660b014a2dc323b50091df51f8dba0a7cd8df95c594615aaf472d"
READINGS = 3
"""How often it reads the facts: its memories stay silent until they have seen 500 tokens."""
_LEAST = 1e-30


class Sillage:
    """Their assistant around transformers' model with our weights."""

    def __init__(self, assistant: Any, model: Any, tokenizer: Tokenizer) -> None:
        self._assistant = assistant
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, model: Any, tokenizer: Tokenizer, folder: Path, cache_dir: Path) -> Sillage:
        """Build it with an empty memory.

        model: transformers' causal language model. folder: gets the model's configuration, from which theirs takes its
        sizes. Raises StartupError where its wheel cannot be had.
        """
        wheel = fetch_wheel(_WHEEL, cache_dir / "sillage", _SHA256)
        if str(wheel) not in sys.path:
            sys.path.append(str(wheel))
        theirs = importlib.import_module("sillage")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        assistant = theirs.Sillage(model=str(folder), state=str(folder / "state"), device="cpu", quiet=True)
        assistant._model, assistant._tok = model, _Encoder(tokenizer)
        return cls(assistant, model, tokenizer)

    @property
    def num_bytes(self) -> int:
        """Size of its memories."""
        return int(sum(self._assistant.mem.sizes().values()))

    def read(self, text: str) -> None:
        """Have it read a text `READINGS` times."""
        for _ in range(READINGS):
            with contextlib.redirect_stdout(sys.stderr):
                self._assistant.read_text(text)

    def scores(self, question: Question, candidates: Sequence[str]) -> Sequence[Score]:
        """Return how probable each candidate is behind the start of the answer."""
        prefix = self._chat(question.text, question.lead_in)
        return [self._score(prefix, self._tokenizer.encode(f" {each}")) for each in candidates]

    def reply(self, question: str) -> str:
        """Return the greedy answer to the question alone."""
        tokens = self._chat(question)
        start = len(tokens)
        for _ in range(ANSWER_TOKENS):
            best = int(self._mixed(tokens, len(tokens) - 1)[0].argmax())
            if best in self._tokenizer.eos_ids:
                break
            tokens.append(best)
        return self._tokenizer.decode(tokens[start:]).strip()

    def loss(self, window: Window) -> tuple[float, int]:
        """Return the summed log-probability of a window's rest, and its number of tokens."""
        score = self._score(self._tokenizer.encode(window.opening), self._tokenizer.encode(window.rest))
        return score.logprob, score.num_tokens

    def _score(self, prefix: Sequence[int], rest: Sequence[int]) -> Score:
        tokens = [*prefix, *rest]
        found = self._mixed(tokens[:-1], len(prefix) - 1)
        logprobs = (math.log(max(float(row[token]), _LEAST)) for row, token in zip(found, rest, strict=True))
        return Score(math.fsum(logprobs), len(rest))

    def _mixed(self, tokens: Sequence[int], first: int) -> list[Any]:
        """Its probabilities [V] of what follows each token from place `first` on; nothing is written."""
        memory = self._assistant.mem
        with torch.inference_mode():
            out = self._model(torch.tensor([list(tokens)]), output_hidden_states=True)
        logits = out.logits[0].float().numpy()
        hidden = out.hidden_states[-1][0].float().numpy()
        memory.set_vocab(logits.shape[-1])
        memory.new_stream()
        threshold = memory.thresholds()[0]
        mixed = []
        for place, token in enumerate(tokens):
            key = memory.step_key(int(token))
            if place < first:
                continue
            adapted = memory.adapt(logits[place], hidden[place])[0]
            probabilities = torch.from_numpy(adapted).softmax(-1).numpy()
            found = memory.scores(memory.M, key)[1]
            mixed.append(memory.mix_full(probabilities, found, None, memory.cold_lookup(), threshold))
        return mixed

    def _chat(self, question: str, lead_in: str | None = None) -> list[int]:
        messages = [Message("user", question)]
        if lead_in is not None:
            messages.append(Message("assistant", lead_in))
        spans = self._tokenizer.render_chat(messages, continuing=False, open_last=lead_in is not None)
        return [token for span in spans for token in span.ids]


class _Encoder:
    """Our tokenizer with the two methods that theirs is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([int(token) for token in tokens])
