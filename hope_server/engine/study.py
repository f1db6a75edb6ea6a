"""The study of cards by a whitened level: few steps, each long where general text is not moved.

The gradient of every output matrix is taken in whitened keys, made orthogonal, so that each thing taught weighs the
same (Muon, NL eq. 42), and brought back. Steps shorten towards the end, and where nothing surprises any more.
Shapes: T tokens of a step, F MLP width, D model width, n matrices, P weights of the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hope_server.engine.cards import CardMaker, CardStep
from hope_server.engine.level_job import LevelJob
from hope_server.engine.rehearsal import Tokens
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics
from hope_server.model.params import Params

SURPRISE = 0.5
"""Loss, nats per token, below which steps shorten: what is known well is not written again."""
LAST_STEP = 0.2
"""Length of the last step as a share of the first."""


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
        super().__init__(model, spec, weights, len(steps))
        self._steps = steps
        self._system = system
        self._whitening = torch.stack([statistics.whitening[block] for block, _ in self._layout.places]).to(weights)
        self._moments = self._layout.moments(1, weights.dtype)

    def _step(self, params: Params) -> tuple[torch.Tensor, float]:
        """One step of the inner optimizer in whitened keys."""
        laid, segments, sees_first, predicts = lay_out(self._steps[self.num_done], self._system)
        tokens, places = torch.tensor(laid), torch.tensor(predicts)
        sight = self._model.branch_sight(self._past.window, torch.tensor(segments), torch.tensor(sees_first))

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            found, _ = self._model.log_probs_at(params, hidden[places], tokens[places + 1, None])
            return -found.mean()

        gradient, loss = self._differentiate(params, tokens, sight, loss_of)
        if not bool(torch.isfinite(gradient).all()):
            return gradient, loss
        whitened = self._each(gradient, self._whitening.mT)
        count = torch.tensor([self.num_done + 1])
        change, self._moments = self._layout.step(self._moments, whitened, count, torch.zeros_like(whitened))
        share = self.num_done / self.num_steps
        length = min(1.0, loss / SURPRISE) * (1 - (1 - LAST_STEP) * share)
        return self._each(length * change, self._whitening), loss

    def _each(self, flat: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Every matrix [D, F] of flat [1, P] times its own of right [n, F, F]."""
        count, size = right.shape[:2]
        return (flat.view(count, -1, size) @ right).view(1, -1)


def lay_out(cards: CardStep, system: Tokens) -> tuple[list[int], list[int], list[bool], list[int]]:
    """Join cards, each a segment of its own, behind the system's tokens, the first segment.

    Returns tokens, the segment of each, whether each segment sees the first, and the places that predict a reply.
    """
    tokens, segments, sees_first = list(system), [0] * len(system), [True]
    predicts: list[int] = []
    for number, card in enumerate(cards, start=1):
        start = len(tokens) + len(card.prompt)
        tokens += [*card.prompt, *card.reply]
        segments += [number] * (len(tokens) - len(segments))
        sees_first.append(card.sees_system)
        predicts += range(start - 1 + card.skips_first, len(tokens) - 1)
    return tokens, segments, sees_first, predicts
