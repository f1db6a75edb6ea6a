"""Writes one synthetic dialogue, exchange by exchange: facts told, changed and asked for, small talk, books."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hope_server.training.chat_codec import Turn
from hope_server.training.dialogue_facts import Fact, Language

__all__ = [
    "Manner",
    "Story",
    "asking",
    "draw_manner",
    "draw_plain_manner",
    "reading",
    "reading_aloud",
    "small_talk",
    "telling",
]

Exchange = tuple[Turn, ...]

_NEAREST = 16
_CASUAL_SHARE = 0.15
_BOREDOM = 0.7
_COMMON_START = re.compile(r"(Where|What|When|Who|Which|Do|Does|Is|Am|In|How|On|My|The|Remember|Note|Please|You)\b")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a dialogue goes: the relative number of exchanges of each sort, and who is in it.

    change, unknown, confirm: share of the tellings that change a fact, of the questions about what was never told, and
    of the questions that a yes or no answers. passage: longest passage that is read aloud, in words.
    is_plain: facts are told in the words of the answer, with nothing before them.
    """

    tell: float
    ask: float
    chat: float
    read: float
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    change: float = 0.12
    unknown: float = 0.12
    confirm: float = 0.12
    passage: int = 120
    is_plain: bool = False


_SORTS = ((0.32, 0.63, 0.05, 0.0), (0.25, 0.5, 0.15, 0.1), (0.12, 0.4, 0.18, 0.3), (0.2, 0.4, 0.4, 0.0))


def draw_manner(language: Language, draw: random.Random, kinds: Sequence[str] = ()) -> Manner:
    """Return the manner of a new dialogue: dense or mixed with other things, many people or few, all kinds or some.

    kinds: those of the facts, all if empty.
    """
    tell, ask, chat, read = draw.choice(_SORTS)
    names, kinds = language.words("name"), list(kinds or language.kinds)
    return Manner(
        tell=tell,
        ask=ask,
        chat=chat,
        read=read,
        names=tuple(names if draw.random() < 0.5 else draw.sample(names, draw.randint(4, 12))),
        kinds=tuple(kinds if draw.random() < 0.7 or len(kinds) < 5 else draw.sample(kinds, draw.randint(2, 5))),
    )


def draw_plain_manner(language: Language, draw: random.Random, kinds: Sequence[str] = ()) -> Manner:
    """Return the manner of a dialogue to learn recall from: a few people, facts in the answer's words, questions."""
    names = tuple(draw.sample(language.words("name"), draw.randint(6, 10)))
    return Manner(0.45, 0.55, 0.0, 0.0, names, tuple(kinds or language.kinds), 0.0, 0.0, 0.0, is_plain=True)


class Story:
    """A dialogue in the making. It knows what was told, and where it was last mentioned."""

    def __init__(self, language: Language, manner: Manner, passages: Sequence[str], draw: random.Random) -> None:
        self._language = language
        self._manner = manner
        self._passages = passages
        self._draw = draw
        self._facts: dict[tuple[str, ...], Fact] = {}
        self._mentioned: dict[tuple[str, ...], int] = {}
        self._num_asked: Counter[tuple[str, ...]] = Counter()

    def opening(self) -> Exchange:
        """Return what stands before the first exchange: now and then a system message."""
        texts = self._language.phrases["system"]
        return (Turn("system", self._draw.choice(texts)),) if self._draw.random() < 0.2 else ()

    def next_exchange(self, position: int) -> Exchange:
        """Return the turns of the next exchange; position: tokens written so far."""
        manner = self._manner
        sorts, shares = ("tell", "ask", "chat", "read"), (manner.tell, manner.ask, manner.chat, manner.read)
        sort = self._draw.choices(sorts, shares)[0]
        if sort == "tell":
            return self._tell(position)
        if sort == "ask":
            return self._ask(position)
        if sort == "read" and self._passages:
            return reading_aloud(self._language, self._passages, manner, self._draw)
        return small_talk(self._language, self._draw)

    def _tell(self, position: int) -> Exchange:
        if self._facts and self._draw.random() < self._manner.change:
            fact = self._language.draw_other(self._draw.choice(list(self._facts.values())), self._draw)
            self._remember(fact, position)
            return telling(self._language, [fact], self._draw, is_change=True)
        facts = []
        for _ in range(self._draw.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]):
            fact = self._draw_fact()
            if fact.key in self._facts:
                continue
            self._remember(fact, position)
            facts.append(fact)
        # In a small world everything may have been told.
        if not facts:
            return self._ask(position)
        return telling(self._language, facts, self._draw, is_plain=self._manner.is_plain)

    def _ask(self, position: int) -> Exchange:
        if not self._facts or self._draw.random() < self._manner.unknown:
            fact = self._draw_fact()
            if fact.key not in self._facts:
                return asking(self._language, fact, self._draw, is_known=False)
            self._mentioned[fact.key] = position
            return asking(self._language, self._facts[fact.key], self._draw)
        fact = self._at_distance(position)
        self._mentioned[fact.key] = position
        if self._draw.random() < self._manner.confirm:
            return self._confirm(fact)
        return asking(self._language, fact, self._draw)

    def _at_distance(self, position: int) -> Fact:
        """Return the fact whose last mention lies nearest to a distance drawn log-uniformly."""
        wanted = self._draw.uniform(math.log(_NEAREST), math.log(max(_NEAREST + 1, position)))
        miss = {
            key: abs(math.log(max(1, position - at)) - wanted) + _BOREDOM * self._num_asked[key]
            for key, at in self._mentioned.items()
        }
        key = min(miss, key=miss.__getitem__)
        self._num_asked[key] += 1
        return self._facts[key]

    def _confirm(self, fact: Fact) -> Exchange:
        phrases = self._language.phrases
        is_so = self._draw.random() < 0.5
        shown = fact if is_so else self._language.draw_other(fact, self._draw)
        question = shown.phrase(self._draw.choice(fact.kind.confirm))
        return (Turn("user", question), _answer(fact, phrases["affirm" if is_so else "deny"] + " "))

    def _draw_fact(self) -> Fact:
        kind = self._language.kinds[self._draw.choice(self._manner.kinds)]
        return self._language.draw_fact(kind, self._draw, names=list(self._manner.names))

    def _remember(self, fact: Fact, position: int) -> None:
        self._facts[fact.key] = fact
        self._mentioned[fact.key] = position
        self._num_asked[fact.key] = 0


