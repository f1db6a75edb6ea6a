"""Momentum as a deep memory, and non-linear outputs of a memory.

Shapes: B rows, gradients [m, n] whose m rows are the memory's keys, h hidden units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from hope_kernels.newton_schulz import newton_schulz

from hope_server.optim.muon import StepScale, step_scale
from hope_server.optim.rules import State, UpdateRule, unit_rms

InnerObjective = Literal["l2", "dot"]


@lru_cache(maxsize=64)
def _start(hidden: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The first layer that every deep memory of this shape starts from."""
    drawn = torch.randn(hidden, width, generator=torch.Generator().manual_seed(hidden), dtype=torch.float64)
    return (drawn / math.sqrt(width)).to(device=device, dtype=dtype)


@dataclass(frozen=True, slots=True)
class DeepMomentum(UpdateRule):
    """`W <- W + lr m(u)`, `m <- retention m - rate grad L2(m; u)`: the momentum is a two-layer MLP trained online.

    u is the gradient scaled to a root mean square of 1; each of its rows is a key z, m(z) = A tanh(B z). Inner
    objective, a mean over the rows: `l2`, half of ||m(z) + z||^2, so that m answers with what it knows of -z, the
    directions that gradients keep taking; `dot`, the inner product <m(z), z>.
    inner_lr: rate of the inner step, 0 to 2; each layer divides it by 1 plus the largest curvature that its keys give
    the squared error, so that no scale makes it diverge. retention: share of m kept, 0 to 1; with `dot` below 1.
    Source: NL eq. 50 (DMGD).
    """

    hidden_size: int = 32
    inner_lr: float = 0.5
    retention: float = 1.0
    objective: InnerObjective = "l2"

    @property
    def needs_matrix(self) -> bool:
        """Yes: rows of the gradient are keys."""
        return True

    def init(self, params: torch.Tensor) -> State:
        """deep_in [B, h, n] and deep_out [B, n, h]: drifts of B and A from their start."""
        rows, width = params.shape[0], params.shape[-1]
        return {
            "deep_in": params.new_zeros(rows, self.hidden_size, width),
            "deep_out": params.new_zeros(rows, width, self.hidden_size),
        }

    def layers(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory's two layers B [B, h, n] and A [B, n, h]."""
        first = state["deep_in"]
        return first + _start(self.hidden_size, first.shape[-1], first.dtype, first.device), state["deep_out"]

    def inner_rates(self, state: State, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rates [B, 1, 1] of the inner step of the two layers for keys [B, m, n]."""
        first, second = self.layers(state)
        hidden = torch.tanh(keys @ first.mT)
        outward = second.square().sum(dim=(1, 2), keepdim=True)
        size = keys.square().sum(dim=2).mean(dim=1).view(-1, 1, 1)
        reach = hidden.square().sum(dim=2).mean(dim=1).view(-1, 1, 1)
        return self.inner_lr / (1 + size * outward), self.inner_lr / (1 + reach)

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule; the memory is trained on the gradient before it answers."""
        keys = unit_rms(gradient)
        first, second = self.layers(state)
        hidden = torch.tanh(keys @ first.mT)
        answer = hidden @ second.mT
        error = ((answer + keys) if self.objective == "l2" else keys) / keys.shape[1]
        inward = (error @ second) * (1 - hidden.square())
        rate_in, rate_out = self.inner_rates(state, keys)
        first = self.retention * first - rate_in * (inward.mT @ keys)
        second = self.retention * second - rate_out * (error.mT @ hidden)
        start = _start(self.hidden_size, first.shape[-1], first.dtype, first.device)
        said = torch.tanh(keys @ first.mT) @ second.mT
        return self.lr * said, {"deep_in": first - start, "deep_out": second}


@dataclass(frozen=True, slots=True)
class NonLinearOutput(UpdateRule):
    """`W <- W + lr scale output(m(u))`: a non-linearity on what any memory of gradients answers.

    memory: the rule whose change is m(u); its lr is taken as 1. output: `newton_schulz`, `sign` or `tanh` of m(u) at
    a root mean square of 1. Over linear momentum, `newton_schulz` is Muon. Source: NL eq. 52.
    """

    memory: UpdateRule
    output: Literal["newton_schulz", "sign", "tanh"] = "newton_schulz"
    num_iterations: int = 5
    scale: StepScale = "rms"

    @property
    def needs_matrix(self) -> bool:
        """If the memory or the output does."""
        return self.memory.needs_matrix or self.output == "newton_schulz"

    def init(self, params: torch.Tensor) -> State:
        """The memory's own state."""
        return self.memory.init(params)

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        answer, state = self.memory.update(state, gradient, num_steps, weights)
        if self.output == "sign":
            # The sign of NaN would be 0, and hide it.
            return self.lr * torch.where(answer.isnan(), answer, answer.sign()), state
        if self.output == "tanh":
            return self.lr * unit_rms(answer).tanh(), state
        size = self.lr * step_scale(self.scale, *gradient.shape[-2:])
        return size * newton_schulz(answer, self.num_iterations), state
