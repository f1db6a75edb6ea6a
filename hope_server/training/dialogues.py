"""The task of hope-nano: chats in which facts are told, changed, and asked for after other talk and pages of books.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hope_server.errors import SettingsError
from hope_server.training.batch import Batch
from hope_server.training.chat_codec import ANSWERS_ONLY, ChatCodec, Encoded, TokenWeights, Turn, rows_batch
from hope_server.training.dialogue_facts import Fact, Language, load_language
from hope_server.training.dialogue_story import (
    Manner,
    Story,
    asking,
    draw_manner,
    draw_plain_manner,
    reading,
    reading_aloud,
    small_talk,
    telling,
)

__all__ = ["DialogueTask", "EvaluationDialogue", "Question", "dialogue_texts", "split_passages"]

_PASSAGE_WORDS = 60
_HELD_OUT_PASSAGES = 20
_LONGEST_SEED = 2**62
_SHORT_FILLER = 40
_PAGE_WORDS = 80
_TOKENS_A_WORD = 2
_FAR_LENGTH = 250
_MOST_FAR_FACTS = 8
_TOKENS_A_FAR_FACT = 120


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a fact with its right reply; `value` is the part of the reply that matters."""

    fact: Fact
    text: str
    reply: str
    value: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class EvaluationDialogue:
    """Facts, then other talk, then a question for each fact.

    telling, filler: turns in order. distance: tokens of the filler.
    """

    telling: tuple[Turn, ...]
    filler: tuple[Turn, ...]
    questions: tuple[Question, ...]
    distance: int


