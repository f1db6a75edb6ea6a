"""Sessions of invented facts for meta-training: told, studied, and asked for in other words than they were told in.

The facts are those of the synthetic dialogues. Some of them and some phrasings are held out, to measure on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hope_server.engine.cards import LEADS, Card, CardMaker
from hope_server.training.dialogue_facts import Fact, FactKind, Language

__all__ = ["Asked", "LessonBook"]

OWN_SHARE = 0.15
"""How many facts are about the user, about."""
NUM_TELLINGS = 2
"""Tellings of a kind that a reply may repeat: those that stand near to its answer."""
NUM_LEADS = 8
_ANSWERS, _TELLINGS = 0.5, 0.25


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its reply. value: place in the reply of the first token that only the fact tells."""

    card: Card
    value: int


class LessonBook:
    """Draws facts, tells them and asks for them; one random generator decides all. is_held_out: those to measure on."""

    def __init__(self, language: Language, cards: CardMaker, rng: random.Random, *, is_held_out: bool = False) -> None:
        self._language, self._cards, self._rng = language, cards, rng
        self._is_held_out = is_held_out
        kinds = list(language.kinds.values())
        self._about_others = [kind for kind in kinds if kind.keys]
        self._about_me = [kind for kind in kinds if not kind.keys]

    def draw(self, count: int, besides: Sequence[Fact]) -> list[Fact]:
        """Facts of which none is about what another, or one of `besides`, is about."""
        taken = {fact.key for fact in besides}
        out: list[Fact] = []
        while len(out) < count:
            is_mine = self._rng.random() < OWN_SHARE
            kind: FactKind = self._rng.choice(self._about_me if is_mine else self._about_others)
            fact = self._language.draw_fact(kind, self._rng, is_held_out=self._is_held_out)
            if fact.key not in taken:
                taken.add(fact.key)
                out.append(fact)
        return out

    def tell(self, fact: Fact) -> str:
        """A sentence that tells a fact."""
        return fact.phrase(self._rng.choice(fact.kind.tell))

    def ask(self, fact: Fact) -> Asked:
        """A question about a fact, in one of its kind's wordings, and a reply that comes to its value."""
        asks = fact.kind.held_out_ask if self._is_held_out else fact.kind.ask
        head, value = self._reply(fact)
        prompt, sees_system = self._cards.ask(fact.phrase(self._rng.choice(asks)), self._rng)
        start = tuple(self._cards.encode(head)) if head else ()
        rest = self._cards.encode(f" {value}" if head else value)
        return Asked(Card(prompt, (*start, *rest, *self._cards.frame.ending), sees_system), len(start))

    def _reply(self, fact: Fact) -> tuple[str, str]:
        """What a reply says before the value, and the value: the kind's answer, a telling, or a common start."""
        chance = self._rng.random()
        if chance >= _ANSWERS + _TELLINGS:
            return self._rng.choice(LEADS[:NUM_LEADS]), fact.value
        text = fact.answer if chance < _ANSWERS else fact.phrase(self._rng.choice(fact.kind.tell[:NUM_TELLINGS]))
        start = text.rindex(fact.value)
        return text[:start].rstrip(), text[start:].rstrip(".")
