"""The study of cards by a whitened level: few steps, each long where general text is not moved.

The gradient of every output matrix is taken in whitened keys, made orthogonal, so that each thing taught weighs the
same (Muon, NL eq. 42), and brought back. Steps shorten towards the end, where nothing surprises any more, and where
less is asked for than before; what is known by now adds nothing to a step, whose every direction would otherwise be as
long as that of the news.
A step is computed in parts, so that other work can be done between them; the last one sets the gates of a gated level.
Shapes: T tokens of a step, F MLP width, D model width, n matrices, P weights of the level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hope_kernels.products import factor_dtype, half_products

from hope_server.engine.cards import Card, CardMaker, CardStep
from hope_server.engine.level_job import LevelJob
from hope_server.engine.rehearsal import Piece, Tokens
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics
from hope_server.model.params import Params
from hope_server.model.recognition import GeneralKeys

SURPRISE = 0.5
"""Loss, nats per token, below which steps shorten: what is known well is not written again."""
KNOWN = 0.3
"""Loss, nats, of a token that is known: it does not pull at the weights."""
LAST_STEP = 0.2
"""Length of the last step as a share of the first."""
THOROUGH = 8
"""Passes from which on steps are as long as they can be, whatever the past was learned with."""
PART = 480
"""Tokens of cards that are computed at once, about."""


class RoundedWeights:
    """The slow weights as studies multiply with them: rounded at the first study, not in each product of each part."""

    def __init__(self) -> None:
        self._exact: Params | None = None
        self._rounded: Params | None = None

    def of(self, params: Params) -> Params:
        """The network with its matrices in what `half_products` rounds factors to: itself where nothing is rounded."""
        if self._rounded is None or self._exact is not params:
            self._exact, self._rounded = params, params.rounded(factor_dtype(params.dtype))
        return self._rounded


@dataclass(frozen=True, slots=True)
class StudyDesk:
    """What studies are made with.

    statistics: of the network's keys, None where no level is whitened; general: what sets gates, None where there are
    none; rounded: what all studies share.
    """

    cards: CardMaker
    statistics: KeyStatistics | None = None
    general: GeneralKeys | None = None
    rounded: RoundedWeights = field(default_factory=RoundedWeights)


class Study(LevelJob):
    """One study of one level.

    system: tokens that the cards which see the system message stand behind; general: what sets the level's gates;
    rounded: shared between studies; reach: how long steps are, of 1.
    """

    def __init__(
        self,
        model: HopeModel,
        spec: LevelSpec,
        weights: torch.Tensor,
        steps: Sequence[CardStep],
        statistics: KeyStatistics,
        system: Tokens,
        general: GeneralKeys | None = None,
        rounded: RoundedWeights | None = None,
        reach: float = 1.0,
    ) -> None:
        self._parts = [(number, part) for number, step in enumerate(steps) for part in cut(step)]
        super().__init__(model, spec, weights, len(self._parts), num_more=1)
        self._num_writes = len(steps)
        self._system, self._general = system, general
        self._rounded, self._reach = rounded or RoundedWeights(), reach
        self._nats, self._num_tokens = 0.0, 0
        self._whitening = statistics.stacked(tuple(block for block, _ in self._layout.places), weights)
        # Thresholds are no drift; what they were is measured anew at the end.
        self.weights[0, self._end :] = 0

    @property
    def _gathered(self) -> torch.Tensor:
        """The gradient [1, P] of the parts of a step so far, summed."""
        return self._more[0]

    def _step(self, params: Params) -> tuple[torch.Tensor | None, float]:
        """One part; behind the last of a step, one step of the inner optimizer in whitened keys."""
        number, cards = self._parts[self.num_done]
        gradient, nats, count = self._part(params, cards)
        if not bool(torch.isfinite(gradient).all()):
            return gradient, math.nan
        self._gathered.add_(gradient)
        self._nats += nats
        self._num_tokens += count
        following = self._parts[self.num_done + 1 : self.num_done + 2]
        if following and following[0][0] == number:
            return None, nats / max(1, count)
        return self._write(number), nats / max(1, count)

    def _part(self, params: Params, cards: CardStep) -> tuple[torch.Tensor, float, int]:
        """The gradient [1, P] of some cards' summed loss over what is not known yet; the loss, nats, and its tokens."""
        laid = lay_out(cards, self._system)
        tokens, places = laid.tokens, laid.learned
        sight = self._model.branch_sight(self._past.window, laid.segments, laid.sees_first)
        rounded, nats = self._rounded.of(params), 0.0

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            nonlocal nats
            found, _ = self._model.log_probs_at(rounded, hidden[places], tokens[places + 1, None])
            losses = -found[:, 0]
            nats = float(losses.detach().sum())
            return losses[losses.detach() > KNOWN].sum()

        with half_products(self.weights.dtype):
            gradient, _ = self._differentiate(rounded, tokens, sight, loss_of)
        return gradient, nats, len(places)

    def _write(self, number: int) -> torch.Tensor:
        """The change [1, P] of a step whose parts are gathered."""
        loss = self._nats / max(1, self._num_tokens)
        whitened = self._each(self._gathered / max(1, self._num_tokens), self._whitening.mT)
        count = torch.tensor([number + 1])
        with half_products(whitened.dtype):
            change, moments = self._layout.step(self._moments, whitened, count, torch.zeros_like(whitened))
        self._remember(moments)
        change = change.to(whitened)
        length = self._reach * min(1.0, loss / SURPRISE) * (1 - (1 - LAST_STEP) * number / self._num_writes)
        self._gathered.zero_()
        self._nats, self._num_tokens = 0.0, 0
        return self._each(length * change, self._whitening)

    def _each(self, flat: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Every matrix [D, F] of flat [1, P] times its own of right [n, F, F]."""
        return self._layout.flatten(list((self._matrices(flat) @ right)[:, None]))

    def _matrices(self, flat: torch.Tensor) -> torch.Tensor:
        """The matrices [n, D, F] of flat [1, P], all of one shape."""
        views = self._layout.views(flat)
        return torch.cat([views[block][name] for block, name in self._layout.places])

    def _settle(self) -> None:
        """Set the gates of what was learned: studies themselves are made without them."""
        if self._general is not None and self._layout.num_thresholds:
            found = self._general.thresholds(self._matrices(self.weights), self._spec.blocks, self._spec.gate)
            self.weights[0, self._end :] = found

    @property
    def _end(self) -> int:
        """Where the matrices end and thresholds begin."""
        return self._layout.num_weights - self._layout.num_thresholds


def reach_of(new: Sequence[Piece], past: Sequence[Piece]) -> float:
    """How long steps on new pieces are, of 1: the root of their passes as a share of the most that the past had.

    Steps are orthogonal: a text that is only read through moves the weights as far in one pass as a lesson does in one
    of its eight. Long ones would make the level answer to general text, and its gates shut on what was known well.
    """
    asked, most = (min(THOROUGH, max((piece.passes for piece in pieces), default=0)) for pieces in (new, past))
    return math.sqrt(asked / most) if 0 < asked < most else 1.0


def cut(step: CardStep) -> list[CardStep]:
    """A step in parts of like size, of at most about PART tokens of their own, cards in order."""
    total = sum(card.num_tokens for card in step)
    share = total / max(1, math.ceil(total / PART))
    parts: list[list[Card]] = [[]]
    size = 0
    for card in step:
        # Where the card's larger half is on the next part's side, it opens that one.
        if parts[-1] and size + card.num_tokens / 2 > share * len(parts):
            parts.append([])
        parts[-1].append(card)
        size += card.num_tokens
    return [tuple(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Laid:
    """Cards in a row. tokens [T]; segments [T]; sees_first [segments]: whether each sees the first, the system's.

    learned: places that predict a token of a reply.
    """

    tokens: torch.Tensor
    segments: torch.Tensor
    sees_first: torch.Tensor
    learned: torch.Tensor


def lay_out(cards: CardStep, system: Tokens) -> Laid:
    """Join cards, each a segment of its own, behind the system's tokens, the first segment."""
    tokens, segments, sees_first = list(system), [0] * len(system), [True]
    learned: list[int] = []
    for number, card in enumerate(cards, start=1):
        start = len(tokens) + len(card.prompt)
        tokens += [*card.prompt, *card.reply]
        segments += [number] * (len(tokens) - len(segments))
        sees_first.append(card.sees_system)
        learned += range(start - 1 + card.skips_first, len(tokens) - 1)
    return Laid(*(torch.tensor(part) for part in (tokens, segments, sees_first, learned)))
