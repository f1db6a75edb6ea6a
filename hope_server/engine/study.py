"""The study of cards by a whitened level: few steps, each long where general text is not moved.

The gradient of every output matrix is taken in whitened keys, made orthogonal, so that each thing taught weighs the
same (Muon, NL eq. 42), and brought back. Steps shorten towards the end, and where nothing surprises any more; what is
known by now adds nothing to a step, whose every direction would otherwise be as long as that of the news.
A step is computed in parts, so that other work can be done between them.
Shapes: T tokens of a step, F MLP width, D model width, n matrices, P weights of the level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hope_kernels.products import half_products

from hope_server.engine.cards import Card, CardMaker, CardStep
from hope_server.engine.consolidation import GuardPiece, guard_loss, guard_of
from hope_server.engine.level_job import LevelJob
from hope_server.engine.rehearsal import Tokens
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics
from hope_server.model.params import Params

SURPRISE = 0.5
"""Loss, nats per token, below which steps shorten: what is known well is not written again."""
KNOWN = 0.3
"""Loss, nats, of a token that is known: it does not pull at the weights."""
CONTROL = 0.5
"""Weight of a control's divergence from the untaught model, nats, beside the loss of what is learned."""
LAST_STEP = 0.2
"""Length of the last step as a share of the first."""
PART = 320
"""Tokens of cards that are computed at once, about."""


@dataclass(frozen=True, slots=True)
class StudyDesk:
    """What studies are made with. statistics: of the network's keys, None where no level is whitened."""

    cards: CardMaker
    statistics: KeyStatistics | None = None


class Study(LevelJob):
    """One study of one level. system: tokens that the cards which see the system message stand behind."""

    def __init__(
        self,
        model: HopeModel,
        spec: LevelSpec,
        weights: torch.Tensor,
        steps: Sequence[CardStep],
        statistics: KeyStatistics,
        system: Tokens,
    ) -> None:
        self._parts = [(number, part) for number, step in enumerate(steps) for part in cut(step)]
        super().__init__(model, spec, weights, len(self._parts))
        self._num_writes = len(steps)
        self._system = system
        self._gathered = torch.zeros_like(weights)
        self._nats, self._num_tokens = 0.0, 0
        self._whitening = torch.stack([statistics.whitening[block] for block, _ in self._layout.places]).to(weights)
        self._moments = self._layout.moments(1, weights.dtype)

    def _step(self, params: Params) -> tuple[torch.Tensor, float]:
        """One part; behind the last of a step, one step of the inner optimizer in whitened keys."""
        number, cards = self._parts[self.num_done]
        gradient, nats, count = self._part(params, cards)
        if not bool(torch.isfinite(gradient).all()):
            return gradient, math.nan
        self._gathered += gradient
        self._nats += nats
        self._num_tokens += count
        following = self._parts[self.num_done + 1 : self.num_done + 2]
        if following and following[0][0] == number:
            return torch.zeros_like(gradient), nats / max(1, count)
        return self._write(number), nats / max(1, count)

    def _part(self, params: Params, cards: CardStep) -> tuple[torch.Tensor, float, int]:
        """The gradient [1, P] of some cards' summed loss over what is not known yet; the loss, nats, and its tokens.

        Controls add how far their predictions are from the untaught model's.
        """
        laid = lay_out(cards, self._system)
        tokens, places, kept = laid.tokens, laid.learned, laid.controlled
        sight = self._model.branch_sight(self._past.window, laid.segments, laid.sees_first)
        nats = 0.0

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            nonlocal nats
            found, _ = self._model.log_probs_at(params, hidden[places], tokens[places + 1, None])
            losses = -found[:, 0]
            nats = float(losses.detach().sum())
            pull = losses[losses.detach() > KNOWN].sum()
            if guard is not None:
                now, _ = self._model.log_probs_at(params, hidden[kept], guard.candidates)
                pull = pull + CONTROL * len(kept) * guard_loss(now, guard)
            return pull

        with half_products(self.weights.dtype):
            guard = self._expected(params, tuple(card for card in cards if card.is_control))
            gradient, _ = self._differentiate(params, tokens, sight, loss_of)
        return gradient, nats, len(places)

    @torch.no_grad()
    def _expected(self, params: Params, controls: CardStep) -> GuardPiece | None:
        """What the untaught model expects of the controls' replies; None where there are no controls."""
        if not controls:
            return None
        laid, model = lay_out(controls, self._system), self._model
        sight = model.branch_sight(self._past.window, laid.segments, laid.sees_first)
        hidden, blocks = params.embed[laid.tokens][None], range(len(params.blocks))
        hidden, _ = model.run_blocks(params, hidden, self._past, model.initial_memories(), sight, blocks)
        places = laid.controlled
        return guard_of(laid.tokens[places], model.logits(params, hidden[0, places]).to(self.weights))

    def _write(self, number: int) -> torch.Tensor:
        """The change [1, P] of a step whose parts are gathered."""
        loss = self._nats / max(1, self._num_tokens)
        whitened = self._each(self._gathered / max(1, self._num_tokens), self._whitening.mT)
        count = torch.tensor([number + 1])
        with half_products(whitened.dtype):
            change, self._moments = self._layout.step(self._moments, whitened, count, torch.zeros_like(whitened))
        change = change.to(whitened)
        length = min(1.0, loss / SURPRISE) * (1 - (1 - LAST_STEP) * number / self._num_writes)
        self._gathered, self._nats, self._num_tokens = torch.zeros_like(whitened), 0.0, 0
        return self._each(length * change, self._whitening)

    def _each(self, flat: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Every matrix [D, F] of flat [1, P] times its own of right [n, F, F]."""
        count, size = right.shape[:2]
        return (flat.view(count, -1, size) @ right).view(1, -1)


def cut(step: CardStep) -> list[CardStep]:
    """A step in parts of about PART tokens of their own, cards in order."""
    parts: list[list[Card]] = [[]]
    size = 0
    for card in step:
        if size + card.num_tokens > PART and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(card)
        size += card.num_tokens
    return [tuple(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Laid:
    """Cards in a row. tokens [T]; segments [T]; sees_first [segments]: whether each sees the first, the system's.

    learned, controlled: places that predict a token of a reply, of cards to learn and of controls.
    """

    tokens: torch.Tensor
    segments: torch.Tensor
    sees_first: torch.Tensor
    learned: torch.Tensor
    controlled: torch.Tensor


def lay_out(cards: CardStep, system: Tokens) -> Laid:
    """Join cards, each a segment of its own, behind the system's tokens, the first segment."""
    tokens, segments, sees_first = list(system), [0] * len(system), [True]
    learned: list[int] = []
    controlled: list[int] = []
    for number, card in enumerate(cards, start=1):
        start = len(tokens) + len(card.prompt)
        tokens += [*card.prompt, *card.reply]
        segments += [number] * (len(tokens) - len(segments))
        sees_first.append(card.sees_system)
        places = controlled if card.is_control else learned
        places += range(start - 1 + card.skips_first, len(tokens) - 1)
    whole = (torch.tensor(part, dtype=torch.long) for part in (learned, controlled))
    return Laid(torch.tensor(tokens), torch.tensor(segments), torch.tensor(sees_first), *whole)
