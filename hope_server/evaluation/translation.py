"""Translation into invented languages, learned one after the other from examples in the row itself.

Every row invents two lexicons and two grammars: they cannot have been seen before. A second language that is taught
after the first shows what is forgotten.
Shapes: B rows, T tokens.
Source: the continual translation task (CTNL) of NL §9, which uses two real languages; ours are invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch

from hope_server.evaluation.drawing import choose, coin, distinct, number
from hope_server.training.batch import Batch

__all__ = ["CASES", "Grammar", "TranslationTask"]

CASES = {
    "alone": "the only language taught",
    "first of two": "the language taught first, asked after both",
    "second of two": "the language taught second, asked after both",
}
NOUNS, VERBS, ADJECTIVES = range(8), range(8, 12), range(12, 16)
_NUM_SOURCE, _NUM_FOREIGN = 16, 48
_SOURCE_SIZE, _FOREIGN_SIZE = 5, 6
SLOT = _SOURCE_SIZE + 1 + _FOREIGN_SIZE
"""Tokens of a sentence with its marker and its translation, each filled up to its full size."""

_PARTS = ("subject", "verb", "object")


@dataclass(frozen=True, slots=True)
class Grammar:
    """An invented language: a word for each source word, an order of the parts, and two more rules.

    words: foreign token of each source token. order: the parts in the order they are said. adjective_first: whether an
    adjective comes before its noun. particle: foreign token behind every object, or None.
    """

    words: tuple[int, ...]
    order: tuple[str, ...]
    adjective_first: bool
    particle: int | None

    def translate(self, sentence: list[int]) -> list[tuple[int, int | None]]:
        """Return the foreign tokens, each with the source token it stands for (None for the particle).

        sentence: subject, verb and object, each noun with at most one adjective before it.
        """
        verb = next(place for place, token in enumerate(sentence) if token in VERBS)
        phrases = {"subject": sentence[:verb], "verb": [sentence[verb]], "object": sentence[verb + 1 :]}
        out: list[tuple[int, int | None]] = []
        for part in self.order:
            phrase = phrases[part] if self.adjective_first else phrases[part][::-1]
            out += [(self.words[token], token) for token in phrase]
            if part == "object" and self.particle is not None:
                out.append((self.particle, None))
        return out


@dataclass(frozen=True, slots=True)
class TranslationTask:
    """Lessons of `num_taught` sentence pairs a language, then `num_asked` sentences to translate.

    case: a key of CASES, or `mixed`, which draws one for each row. A row that teaches one language is filled up in
    front. Only foreign words whose source word was taught in the asked language are scored; the right words are told.
    """

    case: str = "mixed"
    num_taught: int = 12
    num_asked: int = 3

    @property
    def vocab_size(self) -> int:
        """Source words, foreign words, a marker for each language and the filler."""
        return _NUM_SOURCE + _NUM_FOREIGN + 3

    @property
    def length(self) -> int:
        """Tokens of a row: its layout is always the same."""
        return SLOT * (2 * self.num_taught + self.num_asked)

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows; each foreign word is the target of the token before it. Raises ValueError for another length."""
        if length != self.length:
            raise ValueError(
                f"{self.num_taught} pairs a language, {self.num_asked} questions: {self.length} tokens, not {length}"
            )
        rows = [self._row(generator) for _ in range(num_rows)]
        tokens = torch.tensor([row for row, _ in rows])
        weights = torch.tensor([scored for _, scored in rows])
        return Batch(tokens, torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1), weights)

    def _row(self, generator: torch.Generator) -> tuple[list[int], list[float]]:
        case = choose(list(CASES), generator) if self.case == "mixed" else self.case
        grammars = [draw_grammar(generator) for _ in range(1 if case == "alone" else 2)]
        asked = 1 if case == "second of two" else 0
        # A marker says which language is meant; which marker the asked one has must not tell when it was taught.
        markers = distinct(range(2), 2, generator)
        row: list[int] = [self.vocab_size - 1] * (SLOT * self.num_taught * (2 - len(grammars)))
        taught: list[set[int]] = []
        for language, grammar in enumerate(grammars):
            lesson = [draw_sentence(generator) for _ in range(self.num_taught)]
            taught.append({token for sentence in lesson for token in sentence})
            for sentence in lesson:
                row += self._slot(sentence, grammar, markers[language])
        scored = [0.0] * self.length
        for _ in range(self.num_asked):
            sentence = draw_sentence(generator)
            first = len(row) + _SOURCE_SIZE
            for place, (_, source) in enumerate(grammars[asked].translate(sentence)):
                scored[first + place] = float(source is None or source in taught[asked])
            row += self._slot(sentence, grammars[asked], markers[asked])
        return row, scored

    def _slot(self, sentence: list[int], grammar: Grammar, marker: int) -> list[int]:
        filler = self.vocab_size - 1
        foreign = [_NUM_SOURCE + token for token, _ in grammar.translate(sentence)]
        source = [filler] * (_SOURCE_SIZE - len(sentence)) + sentence
        return [*source, _NUM_SOURCE + _NUM_FOREIGN + marker, *foreign, *[filler] * (_FOREIGN_SIZE - len(foreign))]


def draw_grammar(generator: torch.Generator) -> Grammar:
    """Invent a language."""
    words = distinct(range(_NUM_FOREIGN), _NUM_SOURCE + 1, generator)
    order = choose(list(permutations(_PARTS)), generator)
    return Grammar(tuple(words[:-1]), order, coin(generator), words[-1] if coin(generator) else None)


def draw_sentence(generator: torch.Generator) -> list[int]:
    """Draw subject, verb and object as source tokens; half of the nouns have an adjective before them."""

    def phrase() -> list[int]:
        noun = NOUNS[number(len(NOUNS), generator)]
        return [choose(ADJECTIVES, generator), noun] if coin(generator) else [noun]

    return [*phrase(), choose(VERBS, generator), *phrase()]
