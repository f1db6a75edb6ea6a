"""The facts of the synthetic dialogues: their kinds, how they are drawn, told, asked for and answered.

Every combination of whom, what and value falls by its own text into the trained or the held-out share, and some
phrasings are held out too, so that what a model answers about those it cannot have learned by heart.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

__all__ = ["Fact", "FactKind", "Language", "load_language"]

_HELD_OUT_SHARE = 10
_NUM_DIGITS = 4
_MAX_DAY = 28
_BARE_ARTICLE = re.compile(r"\b([Aa])(?= [aeiou])")


@dataclass(frozen=True, slots=True)
class FactKind:
    """One kind of fact; see dialogue_phrases.yaml. The held-out phrasings are for evaluation only."""

    name: str
    keys: tuple[str, ...]
    value: str
    tell: tuple[str, ...]
    change: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    confirm: tuple[str, ...]
    held_out_tell: tuple[str, ...]
    held_out_ask: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: a kind, what it is about (the words of the kind's keys in order), and its value."""

    kind: FactKind
    about: tuple[str, ...]
    value: str

    @property
    def key(self) -> tuple[str, ...]:
        """What two facts share that exclude each other."""
        return (self.kind.name, *self.about)

    @property
    def is_held_out(self) -> bool:
        """Whether this combination is kept out of training."""
        return zlib.crc32("\0".join((*self.key, self.value)).encode()) % _HELD_OUT_SHARE == 0

    @property
    def answer(self) -> str:
        """The sentence that answers a question about the fact."""
        return self.phrase(self.kind.answer)

    @property
    def answer_span(self) -> tuple[int, int]:
        """The characters of `answer` that are the value."""
        start = self.answer.rindex(self.value)
        return start, start + len(self.value)

    def phrase(self, pattern: str) -> str:
        """Return a phrasing of the kind with this fact's words."""
        text = pattern.format(value=self.value, **dict(zip(self.kind.keys, self.about, strict=True)))
        return _BARE_ARTICLE.sub(r"\1n", text)

    def with_value(self, value: str) -> Fact:
        """Return the same question with another answer."""
        return Fact(self.kind, self.about, value)


class Language:
    """The words and phrasings of the dialogues, and facts drawn from them."""

    def __init__(self, words: dict[str, list[str]], phrases: dict[str, Any]) -> None:
        self._words = words
        self.phrases = phrases
        self.kinds = {name: _read_kind(name, entry) for name, entry in phrases["kinds"].items()}

    def words(self, name: str) -> list[str]:
        """Return a word list; raises KeyError for an unknown one."""
        return self._words[name]

    def draw_fact(
        self, kind: FactKind, draw: random.Random, *, names: list[str] | None = None, is_held_out: bool = False
    ) -> Fact:
        """Return a fact of a kind from the trained or the held-out share; `names` limits whom it can be about."""
        while True:
            lists = [names if names and key == "name" else self._words[key] for key in kind.keys]
            fact = Fact(kind, tuple(draw.choice(words) for words in lists), self.draw_value(kind, draw))
            if fact.is_held_out == is_held_out:
                return fact
            # A small cast may have no held-out fact of a kind with few values, but there are always others.
            names = None if is_held_out else names

    def draw_value(self, kind: FactKind, draw: random.Random) -> str:
        """Return a value that a fact of a kind can have."""
        if kind.value == "place":
            return f"the {draw.choice(self._words['adjective'])} {draw.choice(self._words['spot'])}"
        if kind.value == "date":
            return f"{draw.randint(1, _MAX_DAY)} {draw.choice(self._words['month'])}"
        if kind.value == "code":
            return "".join(str(draw.randint(0, 9)) for _ in range(_NUM_DIGITS))
        return draw.choice(self._words[kind.value])

    def draw_other(self, fact: Fact, draw: random.Random) -> Fact:
        """Return the fact with another value from the trained share."""
        while True:
            other = fact.with_value(self.draw_value(fact.kind, draw))
            if other.value != fact.value and not other.is_held_out:
                return other


@cache
def load_language() -> Language:
    """Return the language that comes with the project."""
    folder = resources.files("hope_server.training")
    words, phrases = (
        yaml.safe_load((folder / f"dialogue_{name}.yaml").read_text(encoding="utf-8")) for name in ("words", "phrases")
    )
    return Language(words, phrases)


def _read_kind(name: str, entry: dict[str, Any]) -> FactKind:
    return FactKind(
        name=name,
        keys=tuple(entry["keys"]),
        value=entry["value"],
        tell=tuple(entry["tell"]),
        change=tuple(entry["change"]),
        ask=tuple(entry["ask"]),
        answer=entry["answer"],
        confirm=tuple(entry["confirm"]),
        held_out_tell=tuple(entry["held_out"]["tell"]),
        held_out_ask=tuple(entry["held_out"]["ask"]),
    )
