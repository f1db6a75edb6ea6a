"""What consolidation reads in each of its steps: new pieces in shuffled passes, half and half with the session's own
past.

Pure Python: pieces are tuples of token ids; one seed gives one plan.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Different passages in a row. cue: words of the first one that a question mentions before it; empty for none."""

    cue: Tokens
    passages: tuple[Tokens, ...]


Step = tuple[Chain, ...]
"""What one step reads: chains that do not see each other."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A sentence or so of taught text.

    passes: how often it is to be rehearsed; paragraph: pieces of one paragraph share the number;
    source: who wrote it, "user", "assistant" or "text" (handed over by `learn`); levels: those that it may teach (None:
    all).
    """

    tokens: Tokens
    passes: int
    paragraph: int
    source: str = "user"
    levels: tuple[str, ...] | None = None

    def teaches(self, level: str) -> bool:
        """Whether a level may learn it."""
        return self.levels is None or level in self.levels


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around passages: a chain opens as a reply, behind a question that mentions its cue where it has one.

    questions: what stands before the user's words, in variants; reply: between them and the reply; opening: before a
    reply without a question; closing: between passages; ending: behind the last, where a reply ends.
    """

    questions: tuple[Tokens, ...]
    reply: Tokens
    opening: Tokens
    closing: Tokens
    ending: Tokens


@dataclass(frozen=True, slots=True)
class RehearsalSettings:
    """group: tokens a step reads in all; passage: tokens in the longest run of sentences; chain: most passages in a
    row.
    """

    group: int = 64
    passage: int = 48
    chain: int = 6


def plan_rehearsal(
    new: Sequence[Piece],
    old: Sequence[Piece],
    seed: int,
    settings: RehearsalSettings,
    spell: Callable[[Tokens], Tokens],
) -> list[Step]:
    """Return the steps of a consolidation.

    Every new piece is read `passes` times, in an order shuffled anew each pass; when there is a past, half of each
    step is drawn from it, in proportion to its own passes. Neighbours of one paragraph are sometimes read together.
    A passage stands behind changing others, so that it is learned for any context, but never behind itself, where it
    could be copied instead of learned. `spell` gives a passage as it is spelt at the beginning of a line.
    """
    rng = random.Random(seed)
    queue = _shuffled_passes(new, rng, settings)
    past = [piece for piece in old if piece.passes > 0]
    weights = [piece.passes for piece in past]
    share = settings.group // 2 if past else settings.group
    steps = []
    while queue:
        taken = _take(queue, share)
        if past:
            drawn = sorted(
                set(rng.choices(range(len(past)), weights, k=settings.group // 4)), key=lambda _: rng.random()
            )
            passages = deque(
                passage for index in drawn for passage in _passages(past[index : index + 3], rng, settings)[:1]
            )
            taken += _take(passages, share)
        rng.shuffle(taken)
        steps.append(_chains([spell(passage) for passage in taken], rng, settings))
    return steps


def _chains(passages: Sequence[Tokens], rng: random.Random, settings: RehearsalSettings) -> Step:
    """String passages together, each behind others than itself; every other chain answers a question."""
    chains: list[list[Tokens]] = []
    limits: list[int] = []
    for passage in passages:
        open_chains = [
            i
            for i, chain in enumerate(chains)
            if passage not in chain and len(chain) < limits[i] and sum(map(len, chain)) + len(passage) <= settings.group
        ]
        if open_chains:
            chains[rng.choice(open_chains)].append(passage)
        else:
            chains.append([passage])
            limits.append(rng.randint(1, settings.chain))
    return tuple(Chain(_cue(chain[0], rng) if rng.random() < 0.5 else (), tuple(chain)) for chain in chains)


def _cue(passage: Tokens, rng: random.Random) -> Tokens:
    """A few words in a row from the first half or so of a passage."""
    reach = max(2, len(passage) * 3 // 5)
    start = rng.randrange(max(1, reach - 2))
    return passage[start : min(reach, start + rng.randint(2, 6))]


def _shuffled_passes(pieces: Sequence[Piece], rng: random.Random, settings: RehearsalSettings) -> deque[Tokens]:
    queue: deque[Tokens] = deque()
    for number in range(max((piece.passes for piece in pieces), default=0)):
        passages = _passages([piece for piece in pieces if piece.passes > number], rng, settings)
        rng.shuffle(passages)
        queue.extend(passages)
    return queue


def _passages(pieces: Sequence[Piece], rng: random.Random, settings: RehearsalSettings) -> list[Tokens]:
    """Cut the pieces into passages: runs of neighbours of one paragraph, at random lengths up to the limit."""
    out: list[list[int]] = []
    paragraph, limit = None, 0
    for piece in pieces:
        if out and paragraph == piece.paragraph and len(out[-1]) + len(piece.tokens) <= limit:
            out[-1].extend(piece.tokens)
        else:
            out.append(list(piece.tokens))
            limit = rng.choice((0, settings.passage // 2, settings.passage))
        paragraph = piece.paragraph
    return [tuple(passage) for passage in out]


def _take(queue: deque[Tokens], share: int) -> list[Tokens]:
    """Take passages off the queue, at least one, while they fit into `share` tokens."""
    taken: list[Tokens] = []
    used = 0
    while queue and (not taken or used + len(queue[0]) <= share):
        passage = queue.popleft()
        taken.append(passage)
        used += len(passage)
    return taken
