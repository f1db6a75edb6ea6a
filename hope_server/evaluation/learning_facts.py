"""Invented facts for `hope bench learning`: drawn by seed, told in a list, in prose or in a chat, and asked for.

Pure functions of a seed and of learning_phrases.yaml. A fact's candidates are eight values of its kind, the right one
among them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

__all__ = [
    "NUM_CANDIDATES",
    "Question",
    "TaughtFact",
    "Telling",
    "chat_turns",
    "draw_facts",
    "small_talk",
    "tell",
    "updated",
]

NUM_CANDIDATES = 8
Telling = Literal["list", "prose", "chat"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the start of a sentence that answers it; the answer follows behind a space."""

    text: str
    lead_in: str


@dataclass(frozen=True, slots=True)
class TaughtFact:
    """A fact. statement: how it is told; change: how its value is told once another was known; question: asks in
    the words of the statement; rephrased: questions that share no frame with any statement.

    answer: the right value; candidates: it and seven others of its kind, shuffled.
    """

    kind: str
    about: tuple[str, str]
    answer: str
    candidates: tuple[str, ...]
    statement: str
    change: str
    question: Question
    rephrased: tuple[Question, ...]

    @property
    def right(self) -> int:
        """The answer's place among the candidates."""
        return self.candidates.index(self.answer)


def draw_facts(num_facts: int, seed: int, exclude: Sequence[TaughtFact] = ()) -> tuple[TaughtFact, ...]:
    """Return facts about different people and things, kinds in turn; none about what a fact of `exclude` is about.

    Raises ValueError for more facts than the phrases can make.
    """
    rng = random.Random(seed)
    kinds = rng.sample(_phrases()["kinds"], len(_phrases()["kinds"]))
    taken = {fact.about for fact in exclude}
    people = _people(rng, {who for who, _ in taken})
    out: list[TaughtFact] = []
    turn = 0
    while len(out) < num_facts:
        if turn >= 16 * (num_facts + len(kinds)):
            raise ValueError(f"at most {len(out)} different facts can be drawn, {num_facts} were asked for")
        kind = kinds[turn % len(kinds)]
        turn += 1
        what = rng.choice(kind.get("what", [""]))
        if kind.get("is_mine"):
            about = ("", what)
        elif people:
            about = (people[-1], what)
        else:
            continue
        if about in taken:
            continue
        if about[0]:
            people.pop()
        taken.add(about)
        out.append(_make(kind, about, rng.choice(kind["value"]), rng))
    return tuple(out)


def updated(facts: Sequence[TaughtFact], seed: int) -> tuple[TaughtFact, ...]:
    """Return the facts with another value each, told as a change; the old value stays among the candidates."""
    rng = random.Random(seed)
    out = []
    for fact in facts:
        kind = next(kind for kind in _phrases()["kinds"] if kind["name"] == fact.kind)
        answer = rng.choice([value for value in fact.candidates if value != fact.answer])
        made = _make(kind, fact.about, answer, rng)
        out.append(replace(made, candidates=fact.candidates, statement=made.change))
    return tuple(out)


def tell(facts: Sequence[TaughtFact], how: Telling, seed: int, *, facts_per_text: int = 1) -> list[str]:
    """Return texts that tell the facts in their order: one list, one text of prose, or what a user says in chat turns.

    facts_per_text: facts in a paragraph or turn.
    """
    if how == "list":
        return ["\n".join(fact.statement for fact in facts)]
    rng = random.Random(seed)
    frames = _phrases()[how]
    out = []
    for start in range(0, len(facts), facts_per_text):
        told = " ".join(fact.statement for fact in facts[start : start + facts_per_text])
        out.append(rng.choice(frames).format(fact=told, fact_lower=_lowered(told, facts[start])))
    return ["\n\n".join(out)] if how == "prose" else out


def small_talk(seed: int) -> str:
    """Return something that a user says and that tells no fact."""
    talk: str = random.Random(seed).choice(_phrases()["small_talk"])
    return talk


def chat_turns(facts: Sequence[TaughtFact], seed: int) -> list[str]:
    """Return what a user says in a conversation that tells the facts: turns of about 60 words, with small talk.

    A turn holds four facts in two remarks and a sentence of small talk; behind every third turn is one of small talk
    alone.
    """
    remarks = tell(facts, "chat", seed, facts_per_text=2)
    sentences = _phrases()["small_talk"]
    talk = itertools.cycle(random.Random(seed).sample(sentences, len(sentences)))
    turns = []
    for number, start in enumerate(range(0, len(remarks), 2)):
        turns.append(" ".join([remarks[start], next(talk), *remarks[start + 1 : start + 2]]))
        if number % 3 == 2:
            turns.append(f"{next(talk)} {next(talk)}")
    return turns


@cache
def _phrases() -> dict[str, Any]:
    text = resources.files("hope_server.evaluation").joinpath("learning_phrases.yaml").read_text(encoding="utf-8")
    phrases: dict[str, Any] = yaml.safe_load(text)
    return phrases


def _people(rng: random.Random, taken: set[str]) -> list[str]:
    """First names in random order, to be taken from the end, and behind them full names."""
    first, last = _phrases()["names"], _phrases()["surnames"]
    full = [f"{name} {surname}" for name in first for surname in last]
    people = rng.sample(full, len(full)) + rng.sample(first, len(first))
    return [name for name in people if name not in taken]


def _make(kind: dict[str, Any], about: tuple[str, str], answer: str, rng: random.Random) -> TaughtFact:
    words = {"who": about[0], "what": about[1], "value": answer}
    others = rng.sample([value for value in kind["value"] if value != answer], NUM_CANDIDATES - 1)
    candidates = [answer, *others]
    rng.shuffle(candidates)
    statement, question, lead_in = (part.format(**words) for part in rng.choice(kind["tell"]))
    return TaughtFact(
        kind["name"],
        about,
        answer,
        tuple(candidates),
        statement,
        kind["change"].format(**words),
        Question(question, lead_in),
        tuple(Question(*(part.format(**words) for part in pair)) for pair in kind["rephrased"]),
    )


def _lowered(told: str, first: TaughtFact) -> str:
    """The statement as it stands behind a comma: with a small letter, unless it begins with a name."""
    is_name = bool(first.about[0]) and told.startswith(first.about[0])
    return told if is_name else told[:1].lower() + told[1:]
