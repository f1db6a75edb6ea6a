"""Associative recall: many key-value pairs asked once each, needles far back in a haystack, and selective copying.

Shapes: B rows, T tokens, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.evaluation.drawing import orders, scatter
from hope_server.training.batch import Batch

__all__ = ["NeedleTask", "PairsTask", "SelectiveCopyTask"]

_TOKENS_A_PAIR = 8


@dataclass(frozen=True, slots=True)
class PairsTask:
    """Multi-query associative recall (MQAR): pairs first, then every key once more, at gaps of a power law.

    num_pairs: pairs of a row, with different keys and different values; None is one to eight tokens.
    num_tokens: vocabulary; keys are drawn from 1 .. num_tokens/2-1 and values from the rest.
    power: exponent of the gaps; 1 makes them uniform, small ones keep the questions near.

    The places in between hold random tokens. Source: Zoology (arXiv 2312.04927) §3.
    """

    num_pairs: int | None = 8
    num_tokens: int = 128
    power: float = 0.01

    @property
    def vocab_size(self) -> int:
        """Keys, values and a blank."""
        return self.num_tokens

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows; the value is the target at its key's second place, which alone is scored.

        Raises ValueError when the length is odd or too short, or the vocabulary too small, for the pairs.
        """
        half = self.num_tokens // 2
        pairs = length // _TOKENS_A_PAIR if self.num_pairs is None else self.num_pairs
        if length % 2 or length < 4 * pairs:
            raise ValueError(f"{pairs} pairs need an even length of at least {4 * pairs} tokens, not {length}")
        if half - 1 < pairs:
            raise ValueError(f"{pairs} pairs need at least {2 * pairs + 2} tokens, not {self.num_tokens}")
        keys = 1 + orders(num_rows, half - 1, generator)[:, :pairs]
        values = half + orders(num_rows, self.num_tokens - half, generator)[:, :pairs]
        space = length // 2 - pairs
        chances = self.power * torch.arange(1, space + 1, dtype=torch.float64) ** (self.power - 1)
        gaps = torch.multinomial(chances.expand(num_rows, space), pairs, replacement=False, generator=generator)
        places = 2 * pairs + 2 * gaps
        tokens = torch.randint(self.num_tokens, (num_rows, length), generator=generator)
        tokens[:, 0 : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        tokens.scatter_(1, places, keys)
        return _scored(tokens, places, values)


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """Needles in a haystack: a few pairs among noise, all asked at the end behind a marker, in random order.

    num_needles: pairs of a row. num_keys, num_values, num_noise: tokens of each kind. distance: noise tokens between
    the last needle and the first question, the needles side by side; None scatters the needles over the row.
    Source: the passkey and number tasks of RULER (arXiv 2404.06654), as tokens.
    """

    num_needles: int = 4
    num_keys: int = 32
    num_values: int = 32
    num_noise: int = 64
    distance: int | None = None

    @property
    def vocab_size(self) -> int:
        """Keys, values, noise and the marker of a question."""
        return self.num_keys + self.num_values + self.num_noise + 1

    @property
    def shortest(self) -> int:
        """Tokens that a row needs at least."""
        return 4 * self.num_needles + (self.distance or 0)

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows; the value is the target at the asked key. Raises ValueError when the row is too short."""
        needles, hay = self.num_needles, length - 2 * self.num_needles
        if length < self.shortest:
            raise ValueError(
                f"{needles} needles at distance {self.distance or 0} need at least {self.shortest} tokens, not {length}"
            )
        first_noise = self.num_keys + self.num_values
        tokens = first_noise + torch.randint(self.num_noise, (num_rows, length), generator=generator)
        keys = orders(num_rows, self.num_keys, generator)[:, :needles]
        values = self.num_keys + torch.randint(self.num_values, (num_rows, needles), generator=generator)
        if self.distance is None:
            # Places among the rest, each then moved on by the needles before it, never overlap.
            starts = scatter(num_rows, needles, hay - needles, generator) + torch.arange(needles)
        else:
            first = hay - self.distance - 2 * needles
            starts = (first + 2 * torch.arange(needles)).expand(num_rows, needles)
        tokens.scatter_(1, starts, keys)
        tokens.scatter_(1, starts + 1, values)
        asked = orders(num_rows, needles, generator)
        tokens[:, hay::2] = self.vocab_size - 1
        tokens[:, hay + 1 :: 2] = keys.gather(1, asked)
        places = (hay + 1 + 2 * torch.arange(needles)).expand(num_rows, needles)
        return _scored(tokens, places, values.gather(1, asked))


@dataclass(frozen=True, slots=True)
class SelectiveCopyTask:
    """Selective copying: a few tokens among blanks, to be said in order behind a marker.

    num_copied: tokens to copy. num_tokens: vocabulary, whose last two are the blank and the marker.
    Source: MAD (arXiv 2403.17844) §3.
    """

    num_copied: int = 16
    num_tokens: int = 18

    @property
    def vocab_size(self) -> int:
        """Tokens to copy, the blank and the marker."""
        return self.num_tokens

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows; behind the marker each blank's target is the next copied token.

        Raises ValueError when the row is too short.
        """
        copied, hay = self.num_copied, length - self.num_copied - 1
        if hay < copied:
            raise ValueError(f"copying {copied} tokens needs at least {2 * copied + 1} tokens, not {length}")
        words = torch.randint(self.num_tokens - 2, (num_rows, copied), generator=generator)
        tokens = torch.full((num_rows, length), self.num_tokens - 2)
        tokens.scatter_(1, scatter(num_rows, copied, hay, generator), words)
        tokens[:, hay] = self.num_tokens - 1
        places = (hay + 1 + torch.arange(copied)).expand(num_rows, copied)
        return _scored(tokens, places, words)


def _scored(tokens: torch.Tensor, places: torch.Tensor, answers: torch.Tensor) -> Batch:
    """Rows [B, T] that are scored at `places` [B, N] alone, where `answers` [B, N] should follow."""
    targets = torch.zeros_like(tokens).scatter_(1, places, answers)
    weights = torch.zeros(tokens.shape).scatter_(1, places, 1.0)
    return Batch(tokens, targets, weights)
