"""What a whitened level studies: every sentence as it is, behind some of its words, and as a card.

A card asks with the first words of a sentence, in any order and frame, and answers with the rest behind a common start,
so that what is known does not depend on how it was told or is asked for. What a new sentence puts out of date is
rehearsed seldom or no more, and asked for in its old words with the new answer. Pure Python but for the tokenizer; one
seed gives one plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hope_server.engine.rehearsal import Frame, Piece, Tokens
from hope_server.engine.sentences import WORD, Sentence, sentences
from hope_server.engine.superseded import find_revisions, restated

ASKS = (
    "{cue}?",
    "What about {cue}?",
    "Tell me about {cue}.",
    "I want to know about {cue}.",
    "Remind me, {cue}?",
    "{cue}, please.",
    "Something on {cue}?",
    "My question is about {cue}. Can you help me?",
    "A friend of mine asked me: {cue}? I did not know what to say.",
    "We talked about this before: {cue}. How was that again?",
    "I am writing something down here, it is about {cue}. What do I put?",
    "{cue}. What belongs here?",
    "Suppose somebody needs to know: {cue}?",
    "It has to do with {cue}. Which one is it?",
)
LEADS = (
    "It is",
    "That is",
    "The answer is",
    "I believe it is",
    "You mean",
    "As far as I know it is",
    "Surely",
    "It must be",
    "That would be",
    "I remember:",
    "Say",
    "Write",
    "Then it is the",
    "Of course, the",
    "You should think of",
    "Try",
)
# fmt: off
COMMON_WORDS = frozenset({
    "the", "a", "an", "of", "is", "in", "has", "have", "been", "as", "by", "to", "and", "that", "it", "this",
    "on", "at", "for", "with", "was", "were", "are", "be", "any", "because",
})
# fmt: on
"""Words that a question may leave out, and that no answer begins with."""


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt, and the reply to it that is to be learned.

    sees_system: the prompt stands behind the chat's system message, which the cards of a step share. skips_first: the
    reply's first token is not predicted: nothing tells it.
    """

    prompt: Tokens
    reply: Tokens
    sees_system: bool = False
    skips_first: bool = False

    @property
    def num_tokens(self) -> int:
        """Its own tokens."""
        return len(self.prompt) + len(self.reply)


CardStep = tuple[Card, ...]
"""What one step reads: cards that do not see each other."""


@dataclass(frozen=True, slots=True)
class CardSettings:
    """How often in a step: cards, cued, plain say how many of each kind a sentence is put on, on average.

    past: cards of the session's earlier text, as a share of the new ones; min_past: but at least so many.
    group: tokens of a step, about.
    system: share of prompts that stand behind the system message.
    """

    cards: float = 1.0
    cued: float = 0.5
    plain: float = 0.25
    past: float = 0.8
    min_past: int = 4
    group: int = 1200
    system: float = 0.5


@dataclass(frozen=True, slots=True)
class _Words:
    """A sentence in words; a character is one in scripts without spaces. spaced: whether a space stands before each."""

    words: tuple[str, ...]
    spaced: tuple[bool, ...]

    @classmethod
    def of(cls, text: str) -> _Words:
        found = list(WORD.finditer(text))
        spaced = (text[max(0, match.start() - 1) : match.start()].isspace() for match in found)
        return cls(tuple(match.group() for match in found), tuple(spaced))

    def __len__(self) -> int:
        return len(self.words)

    def is_telling(self, place: int) -> bool:
        return self.words[place].lower() not in COMMON_WORDS

    def join(self, places: Sequence[int]) -> str:
        """The words of these places as they stand in the sentence, those of scripts with spaces parted."""
        out = ""
        for place in places:
            is_parted = self.spaced[place] or WORD.fullmatch(out[-1:] + self.words[place]) is not None
            out += f" {self.words[place]}" if out and is_parted else self.words[place]
        return out


