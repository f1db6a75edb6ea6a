"""Draws the next token from logits, with its own random numbers per turn: the same seed draws the same tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from hope_server.engine.constraint import Constraint
from hope_server.engine.turn import SamplingParams
from hope_server.errors import InternalError

# Tokens that are sorted for top_p; the nucleus of a sure model is within them.
_NUM_SORTED = 256
_NUM_SEED_BITS = 63
# exp(-60) is nothing in a float64 sum near 1; what lies below becomes denormal, which CPUs compute 20 times slower.
_FLOOR = -60.0
# Below it, logits divided by the temperature leave float32, and the largest has all the weight long before.
_MIN_TEMPERATURE = 1e-5


class Sampler:
    """Draws the tokens of one turn.

    Penalties follow the custom of vLLM: repetition divides positive and multiplies negative logits of every token seen,
    in the prompt or the reply; frequency and presence are subtracted for tokens of the reply only. The bias is added
    after them, and what the constraint forbids is ruled out last.
    """

    def __init__(self, params: SamplingParams, constraint: Constraint | None = None) -> None:
        """Start a reply; without `params.seed` the random numbers differ every time."""
        self._params = params
        self._constraint = constraint
        self._bias = _Bias(params.logit_bias) if params.logit_bias else None
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self._generator = torch.Generator().manual_seed(seed % 2**_NUM_SEED_BITS)
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        self._has_penalties = penalties != (0, 0, 1)
        self._unread_prompt: list[int] = []
        self._unread_reply: list[int] = []
        self._is_seen = torch.empty(0, dtype=torch.bool)
        self._counts = torch.empty(0)

    def observe_prompt(self, ids: Sequence[int]) -> None:
        """Note tokens of the prompt, for the repetition penalty."""
        if self._has_penalties:
            self._unread_prompt.extend(ids)

    def observe(self, token_id: int) -> None:
        """Note a token of the reply, for all penalties and the constraint."""
        if self._has_penalties:
            self._unread_reply.append(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def sample(self, logits: Tensor) -> int:
        """Return the next token id for float32 CPU `logits` (V,), which stay as they are.

        Raises InternalError when the logits have no finite maximum: the model has failed. Raises InvalidRequest when
        the constraint cannot be followed any further.
        """
        params = self._params
        if self._constraint is not None:
            # Before the mask, which may hide what is wrong.
            _check_peak(logits.max())
        if self._has_penalties:
            logits = self._penalise(logits)
        if self._bias is not None:
            logits = self._bias.add(logits)
        if self._constraint is not None:
            logits = self._constraint.mask(logits)
        peak, best = torch.max(logits, dim=0)
        _check_peak(peak)
        if params.temperature < _MIN_TEMPERATURE or params.top_k == 1:
            return int(best)
        # Shifted first: the largest weight is 1, and a low temperature can only turn others to 0.
        scaled = (logits - peak) / params.temperature
        if 0 < params.top_k < scaled.numel():
            values, ids = torch.topk(scaled, params.top_k)
            weights = _weights(values)
            # top_p is a share of what top_k left.
            return self._draw_leading(weights, ids, params.top_p * float(weights.sum(dtype=torch.float64)))
        return self._draw(_weights(scaled)) if params.top_p >= 1 else self._draw_nucleus(scaled)

    def _draw_nucleus(self, scaled: Tensor) -> int:
        """Return an id from the fewest tokens whose share reaches top_p, out of all `scaled` logits (V,) <= 0."""
        weights = _weights(scaled)
        target = self._params.top_p * float(weights.sum(dtype=torch.float64))
        leading, ids = torch.topk(weights, min(_NUM_SORTED, weights.numel()))
        if float(leading.sum(dtype=torch.float64)) >= target:
            return self._draw_leading(leading, ids, target)
        # A wide nucleus is not sorted: a token is in it when all heavier ones together fall short of the target.
        while True:
            token = self._draw(weights)
            heavier = torch.where(weights > weights[token], weights, 0.0).sum(dtype=torch.float64)
            if float(heavier) < target:
                return token

    def _draw_leading(self, weights: Tensor, ids: Tensor, target: float) -> int:
        """Return one of `ids` (N,) by `weights` (N,), largest first, up to where their running sum reaches `target`."""
        mass = weights.cumsum(0, dtype=torch.float64)
        kept = min(int(torch.searchsorted(mass, target)) + 1, mass.numel())
        return int(ids[self._draw(weights[:kept])])

    def _draw(self, weights: Tensor) -> int:
        """Return an index with probability proportional to `weights` (N,) >= 0; one random number, whatever N."""
        mass = weights.cumsum(0, dtype=torch.float64)
        point = torch.rand((), dtype=torch.float64, generator=self._generator) * mass[-1]
        index = int(torch.searchsorted(mass, point, right=True))
        # Rounding can put the point on the total itself; the largest weight is then as good as any.
        return index if index < mass.numel() else int(weights.argmax())

    def _penalise(self, logits: Tensor) -> Tensor:
        """Return a penalised copy of `logits` (V,)."""
        if self._is_seen.numel() == 0:
            self._is_seen = torch.zeros_like(logits, dtype=torch.bool)
            self._counts = torch.zeros_like(logits)
        reply = torch.tensor(self._unread_reply, dtype=torch.long)
        self._counts.index_add_(0, reply, torch.ones(len(reply)))
        self._is_seen[reply] = True
        self._is_seen[torch.tensor(self._unread_prompt, dtype=torch.long)] = True
        self._unread_reply, self._unread_prompt = [], []
        params = self._params
        if params.repetition_penalty != 1:
            repeated = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits = torch.where(self._is_seen, repeated, logits)
        return logits - params.frequency_penalty * self._counts - params.presence_penalty * (self._counts > 0)


class _Bias:
    """What is added to the logits of some tokens."""

    def __init__(self, pairs: Sequence[tuple[int, float]]) -> None:
        self._ids = torch.tensor([token for token, _ in pairs], dtype=torch.long)
        self._values = torch.tensor([value for _, value in pairs])

    def add(self, logits: Tensor) -> Tensor:
        """Return a biased copy of `logits` (V,)."""
        return logits.index_add(0, self._ids, self._values.to(logits.dtype))


def _check_peak(peak: Tensor) -> None:
    # The maximum of anything with a NaN is NaN.
    if not math.isfinite(float(peak)):
        raise InternalError(f"the model computed {float(peak)} where a logit belongs; the turn was given up")


def _weights(scaled: Tensor) -> Tensor:
    """Return exp of `scaled` (N,) <= 0, with 0 for what is below the floor."""
    return scaled.clamp(min=_FLOOR).exp() * (scaled > _FLOOR)
