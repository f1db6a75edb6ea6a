"""A consolidation of one level, one step at a time.

A job is a pure function of the level's weights and of what it reads, so that it can run in idle moments and still give
the same result whenever it ran.
Shapes: T tokens of a step, D model width, P weights of the level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from hope_kernels.cms_update import cap_drift

from hope_server.engine.heap import copy_apart, zeros_apart
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.levels import make_layout
from hope_server.model.params import Params
from hope_server.model.sight import Sight
from hope_server.optim import State


class LevelJob(ABC):
    """Call `advance` until `is_done`, then take `weights` [1, P]. losses: of the steps, nats per token."""

    def __init__(
        self, model: HopeModel, spec: LevelSpec, weights: torch.Tensor, num_steps: int, num_more: int = 0
    ) -> None:
        """num_more: vectors [1, P] of zeros that the job needs beside its weights and moments."""
        self._model = model
        self._spec = spec
        self._layout = make_layout(spec, model.config.model)
        self._first_block = min(spec.blocks)
        self._past = model.empty_past(1, weights.dtype)
        self.num_steps = num_steps
        moments = self._layout.moments(0, weights.dtype)
        sizes = [weights.shape[1]] * 2 + [empty.shape[1] for empty in moments.values()]
        # A job may wait for long, and everything that steps make comes and goes: what it keeps is written in place.
        kept = zeros_apart(sum(sizes) + num_more * weights.shape[1], weights.dtype, weights.device)
        parts = [part[None] for part in kept.split([*sizes, *[weights.shape[1]] * num_more])]
        self._start, self.weights = parts[0].copy_(weights), parts[1].copy_(weights)
        self._moments = dict(zip(moments, parts[2:], strict=False))
        self._more: list[torch.Tensor] = parts[2 + len(moments) :]
        self.num_done = 0
        self.losses: list[float] = []
        self.is_finite = True

    @property
    def name(self) -> str:
        """The level's name."""
        return self._spec.name

    @property
    def is_done(self) -> bool:
        """Whether every step ran, or the job gave up on a value that is not finite."""
        return self.num_done >= self.num_steps or not self.is_finite

    def mean_losses(self) -> tuple[float, float]:
        """Mean next-token loss, nats, over the first and the last quarter of the steps."""
        share = max(1, len(self.losses) // 4)
        return sum(self.losses[:share]) / share, sum(self.losses[-share:]) / share

    def advance(self, params: Params) -> None:
        """Take one step; give up on a value that is not finite."""
        change, loss = self._step(params)
        self.losses.append(loss)
        if change is not None and not bool(torch.isfinite(change).all()):
            self.is_finite = False
            self.weights.copy_(self._start)
            return
        self.num_done += 1
        if change is not None:
            initial = self._model.memory.initial[self._spec.name]
            self.weights += change
            self.weights.copy_(cap_drift(self.weights, initial, self._spec.norm_cap))
        if self.is_done:
            self._settle()
            # A finished job waits for the turn that takes its weights; what only steps need goes.
            self.weights = copy_apart(self.weights.bfloat16(), self.weights.dtype)
            self._start, self._moments, self._more = self.weights, {}, []

    def _settle(self) -> None:  # noqa: B027
        """What is left to do to the weights behind the last step; nothing by default."""

    @abstractmethod
    def _step(self, params: Params) -> tuple[torch.Tensor | None, float]:
        """The change [1, P] of step `num_done`, None where nothing is written yet, and its loss."""

    def _remember(self, moments: State) -> None:
        """Take new moments in the place of the old ones."""
        for name, moment in moments.items():
            self._moments[name].copy_(moment)

    def _differentiate(
        self,
        params: Params,
        tokens: torch.Tensor,
        sight: Sight,
        objective: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, float]:
        """Gradient [1, P] and value of an objective of the last hidden states [T, D] of tokens [T]."""
        model, first = self._model, self._first_block
        leaves = self._layout.leaves(self.weights)
        memories = model.initial_memories({self._spec.name: leaves})
        with torch.no_grad():
            hidden = params.embed[tokens][None]
            hidden, _ = model.run_blocks(params, hidden, self._past, memories, sight, range(first))
        with torch.enable_grad():
            blocks = range(first, len(params.blocks))
            hidden, _ = model.run_blocks(params, hidden, self._past, memories, sight, blocks)
            value = objective(hidden[0])
        ordered = [leaves[block][name] for block, name in self._layout.places]
        return self._layout.flatten(list(torch.autograd.grad(value, ordered))), float(value.detach())
