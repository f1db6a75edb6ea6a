"""The consolidation pass: replay completed text into the slower levels with a stronger inner optimizer.

Shapes: T tokens of a step, K kept guard candidates, V vocabulary, P weights of the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hope_server.engine.level_job import LevelJob
from hope_server.engine.rehearsal import Frame, Step, Tokens
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.sight import Sight


@dataclass(frozen=True, slots=True)
class GuardPiece:
    """General text with the slow weights' own predictions: the best K of the vocabulary at each token, and the rest.

    tokens [T]; candidates [T, K]; log_probs [T, K]; rest [T], the log-probability left for all others.
    """

    tokens: torch.Tensor
    candidates: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor


@torch.no_grad()
def make_guard(model: HopeModel, params: Params, texts: Sequence[Tokens], num_candidates: int = 64) -> list[GuardPiece]:
    """Let the slow weights predict each text once and keep their best candidates."""
    out = []
    past = model.empty_past(1, params.dtype)
    untouched = model.initial_memories()
    for text in texts:
        tokens = torch.tensor(text)
        sight = model.sight(past.window, len(text))
        hidden = params.embed[tokens][None]
        hidden, _ = model.run_blocks(params, hidden, past, untouched, sight, range(len(params.blocks)))
        out.append(guard_of(tokens, model.logits(params, hidden[0]), num_candidates))
    return out


def guard_of(tokens: torch.Tensor, logits: torch.Tensor, num_candidates: int = 64) -> GuardPiece:
    """Keep the best candidates of predictions [T, V] behind tokens [T]."""
    log_probs = logits.log_softmax(-1)
    best, candidates = log_probs.topk(min(num_candidates, log_probs.shape[-1]), dim=-1)
    return GuardPiece(tokens, candidates, best, _log_rest(best))


def _log_rest(log_probs: torch.Tensor) -> torch.Tensor:
    """log(1 - sum exp) over the last dimension, kept finite."""
    return torch.log((1 - log_probs.exp().sum(-1)).clamp_min(1e-6))


def guard_loss(found: torch.Tensor, guard: GuardPiece) -> torch.Tensor:
    """Mean KL divergence, in nats, from the slow weights' predictions to others, over K candidates and the rest.

    found [T, K]: the others' log-probabilities of the guard's candidates.
    """
    divergence = (guard.log_probs.exp() * (guard.log_probs - found)).sum(-1)
    divergence = divergence + guard.rest.exp() * (guard.rest - _log_rest(found))
    return divergence.mean()


class Consolidation(LevelJob):
    """Rehearsal of chains of passages, held near the slow weights' predictions by a guard."""

    def __init__(
        self,
        model: HopeModel,
        spec: LevelSpec,
        weights: torch.Tensor,
        steps: Sequence[Step],
        guards: Sequence[GuardPiece],
        frame: Frame,
    ) -> None:
        super().__init__(model, spec, weights, len(steps))
        self._steps = steps
        self._guards = guards
        self._frame = frame

    def _step(self, params: Params) -> tuple[torch.Tensor, float]:
        """Take one step of the inner optimizer: next-token loss on its passages plus the guard."""
        chains = self._steps[self.num_done]
        guard = self._guards[self.num_done % len(self._guards)] if self._guards else None
        gradient, loss = self._gradient(params, chains, guard)
        initial = self._model.memory.initial[self._spec.name]
        count = torch.tensor([self.num_done + 1])
        change, moments = self._layout.step(self._moments, gradient, count, self.weights - initial)
        self._remember(moments)
        # A rule may hide what is not finite in its moments; the step is then refused as a whole.
        return change if bool(torch.isfinite(gradient).all()) else gradient, loss

    def _lay_out(self, chains: Step) -> tuple[list[int], list[int], list[int]]:
        """Join chains, each apart from the others behind an opening; returns tokens, segments, predicting places.

        Every token of a passage is predicted but its first, which only a cue can tell.
        """
        frame = self._frame
        tokens: list[int] = []
        segments: list[int] = []
        predicts: list[int] = []
        for number, chain in enumerate(chains):
            if chain.cue:
                question = frame.questions[(self.num_done + number) % len(frame.questions)]
                tokens += [*question, *chain.cue, *frame.reply]
                predicts.append(len(tokens) - 1)
            else:
                tokens += frame.opening
            for place, passage in enumerate(chain.passages):
                start = len(tokens)
                tokens += [*passage, *(frame.closing if place + 1 < len(chain.passages) else frame.ending)]
                predicts += range(start, len(tokens) - 1)
            segments += [number] * (len(tokens) - len(segments))
        return tokens, segments, predicts

    def _gradient(self, params: Params, chains: Step, guard: GuardPiece | None) -> tuple[torch.Tensor, float]:
        """The gradient of loss plus guard [1, P], and the loss; one after the other, for half the memory at once."""
        laid, numbers, predicts = self._lay_out(chains)
        tokens, places = torch.tensor(laid), torch.tensor(predicts)

        def text_loss(hidden: torch.Tensor) -> torch.Tensor:
            found, _ = self._model.log_probs_at(params, hidden[places], tokens[places + 1, None])
            return -found.mean()

        gradient, loss = self._differentiate(params, tokens, self._sight(numbers), text_loss)
        if guard is not None:

            def general_loss(hidden: torch.Tensor, guard: GuardPiece = guard) -> torch.Tensor:
                return guard_loss(self._model.log_probs_at(params, hidden, guard.candidates)[0], guard)

            one = self._sight([0] * len(guard.tokens))
            gradient += self._differentiate(params, guard.tokens, one, general_loss)[0]
        return gradient, loss

    def _sight(self, segments: list[int]) -> Sight:
        return self._model.sight(self._past.window, len(segments), torch.tensor(segments))
