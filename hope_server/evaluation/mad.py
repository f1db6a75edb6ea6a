"""Three synthetic tasks of MAD: compression into one vector, recall of keys of several tokens, and a fixed dictionary.

Shapes: B rows, T tokens, V vocabulary, Z size of the code.
Source: MAD (arXiv 2403.17844) §3 and its published generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from hope_server.evaluation.drawing import choose, distinct, number, orders
from hope_server.training.batch import Batch

__all__ = ["CompressionTask", "FuzzyRecallTask", "MemorisationTask"]

Motif = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompressionTask:
    """Random tokens and a last one whose output must hold them all: a decoder says each token from it and its place.

    The model's output at the last position, V numbers, is the code; so the vocabulary is as large as the code, and only
    its first `num_tokens` are used. The decoder is trained with the model and is the same for every family.

    num_tokens: tokens to compress, the compression token included. code_size: numbers that hold a whole row.
    max_length: longest row that the decoder has places for.
    """

    num_tokens: int = 16
    code_size: int = 64
    max_length: int = 128

    @property
    def vocab_size(self) -> int:
        """As many outputs as the code has numbers."""
        return self.code_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows whose every token but the last is its own target. Raises ValueError for a length without places."""
        if not 2 <= length <= self.max_length:
            raise ValueError(f"rows to compress have 2 to {self.max_length} tokens, not {length}")
        tokens = torch.randint(self.num_tokens - 1, (num_rows, length), generator=generator)
        tokens[:, -1] = self.num_tokens - 1
        weights = torch.ones(num_rows, length)
        weights[:, -1] = 0.0
        return Batch(tokens, tokens.clone(), weights)

    def readout_tensors(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw the decoder: a place embedding [T, Z] and a two-layer network Z to Z to V."""
        generator = torch.Generator().manual_seed(seed)
        size, scale = self.code_size, 1 / math.sqrt(self.code_size)
        return {
            "readout.places": torch.randn(self.max_length, size, generator=generator),
            "readout.first": torch.randn(2 * size, size, generator=generator) * scale,
            "readout.second": torch.randn(self.num_tokens, 2 * size, generator=generator) * scale / math.sqrt(2),
        }

    def read_out(self, logits: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the decoder says of each place, [B, T, num_tokens], from the output at the last position alone.

        logits: the model's [B, T, Z].
        """
        places = tensors["readout.places"][: logits.shape[1]]
        # The place multiplies and adds, so that a linear code is enough to tell places apart.
        mixed = functional.layer_norm(logits[:, -1:], logits.shape[-1:]) * (1 + places) + places
        return functional.linear(
            functional.gelu(functional.linear(mixed, tensors["readout.first"])), tensors["readout.second"]
        )


@dataclass(frozen=True, slots=True)
class FuzzyRecallTask:
    """Recall whose keys and values are motifs of one to `motif` tokens; a key seen before is followed by its value.

    is_test: ask as the published test does: keys of `motif` tokens, and only values of repeated keys are scored. In
    training, motifs of every size occur and every next token is a target.
    num_tokens: vocabulary; the last token fills rows up in front, of the rest one half are keys and one half values.
    """

    num_tokens: int = 16
    motif: int = 3
    is_test: bool = False

    @property
    def vocab_size(self) -> int:
        """Keys, values and the filler."""
        return self.num_tokens

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows that end with a repeated key and its value. Raises ValueError when two pairs do not fit."""
        if length < 4 * self.motif:
            raise ValueError(
                f"motifs of {self.motif} tokens need rows of at least {4 * self.motif} tokens, not {length}"
            )
        if (self.num_tokens - 1) // 2 < self.motif:
            raise ValueError(f"motifs of {self.motif} tokens need a vocabulary of {2 * self.motif + 1}, not less")
        rows = [self._row(length + 1, generator) for _ in range(num_rows)]
        words = torch.tensor([row for row, _ in rows])
        repeats = torch.tensor([scored for _, scored in rows])
        weights = repeats[:, 1:].float() if self.is_test else (words[:, 1:] != self.num_tokens - 1).float()
        return Batch(words[:, :-1], words[:, 1:].clone(), weights)

    def _row(self, size: int, generator: torch.Generator) -> tuple[list[int], list[bool]]:
        """One row of `size` tokens, and which of them belong to the value of a repeated key."""
        known: dict[Motif, Motif] = {}
        words: list[int] = []
        scored: list[bool] = []
        while len(words) <= size - 4 * self.motif:
            self._add(self._key(generator), known, words, scored, generator)
        self._add(choose(list(known), generator), known, words, scored, generator)
        missing = size - len(words)
        return [self.num_tokens - 1] * missing + words, [False] * missing + scored

    def _key(self, generator: torch.Generator) -> Motif:
        size = self.motif if self.is_test else 1 + number(self.motif, generator)
        return tuple(distinct(range((self.num_tokens - 1) // 2), size, generator))

    def _add(
        self, key: Motif, known: dict[Motif, Motif], words: list[int], scored: list[bool], generator: torch.Generator
    ) -> None:
        is_repeated = key in known
        if not is_repeated:
            values = range((self.num_tokens - 1) // 2, self.num_tokens - 1)
            known[key] = tuple(distinct(values, 1 + number(self.motif, generator), generator))
        words += [*key, *known[key]]
        scored += [False] * len(key) + [is_repeated] * len(known[key])


@dataclass(frozen=True, slots=True)
class MemorisationTask:
    """A dictionary that never changes, to be learned by the slow weights: keys, each followed by a blank for its value.

    num_tokens: vocabulary; the last one is the blank, of the rest one half are keys and one half values.
    map_seed: decides which value belongs to which key.
    """

    num_tokens: int = 256
    map_seed: int = 12345

    @property
    def vocab_size(self) -> int:
        """Keys, values and the blank."""
        return self.num_tokens

    def values(self) -> torch.Tensor:
        """Return the value of each key: [keys] int64."""
        half = (self.num_tokens - 1) // 2
        return half + orders(1, half, torch.Generator().manual_seed(self.map_seed))[0]

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows of keys and blanks in turn; the value is the target at its blank. Raises ValueError below 2."""
        if length < 2 or length % 2:
            raise ValueError(f"keys and blanks in turn need an even length of at least 2 tokens, not {length}")
        table = self.values()
        keys = torch.randint(len(table), (num_rows, length // 2), generator=generator)
        tokens = torch.full((num_rows, length), self.num_tokens - 1)
        tokens[:, ::2] = keys
        targets = torch.zeros_like(tokens)
        targets[:, 1::2] = table[keys]
        weights = torch.zeros(num_rows, length)
        weights[:, 1::2] = 1.0
        return Batch(tokens, targets, weights)