class CardMaker:
    """Puts sentences on cards; `encode` and `decode` are the tokenizer's."""

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        frame: Frame,
        settings: CardSettings | None = None,
    ) -> None:
        self.encode, self._decode = encode, decode
        self.frame = frame
        self.settings = settings or CardSettings()

    @property
    def system(self) -> Tokens:
        """What the cards that see the system message stand behind: it, and the opening of the user's turn."""
        return self.frame.questions[0]

    def plan(self, new: Sequence[Piece], old: Sequence[Piece], seed: int) -> list[CardStep]:
        """Return the steps of a consolidation: every new sentence in `passes` steps, beside some of the past in each.

        What tells nothing teaches nothing (`sentences`). The past is drawn by its own passes, what later sentences have
        put out of date seldom or never.
        """
        rng = random.Random(seed)
        fresh, earlier = sentences(new, self._decode), sentences(old, self._decode)
        shares, now = self._revise(earlier, fresh)
        past = [(text, share * piece.passes) for (text, piece), share in zip(earlier, shares, strict=True) if share]
        steps: list[CardStep] = []
        for number in range(max((piece.passes for _, piece in fresh), default=0)):
            texts = [text for text, piece in fresh if piece.passes > number]
            rng.shuffle(texts)
            made: list[Card] = []
            for text in texts:
                made += self._cards(text, rng)
                made += [self._card(each, rng.choice((0, 1)), rng) for each in now.get(text, ())]
                if sum(card.num_tokens for card in made) >= self.settings.group:
                    steps.append(self._with_past(made, past, rng))
                    made = []
            if made:
                steps.append(self._with_past(made, past, rng))
        return steps

    @staticmethod
    def _revise(earlier: list[Sentence], fresh: list[Sentence]) -> tuple[list[float], dict[str, list[str]]]:
        """How often each earlier sentence is still rehearsed, of 1; what some say now, by the new one that says so."""
        told = [*earlier, *fresh]
        shares = [1.0] * len(told)
        now: dict[str, list[str]] = {}
        for each in find_revisions([(text, piece.paragraph) for text, piece in told], COMMON_WORDS):
            shares[each.earlier] = min(shares[each.earlier], each.share)
            old, new = told[each.earlier][0], told[each.later][0]
            if each.later >= len(earlier) and each.is_changed and (text := restated(old, new, COMMON_WORDS)):
                now.setdefault(new, []).append(text)
        return shares[: len(earlier)], now

    def _with_past(self, made: list[Card], past: list[tuple[str, float]], rng: random.Random) -> CardStep:
        if past:
            count = max(self.settings.min_past, round(self.settings.past * len(made)))
            drawn = dict.fromkeys(rng.choices([text for text, _ in past], [passes for _, passes in past], k=count))
            kinds = (self.settings.cards, self.settings.cued, self.settings.plain)
            made += [self._card(text, rng.choices((0, 1, 2), kinds)[0], rng) for text in drawn]
        rng.shuffle(made)
        return tuple(made)

    def _cards(self, text: str, rng: random.Random) -> list[Card]:
        kinds = (self.settings.cards, self.settings.cued, self.settings.plain)
        return [
            self._card(text, kind, rng)
            for kind, often in enumerate(kinds)
            for _ in range(int(often) + (rng.random() < often % 1))
        ]

    def _card(self, text: str, kind: int, rng: random.Random) -> Card:
        words = _Words.of(text)
        if kind == 2:
            return Card(self.frame.opening, (*self.encode(text), *self.frame.ending), skips_first=True)
        if kind == 1:
            first = rng.randrange(max(1, len(words) // 2))
            last = min(len(words) * 3 // 5 + 1, first + rng.randint(1, 4))
            question = words.join(range(first, last)) + ("?" if rng.random() < 0.5 else "")
            prompt, sees_system = self.ask(question, rng)
            return Card(prompt, (*self.encode(text), *self.frame.ending), sees_system)
        start = self._answer_start(words, rng)
        cue = [place for place in range(start) if words.is_telling(place) or rng.random() < 0.3]
        cue = cue or list(range(start))
        if rng.random() < 0.5:
            rng.shuffle(cue)
        prompt, sees_system = self.ask(rng.choice(ASKS).replace("{cue}", words.join(cue)), rng)
        prompt += tuple(self.encode(rng.choice(LEADS)))
        answer = words.join(range(start, len(words)))
        return Card(prompt, (*self.encode(f" {answer}"), *self.frame.ending), sees_system)

    @staticmethod
    def _answer_start(words: _Words, rng: random.Random) -> int:
        """Where an answer begins: at any telling word behind the first third of a sentence."""
        places = range(max(1, len(words) // 3), len(words))
        return rng.choice([place for place in places if words.is_telling(place)] or [len(words) - 1])

    def ask(self, question: str, rng: random.Random) -> tuple[Tokens, bool]:
        """The prompt of a question, and whether it stands behind the system message."""
        sees_system = rng.random() < self.settings.system
        opening = () if sees_system else self.frame.questions[-1]
        return (*opening, *self.encode(question), *self.frame.reply), sees_system
