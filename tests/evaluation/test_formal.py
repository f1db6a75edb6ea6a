"""The formal languages against plain definitions of their words."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from hope_server.evaluation.formal import LANGUAGES, FormalTask


def _is_balanced(word: str, pair: str) -> bool:
    depth = 0
    for letter in word:
        depth += (letter == pair[0]) - (letter == pair[1])
        if depth < 0:
            return False
    return depth == 0


def _runs(word: str, letters: str) -> bool:
    size = len(word) // len(letters)
    return bool(word) and word == "".join(letter * size for letter in letters)


# For each language: whether a word belongs to it, the longest words to list, the longest prefixes that those decide.
DEFINITIONS: dict[str, tuple[Callable[[str], bool], int, int]] = {
    "parity": (lambda word: word.count("1") % 2 == 0, 8, 6),
    "(aa)*": (lambda word: len(word) % 2 == 0, 8, 6),
    "(abab)*": (lambda word: word == "abab" * (len(word) // 4), 8, 4),
    "a^n b^n": (lambda word: _runs(word, "ab"), 8, 3),
    "a^n b^n c^n": (lambda word: _runs(word, "abc"), 9, 2),
    "shuffle-2": (lambda word: _is_balanced(word, "()") and _is_balanced(word, "[]"), 8, 3),
}


def _words(name: str) -> set[str]:
    belongs, longest, _ = DEFINITIONS[name]
    alphabet = LANGUAGES[name].alphabet
    return {
        word
        for size in range(longest + 1)
        for letters in product(alphabet, repeat=size)
        if belongs(word := "".join(letters))
    }


def test_there_are_the_six_languages():
    """The languages are those of the paper's table."""
    assert LANGUAGES.keys() == DEFINITIONS.keys()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_sets_agree_with_all_words_written_out(name):
    """After every short prefix, exactly those characters may follow that some word goes on with."""
    language, words, longest = LANGUAGES[name], _words(name), DEFINITIONS[name][2]
    prefixes = {word[:size] for word in words for size in range(longest + 1) if size <= len(word)}
    assert len(prefixes) > 3
    for prefix in prefixes:
        state = language.start
        for letter in prefix:
            state = language.step(state, language.alphabet.index(letter))
        follows = {word[len(prefix)] for word in words if word.startswith(prefix) and len(word) > len(prefix)}
        expected = {language.alphabet.index(letter) for letter in follows}
        assert set(language.follow(state)) == expected | ({language.end} if prefix in words else set())


@pytest.mark.parametrize("name", DEFINITIONS)
def test_drawn_words_belong_to_the_language(name):
    """Every drawn word is one, at lengths far beyond those that can be written out, and all its sets are given."""
    belongs, language = DEFINITIONS[name][0], LANGUAGES[name]
    batch = FormalTask(name, 51).sample(16, 100, torch.Generator().manual_seed(1))
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        size = int(weights.sum())
        assert 51 <= size <= 100
        assert bool((weights[:size] == 1).all())
        word = "".join(language.alphabet[token] for token in tokens[:size].tolist())
        assert belongs(word)
        followed = targets[torch.arange(size - 1), tokens[1:size]]
        assert bool((followed == 1).all()), "each next character is in the set before it"
        assert targets[size - 1, language.end] == 1


@pytest.mark.parametrize("name", DEFINITIONS)
def test_all_possible_lengths_are_drawn(name):
    """Lengths are spread over all that the language has."""
    language = LANGUAGES[name]
    batch = FormalTask(name).sample(600, 12, torch.Generator().manual_seed(2))
    possible = {size for size in range(1, 13) if language.has_word(size)}
    assert set(batch.weights.sum(1).int().tolist()) == possible


def test_shuffle_uses_both_kinds_and_depths():
    """Words of shuffle-2 interleave both brackets, and some are deep."""
    batch = FormalTask("shuffle-2", 40).sample(50, 40, torch.Generator().manual_seed(3))
    opened = (batch.tokens % 2 == 0).int() * 2 - 1
    depth = opened.cumsum(1).max(1).values
    assert int(depth.min()) < 6 < int(depth.max())
    assert bool(((batch.tokens < 2).any(1) & (batch.tokens >= 2).any(1)).all())


def test_the_same_seed_draws_the_same_words():
    """Everything comes from the generator."""
    first, second = (FormalTask("parity").sample(8, 20, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.targets, second.targets)


def test_a_length_without_words_is_refused():
    """No word of a^n b^n c^n has 1 or 2 characters, and the message says so."""
    with pytest.raises(ValueError, match="has no word of 1 to 2 characters"):
        FormalTask("a^n b^n c^n").sample(1, 2, torch.Generator())


def test_smoothed_targets_are_the_same_sets_less_surely():
    """0 becomes the smoothing, 1 what is left; which words are drawn and what is scored stays."""
    plain, smooth = (
        FormalTask("a^n b^n", smoothing=each).sample(4, 10, torch.Generator().manual_seed(6)) for each in (0.0, 0.1)
    )
    assert torch.equal(plain.tokens, smooth.tokens)
    assert torch.equal(plain.weights, smooth.weights)
    assert torch.allclose(smooth.targets, 0.1 + 0.8 * plain.targets)
    assert set(plain.targets.unique().tolist()) == {0.0, 1.0}
