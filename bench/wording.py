"""Texts of an exact number of tokens: sentences of a file in an order that a seed draws, so that no two are alike."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from machine import ROOT

from hope_server.engine.tokenizer import Tokenizer
from hope_server.model.checkpoint import load_tokenizer_source, resolve_model
from hope_server.settings import Settings

CORPUS = ROOT / "examples" / "unrelated.txt"
_ATTEMPTS = 200
_TOY_LETTERS = range(64, 90)


class Wording:
    """Draws texts for one tokenizer. encode and decode are its own, without special tokens."""

    def __init__(self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> None:
        self.encode, self._decode = encode, decode
        text = " ".join(CORPUS.read_text(encoding="utf-8").split())
        self._sentences = re.split(r"(?<=[.!?]) ", text)

    @classmethod
    def of_model(cls, folder: Path) -> Wording:
        """Texts for the tokenizer of a converted model."""
        tokenizer = Tokenizer.load(folder)
        return cls(tokenizer.encode, tokenizer.decode)

    @classmethod
    def of_bytes(cls) -> Wording:
        """Texts for a tokenizer of one token a byte, as that of toy models."""
        return cls(lambda text: list(text.encode()), lambda ids: bytes(ids).decode(errors="ignore"))

    def text(self, num_tokens: int, seed: int) -> str:
        """Return a text that is read as exactly `num_tokens` tokens; another seed gives another text.

        Raises ValueError where no such text is found.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}; it must be at least 1")
        drawn = random.Random(seed)
        words = [f"Note {drawn.randrange(10**6)}."]
        while len(ids := self.encode(" ".join(words))) < num_tokens + 8:
            words += drawn.choices(self._sentences, k=1 + num_tokens // 32)
        # A text that is cut may be read otherwise than where it was whole; another cut then has the right number.
        for attempt in range(_ATTEMPTS):
            start = attempt // 8
            text = self._decode(ids[start : start + num_tokens + attempt % 8]).strip()
            if len(self.encode(text)) == num_tokens:
                return text
            if len(ids) < start + num_tokens + 16:
                ids += self.encode(" " + drawn.choice(self._sentences))
        raise ValueError(f"no text of exactly {num_tokens} tokens was found")


Model = tuple[Wording, dict[str, float], Path | None]
"""Texts for a model, the `logit_bias` that gives every reply the length asked for, and its converted folder."""


def real_model() -> Model:
    """The model that the settings name, converted if need be."""
    settings = Settings.load()
    folder = resolve_model(settings.model, settings.cache_dir)
    return (
        Wording.of_model(folder),
        {str(token): -100.0 for token in load_tokenizer_source(folder).eos_token_ids},
        folder,
    )


def toy_model() -> Model:
    """The toy of the tests: only its letters a to z are drawn, so that every token is a text of its own."""
    return Wording.of_bytes(), {str(token): 100.0 for token in _TOY_LETTERS}, None