class DialogueTask:
    """Draws rows of one dialogue each, which goes on until the row is full."""

    def __init__(
        self,
        tokenizer_json: str,
        passages: Sequence[str],
        weights: TokenWeights | None = None,
        probe_distances: tuple[int, ...] = (64, 256),
        probe_facts: int = 4,
        kinds: tuple[str, ...] = (),
        *,
        is_plain: bool = False,
        far_share: float = 0.0,
    ) -> None:
        """Make the task. Raises SettingsError for an unknown kind of fact and for a share outside 0..1.

        passages: texts to read aloud, in their order; every twentieth is kept for evaluation. Empty: none is read.
        probe_distances, probe_facts: tokens of other talk, and facts, of the dialogues that `probes` makes.
        kinds: of facts in training, all if empty. is_plain: rows of nothing but facts told in the words of the answer,
        about a few people, and questions: what recall is learned from first. far_share: of the rows of 250 tokens
        and more, those in which everything is told first and asked for at the end, with other things between.
        """
        self.codec = ChatCodec(tokenizer_json)
        self.weights = weights or TokenWeights()
        self._probe_distances, self._probe_facts = probe_distances, probe_facts
        self._language = load_language()
        if unknown := sorted(set(kinds) - set(self._language.kinds)):
            known = ", ".join(self._language.kinds)
            raise SettingsError(f"dialogues: there is no kind of fact {unknown[0]!r}; known are {known}")
        if not 0 <= far_share <= 1:
            raise SettingsError(f"dialogues: far_share is {far_share}; it must lie in 0..1")
        self._kinds, self._draw_manner = kinds, draw_plain_manner if is_plain else draw_manner
        self._far_share = far_share
        self._passages = [text for index, text in enumerate(passages) if index % _HELD_OUT_PASSAGES]
        self._held_out_passages = list(passages[::_HELD_OUT_PASSAGES])

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the tokenizer."""
        return self.codec.vocab_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw dialogues of the trained share; targets are the next tokens. tokens, targets, weights: [B, T]."""
        rows = [self._row(length + 1, _private(generator)) for _ in range(num_rows)]
        return rows_batch(rows, length, self.codec.padding)

    def evaluation_dialogue(
        self, num_facts: int, distance: int, generator: torch.Generator, *, is_reworded: bool = False
    ) -> EvaluationDialogue:
        """Return a dialogue of held-out facts with about `distance` tokens between the last of them and the questions.

        num_facts: all about different things. distance: the filler is the shortest sequence of turns that reaches it,
        and its last turn is a short one. is_reworded: tell and ask in held-out phrasings.
        """
        draw = _private(generator)
        facts = self._held_out_facts(num_facts, draw)
        told = [turn for fact in facts for turn in telling(self._language, [fact], draw, is_held_out=is_reworded)]
        filler: list[Turn] = []
        num_filler = 0
        while num_filler < distance:
            turns = self._filler(distance - num_filler, draw)
            filler += turns
            num_filler += sum(len(self._encode(turn)[0]) for turn in turns)
        asked = draw.sample(facts, len(facts))
        questions = tuple(self._question(fact, draw, is_reworded) for fact in asked)
        return EvaluationDialogue(tuple(told), tuple(filler), questions, num_filler)

    def evaluation_batch(
        self, num_rows: int, num_facts: int, distance: int, generator: torch.Generator, *, is_reworded: bool = False
    ) -> Batch:
        """Return evaluation dialogues with the right replies in place; only the tokens of the values are scored."""
        rows: list[Encoded] = []
        for _ in range(num_rows):
            dialogue = self.evaluation_dialogue(num_facts, distance, generator, is_reworded=is_reworded)
            asked = [turn for question in dialogue.questions for turn in question.turns]
            rows.append(self._encode_all([*dialogue.telling, *dialogue.filler, *asked], ANSWERS_ONLY))
        return rows_batch(rows, max(len(ids) for ids, _ in rows) - 1, self.codec.padding)

    def probes(self, num_rows: int, generator: torch.Generator) -> dict[str, Batch]:
        """Return evaluation dialogues at every probe distance, and at the shortest in held-out phrasings too."""
        found = {
            f"recall at {distance}": self.evaluation_batch(num_rows, self._probe_facts, distance, generator)
            for distance in self._probe_distances
        }
        for distance in self._probe_distances[:1]:
            batch = self.evaluation_batch(num_rows, self._probe_facts, distance, generator, is_reworded=True)
            found[f"recall at {distance}, reworded"] = batch
        return found

    def _row(self, length: int, draw: random.Random) -> Encoded:
        manner = self._draw_manner(self._language, draw, self._kinds)
        if length > _FAR_LENGTH and draw.random() < self._far_share:
            return self._far_row(length, manner, draw)
        story = Story(self._language, manner, self._passages, draw)
        ids, weights = self._encode_all(story.opening(), self.weights)
        while len(ids) < length:
            more = self._encode_all(story.next_exchange(len(ids)), self.weights)
            ids += more[0]
            weights += more[1]
        return ids, weights

    def _far_row(self, length: int, manner: Manner, draw: random.Random) -> Encoded:
        """A row of facts, other talk and reading, and a question for each fact; at most `length` tokens."""
        facts: dict[tuple[str, ...], Fact] = {}
        for _ in range(draw.randint(2, max(2, min(_MOST_FAR_FACTS, length // _TOKENS_A_FAR_FACT)))):
            kind = self._language.kinds[draw.choice(manner.kinds)]
            fact = self._language.draw_fact(kind, draw, names=list(manner.names))
            facts.setdefault(fact.key, fact)
        told = [telling(self._language, [fact], draw, is_plain=manner.is_plain) for fact in facts.values()]
        asked = [asking(self._language, fact, draw) for fact in draw.sample(list(facts.values()), len(facts))]
        ids, weights = self._encode_all([turn for turns in told for turn in turns], self.weights)
        ending = self._encode_all([turn for turns in asked for turn in turns], self.weights)
        while True:
            more = self._encode_all(self._trained_filler(manner, draw), self.weights)
            if len(ids) + len(more[0]) + len(ending[0]) > length:
                return ids + ending[0], weights + ending[1]
            ids += more[0]
            weights += more[1]

    def _trained_filler(self, manner: Manner, draw: random.Random) -> tuple[Turn, ...]:
        if self._passages and draw.random() < 0.5:
            return reading_aloud(self._language, self._passages, manner, draw)
        return small_talk(self._language, draw)

    def _encode(self, turn: Turn) -> Encoded:
        return self.codec.encode_turn(turn, self.weights)

    def _encode_all(self, turns: Sequence[Turn], weights: TokenWeights) -> Encoded:
        encoded = [self.codec.encode_turn(turn, weights) for turn in turns]
        return [token for ids, _ in encoded for token in ids], [each for _, counts in encoded for each in counts]

    def _held_out_facts(self, num_facts: int, draw: random.Random) -> list[Fact]:
        kinds = [kind for kind in self._language.kinds.values() if kind.keys]
        facts: dict[tuple[str, ...], Fact] = {}
        while len(facts) < num_facts:
            fact = self._language.draw_fact(draw.choice(kinds), draw, is_held_out=True)
            facts.setdefault(fact.key, fact)
        return list(facts.values())

    def _filler(self, num_tokens: int, draw: random.Random) -> tuple[Turn, ...]:
        if num_tokens < _SHORT_FILLER or not self._held_out_passages or draw.random() < 0.3:
            return small_talk(self._language, draw)
        words = min(_PAGE_WORDS, num_tokens // _TOKENS_A_WORD)
        return reading(self._language, self._held_out_passages, words, draw)

    def _question(self, fact: Fact, draw: random.Random, is_reworded: bool) -> Question:
        turns = asking(self._language, fact, draw, is_held_out=is_reworded)
        return Question(fact, turns[0].text, turns[1].text, fact.value, turns)


def split_passages(text: str) -> list[str]:
    """Return a book as passages of whole sentences, about 60 words each, white space made even."""
    passages: list[str] = []
    words: list[str] = []
    for sentence in re.split(r"(?<=[.!?;])\s+", " ".join(text.split())):
        words += sentence.split()
        if len(words) >= _PASSAGE_WORDS:
            passages.append(" ".join(words))
            words = []
    return [*passages, " ".join(words)] if words else passages


def dialogue_texts(passages: Sequence[str], num_dialogues: int) -> Iterator[str]:
    """Yield the messages of dialogues, 100 exchanges each, and every passage once, to train a tokenizer on."""
    language: Language = load_language()
    for number in range(num_dialogues):
        draw = random.Random(number)
        story = Story(language, draw_manner(language, draw), (), draw)
        for _ in range(100):
            yield from (turn.text for turn in story.next_exchange(0))
    yield from passages


def _private(generator: torch.Generator) -> random.Random:
    # Thousands of small draws: Python's own generator is a hundred times faster at them.
    return random.Random(int(torch.randint(_LONGEST_SEED, (), generator=generator)))
