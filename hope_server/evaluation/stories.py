"""Stories in the manner of bAbI 1 to 3: people carry things between places, set in unrelated prose.

A token is a word. Shapes: B rows, T words.
Source: bAbI (arXiv 1502.05698) tasks 1 to 3, and BABILong (arXiv 2406.10149), which sets them in books; the sentences
here are our own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from hope_server.evaluation.drawing import choose, coin, number
from hope_server.training.batch import Batch

__all__ = ["KINDS", "VOCABULARY", "StoryTask", "World"]

KINDS = {
    "one fact": "where is a person?",
    "two facts": "where is a thing that was carried?",
    "three facts": "where was a thing before?",
}
PEOPLE = ("mary", "john", "sandra", "daniel", "julie", "fred")
PLACES = ("kitchen", "garden", "office", "bathroom", "hallway", "bedroom", "cellar", "attic")
THINGS = ("apple", "milk", "football", "lantern", "book", "key")
MOVES = ("went to", "moved to", "travelled to")
TAKES = ("took", "picked up")
DROPS = ("dropped", "put down")
_FILLER = {
    "when": ("in the evening", "that winter", "long ago", "at last", "as usual", "for a while"),
    "who": ("the old captain", "a traveller", "my aunt", "the teacher", "nobody", "every neighbour"),
    "does": ("spoke of", "remembered", "wrote about", "dreamed of", "laughed about", "waited for"),
    "what": ("the sea", "a long letter", "better weather", "the war", "an early train", "the price of bread"),
    "how": ("with great care", "without a word", "in good spirits", "as before", "once more", "by candle light"),
}
_GLUE = (".", "?", "where", "is", "was", "the", "before")


def _vocabulary() -> tuple[str, ...]:
    phrases = [*MOVES, *TAKES, *DROPS, *(phrase for part in _FILLER.values() for phrase in part)]
    words = {word for phrase in phrases for word in phrase.split()}
    return (*sorted(words | {*_GLUE, *PEOPLE, *PLACES, *THINGS}),)


VOCABULARY = _vocabulary()
"""Every word, in the order of its token."""

_TOKENS = {word: token for token, word in enumerate(VOCABULARY)}


@dataclass(slots=True)
class World:
    """Where everybody is, who holds what, and where each thing has been, as the story tells it."""

    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    trail: dict[str, list[str]] = field(default_factory=dict)

    def act(self, generator: torch.Generator) -> str:
        """Let somebody do something that is possible, and return the sentence without its full stop."""
        person = choose(PEOPLE, generator)
        held = [thing for thing, owner in self.holder.items() if owner == person]
        free = [thing for thing in THINGS if thing not in self.holder and self._is_near(thing, person)]
        if person in self.where and (held or free) and coin(generator):
            drops = bool(held) and (not free or coin(generator, 0.4))
            thing = choose(held if drops else free, generator)
            if drops:
                del self.holder[thing]
            else:
                self.holder[thing] = person
                self._leave_trail(thing, self.where[person])
            return f"{person} {choose(DROPS if drops else TAKES, generator)} the {thing}"
        place = choose([place for place in PLACES if place != self.where.get(person)], generator)
        self.where[person] = place
        for thing in held:
            self._leave_trail(thing, place)
        return f"{person} {choose(MOVES, generator)} the {place}"

    def questions(self, kind: str) -> list[tuple[str, str]]:
        """Return every question of the kind that the story answers, each with its answer."""
        if kind == "one fact":
            return [(f"where is {person} ?", place) for person, place in self.where.items()]
        if kind == "two facts":
            return [(f"where is the {thing} ?", trail[-1]) for thing, trail in self.trail.items()]
        return [
            (f"where was the {thing} before the {after} ?", before)
            for thing, trail in self.trail.items()
            for before, after in pairwise(trail)
            # A place that the thing came to twice would make two answers right.
            if trail.count(after) == 1
        ]

    def _is_near(self, thing: str, person: str) -> bool:
        return thing not in self.trail or self.trail[thing][-1] == self.where.get(person)

    def _leave_trail(self, thing: str, place: str) -> None:
        trail = self.trail.setdefault(thing, [])
        if trail[-1:] != [place]:
            trail.append(place)


@dataclass(frozen=True, slots=True)
class StoryTask:
    """A story of `num_facts` sentences spread over filler, and questions at its end; the answers alone are scored.

    kind: a key of KINDS. num_questions: how many are asked, as far as the story answers so many; they may repeat.
    """

    kind: str = "one fact"
    num_facts: int = 8
    num_questions: int = 3

    @property
    def vocab_size(self) -> int:
        """One token a word."""
        return len(VOCABULARY)

    @property
    def shortest(self) -> int:
        """Words that story and questions need at most, without filler."""
        return 6 * self.num_facts + 9 * self.num_questions

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw stories; the answer is the target at its question mark and is told behind it.

        Raises ValueError when the facts do not fit.
        """
        if length < self.shortest:
            raise ValueError(f"{self.num_facts} facts and their questions need {self.shortest} words, not {length}")
        tokens = torch.zeros(num_rows, length, dtype=torch.long)
        targets = torch.zeros_like(tokens)
        weights = torch.zeros(num_rows, length)
        for row in range(num_rows):
            words, asked = self.tell(length, generator)
            tokens[row] = torch.tensor([_TOKENS[word] for word in words])
            for place in asked:
                targets[row, place] = tokens[row, place + 1]
                weights[row, place] = 1.0
        return Batch(tokens, targets, weights)

    def tell(self, length: int, generator: torch.Generator) -> tuple[list[str], list[int]]:
        """Return a story of `length` words, and the places of the question marks whose answers come next."""
        world, facts = self._world(generator)
        answerable = world.questions(self.kind)
        questions = [choose(answerable, generator) for _ in range(self.num_questions)]
        ending = [word for text, answer in questions for word in (*text.split(), answer)]
        room = length - len(ending) - sum(len(fact.split()) + 1 for fact in facts)
        words: list[str] = []
        for index, fact in enumerate(facts):
            left = len(facts) - index
            filler = _filler(number(2 * (room // left) + 1, generator), generator) if index else _filler(0, generator)
            filler = filler[:room]
            room -= len(filler)
            words += [*filler, *fact.split(), "."]
        words += _filler(room, generator)
        words += ending
        asked = [place for place in range(length - len(ending), length - 1) if words[place] == "?"]
        return words, asked

    def _world(self, generator: torch.Generator) -> tuple[World, list[str]]:
        """Draw stories until one answers a question of the kind."""
        while True:
            world = World()
            facts = [world.act(generator) for _ in range(self.num_facts)]
            if world.questions(self.kind):
                return world, facts


def _filler(num_words: int, generator: torch.Generator) -> list[str]:
    """Prose of exactly `num_words` words; its last sentence may be cut."""
    words: list[str] = []
    while len(words) < num_words:
        words += [*" ".join(choose(part, generator) for part in _FILLER.values()).split(), "."]
    return words[:num_words]
