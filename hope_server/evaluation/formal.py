"""Six formal languages as character prediction: after every character, what may follow, and may the word end?

A word counts as right only when the set is right at each of its positions.
Shapes: B rows, T characters, V characters of the alphabet and the end of the word.
Source: Bhattamishra 2020 (arXiv 2009.11264), the task behind NL Table 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hope_server.evaluation.drawing import coin, number
from hope_server.training.batch import Batch

__all__ = ["LANGUAGES", "FormalTask", "Language"]

State = tuple[int, ...]


class Language(ABC):
    """A language as a machine: where it stands after a prefix, and what may follow there.

    alphabet: one letter per character; the token of a character is its place, and the end of the word comes last.
    """

    name: str
    alphabet: str
    start: State

    @property
    def end(self) -> int:
        """The token that stands for the end of the word in a set."""
        return len(self.alphabet)

    @abstractmethod
    def follow(self, state: State) -> tuple[int, ...]:
        """Return the tokens that may follow in `state`, the end of the word among them where it may end."""

    @abstractmethod
    def step(self, state: State, token: int) -> State:
        """Return the state after one more character that `follow` allows."""

    @abstractmethod
    def has_word(self, length: int) -> bool:
        """Return whether a word of `length` characters exists."""

    @abstractmethod
    def draw(self, length: int, generator: torch.Generator) -> list[int]:
        """Draw a word of `length` characters, for which `has_word` must hold."""


class Parity(Language):
    """Words of 0 and 1 with an even number of 1s, uniform among those of a length."""

    name, alphabet, start = "parity", "01", (0,)

    def follow(self, state: State) -> tuple[int, ...]:
        """Both characters always; the end after an even number of 1s."""
        return (0, 1, 2) if state == (0,) else (0, 1)

    def step(self, state: State, token: int) -> State:
        """Count the 1s, modulo 2."""
        return ((state[0] + token) % 2,)

    def has_word(self, length: int) -> bool:
        """Any length has such words."""
        return length >= 1

    def draw(self, length: int, generator: torch.Generator) -> list[int]:
        """Draw all characters but the last, which makes the number even."""
        word: list[int] = torch.randint(2, (length - 1,), generator=generator).tolist()
        return [*word, sum(word) % 2]


class Cycle(Language):
    """Words that repeat one block: (aa)* and (abab)*."""

    start: State = (0,)

    def __init__(self, name: str, alphabet: str, block: Sequence[int]) -> None:
        self.name, self.alphabet, self._block = name, alphabet, tuple(block)

    def follow(self, state: State) -> tuple[int, ...]:
        """The block's next character; the end where a block begins."""
        token = self._block[state[0]]
        return (token, self.end) if state == (0,) else (token,)

    def step(self, state: State, token: int) -> State:
        """Move on in the block."""
        return ((state[0] + 1) % len(self._block),)

    def has_word(self, length: int) -> bool:
        """Only whole blocks are words."""
        return length >= 1 and length % len(self._block) == 0

    def draw(self, length: int, generator: torch.Generator) -> list[int]:
        """The one word of this length."""
        return list(self._block) * (length // len(self._block))


class Counter(Language):
    """Words of equally long runs of the letters in order: a^n b^n and a^n b^n c^n, n at least 1.

    A state holds the length of each run.
    """

    def __init__(self, name: str, alphabet: str) -> None:
        self.name, self.alphabet, self.start = name, alphabet, (0,) * len(alphabet)

    def follow(self, state: State) -> tuple[int, ...]:
        """More of the first letter or a first second one; then what the counts ask for."""
        if state[0] == 0:
            return (0,)
        if state[1] == 0:
            return (0, 1)
        short = [token for token, count in enumerate(state) if count < state[0]]
        return (short[0],) if short else (self.end,)

    def step(self, state: State, token: int) -> State:
        """Count the letter."""
        return (*state[:token], state[token] + 1, *state[token + 1 :])

    def has_word(self, length: int) -> bool:
        """Only multiples of the alphabet's size."""
        return length >= 1 and length % len(self.alphabet) == 0

    def draw(self, length: int, generator: torch.Generator) -> list[int]:
        """The one word of this length."""
        return [token for token in range(len(self.alphabet)) for _ in range(length // len(self.alphabet))]


class Shuffle(Language):
    """Words of two kinds of brackets, each balanced, interleaved at will (shuffle-2). A state holds depths."""

    name, alphabet, start = "shuffle-2", "()[]", (0, 0)

    def follow(self, state: State) -> tuple[int, ...]:
        """An opening bracket always; a closing one where one of its kind is open; the end where none is."""
        closing = [2 * kind + 1 for kind in (0, 1) if state[kind]]
        return tuple(sorted([0, 2, *closing])) if closing else (0, 2, self.end)

    def step(self, state: State, token: int) -> State:
        """Open or close one bracket."""
        change = -1 if token % 2 else 1
        return (state[0] + change, state[1]) if token < 2 else (state[0], state[1] + change)

    def has_word(self, length: int) -> bool:
        """Brackets come in pairs."""
        return length >= 2 and length % 2 == 0

    def draw(self, length: int, generator: torch.Generator) -> list[int]:
        """Open or close with equal chances while both can still come out even, each kind with equal chances."""
        word: list[int] = []
        state: State = self.start
        for left in range(length, 0, -1):
            depth = sum(state)
            opens = depth == 0 or (depth < left and coin(generator))
            kinds = [0, 1] if opens else [kind for kind in (0, 1) if state[kind]]
            token = 2 * kinds[number(len(kinds), generator)] + (0 if opens else 1)
            word.append(token)
            state = self.step(state, token)
        return word


LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        Parity(),
        Cycle("(aa)*", "a", (0, 0)),
        Cycle("(abab)*", "ab", (0, 1, 0, 1)),
        Counter("a^n b^n", "ab"),
        Counter("a^n b^n c^n", "abc"),
        Shuffle(),
    )
}


@dataclass(frozen=True, slots=True)
class FormalTask:
    """Words of a language of `shortest` characters up to the asked length; each possible length is equally likely.

    smoothing: what a target is instead of 0, and 1 minus it instead of 1. A logit then has one right size, the same at
    every position: what drifts slowly along a word costs something long before an answer turns.
    """

    language: str
    shortest: int = 1
    smoothing: float = 0.0

    @property
    def vocab_size(self) -> int:
        """The alphabet and the end of the word."""
        return len(LANGUAGES[self.language].alphabet) + 1

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw words of at most `length` characters; shorter rows are filled up with weight 0.

        Targets [B, T, V] hold the set that may follow each character. Raises ValueError when no word is so long.
        """
        language = LANGUAGES[self.language]
        lengths = [each for each in range(self.shortest, length + 1) if language.has_word(each)]
        if not lengths:
            raise ValueError(f"{language.name} has no word of {self.shortest} to {length} characters")
        tokens = torch.zeros(num_rows, length, dtype=torch.long)
        targets = torch.zeros(num_rows, length, self.vocab_size)
        weights = torch.zeros(num_rows, length)
        for row in range(num_rows):
            word = language.draw(lengths[number(len(lengths), generator)], generator)
            tokens[row, : len(word)] = torch.tensor(word)
            weights[row, : len(word)] = 1.0
            state = language.start
            for place, token in enumerate(word):
                state = language.step(state, token)
                targets[row, place, list(language.follow(state))] = 1.0
        return Batch(tokens, targets * (1 - 2 * self.smoothing) + self.smoothing, weights)