def telling(
    language: Language,
    facts: Sequence[Fact],
    draw: random.Random,
    *,
    is_change: bool = False,
    is_held_out: bool = False,
    is_plain: bool = False,
) -> Exchange:
    """Return the exchange in which the user tells facts, or what has changed.

    is_held_out: in held-out phrasings. is_plain: in each kind's first phrasing of the trained ones, with no lead.
    """
    sentences = [
        fact.phrase(fact.kind.tell[0] if is_plain else draw.choice(_tellings(fact, is_change, is_held_out)))
        for fact in facts
    ]
    lead = "" if is_plain else draw.choice(language.phrases["lead"])
    replies = language.phrases["acknowledge_change" if is_change else "acknowledge"]
    return (Turn("user", _casual(lead + " ".join(sentences), draw)), Turn("assistant", draw.choice(replies)))


def asking(
    language: Language, fact: Fact, draw: random.Random, *, is_known: bool = True, is_held_out: bool = False
) -> Exchange:
    """Return the exchange in which the user asks for a fact; one that is not known is answered so."""
    question = fact.phrase(draw.choice(fact.kind.held_out_ask if is_held_out else fact.kind.ask))
    reply = _answer(fact) if is_known else Turn("assistant", language.phrases["unknown"])
    return (Turn("user", question if is_held_out else _casual(question, draw)), reply)


def reading(language: Language, passages: Sequence[str], num_words: int, draw: random.Random) -> Exchange:
    """Return the exchange in which the user reads about `num_words` words aloud, from a place drawn at random."""
    at = draw.randrange(len(passages))
    words: list[str] = []
    while len(words) < num_words:
        words += passages[at % len(passages)].split()
        at += 1
    text = draw.choice(language.phrases["read_aloud"]) + " ".join(words[:num_words])
    return (Turn("user", text, is_book=True), Turn("assistant", draw.choice(language.phrases["heard"])))


def reading_aloud(language: Language, passages: Sequence[str], manner: Manner, draw: random.Random) -> Exchange:
    """Return the exchange in which the user reads a passage aloud, short ones as likely as long ones."""
    words = int(math.exp(draw.uniform(math.log(15), math.log(manner.passage))))
    return reading(language, passages, words, draw)


def small_talk(language: Language, draw: random.Random) -> Exchange:
    """Return an exchange that tells nothing."""
    topic = draw.choice(language.phrases["small_talk"])
    return (Turn("user", draw.choice(topic["user"])), Turn("assistant", draw.choice(topic["assistant"])))


def _tellings(fact: Fact, is_change: bool, is_held_out: bool) -> tuple[str, ...]:
    return fact.kind.held_out_tell if is_held_out else fact.kind.change if is_change else fact.kind.tell


def _answer(fact: Fact, lead: str = "") -> Turn:
    since, until = fact.answer_span
    return Turn("assistant", lead + fact.answer, (len(lead) + since, len(lead) + until))


def _casual(text: str, draw: random.Random) -> str:
    """Return the text as people type it: now and then without the mark at its end, or with a small first letter."""
    if draw.random() < _CASUAL_SHARE:
        text = text.rstrip(".?")
    if draw.random() < _CASUAL_SHARE and _COMMON_START.match(text):
        text = text[0].lower() + text[1:]
    return text
