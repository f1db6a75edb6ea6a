"""The slow weights of a Titans layer, and how they are drawn before training.

Shapes: D model width, H heads, K head size, n rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hope_kernels.dgd_memory.layout import MIN_LOG_RETENTION

from hope_server.model.config import TitansSpec
from hope_server.model.memories import Weights, make_memories

SUM_TOKENS = 1e6
"""Tokens that past surprise carries on for where a head starts as a running sum."""
BRIEF_MOMENTUM = 0.1
"""Share of past surprise that other heads start from."""
_BACK = ((0, 1), (1, 2), (2, 3), (0, 0))
"""How many tokens back a head's queries and keys look at first, in turn over heads; the fourth finds what is alike."""


@dataclass(frozen=True, slots=True)
class TitansParams:
    """One layer's slow weights.

    qkv [3 H K, D]; rates [n H, D] and rate_bias [n H] for lr, then retention and momentum where they exist; conv
    [(3 K + n) H, window], over queries, keys, values and rates; out_norm [K]; out_gate [H K, D]; out [D, H K]; branch
    [1]: the gate beside attention, None without attention; initial: the memories at a session's start, [H, ...] each.
    """

    conv: torch.Tensor
    qkv: torch.Tensor
    rates: torch.Tensor
    rate_bias: torch.Tensor
    out_norm: torch.Tensor
    out_gate: torch.Tensor
    out: torch.Tensor
    initial: Weights
    branch: torch.Tensor | None = None

    def named(self) -> dict[str, torch.Tensor]:
        """Every weight by name."""
        own = {name: getattr(self, name) for name in _TENSORS}
        out = {name: tensor for name, tensor in own.items() if tensor is not None}
        return out | {f"initial.{name}": tensor for name, tensor in self.initial.items()}

    def replaced(self, tensors: dict[str, torch.Tensor]) -> TitansParams:
        """The same structure around other tensors, named as `named` names them."""
        own = {name: tensors[name] for name in _TENSORS if getattr(self, name) is not None}
        return replace(self, **own, initial={name: tensors[f"initial.{name}"] for name in self.initial})


_TENSORS = ("conv", "qkv", "rates", "rate_bias", "out_norm", "out_gate", "out", "branch")


def random_titans(spec: TitansSpec, width: int, generator: torch.Generator) -> TitansParams:
    """Draw a layer's slow weights, in float64 on the CPU.

    Rates begin spread over the heads, each from the first to the last value of its range.
    """
    memories = make_memories(spec)
    num_rates = 1 + int(spec.has_retention) + int(spec.has_momentum)
    heads, inner = spec.num_heads, spec.num_heads * spec.head_dim

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    # A key begins as the token before the one that a query begins as, so that every head finds what followed.
    qkv = normal(3, heads, spec.head_dim, width, scale=width**-0.5)
    qkv[1] = qkv[0]
    conv = normal((3 * spec.head_dim + num_rates) * heads, spec.conv_size, scale=0.1)
    last = spec.conv_size - 1
    back = torch.zeros(3, heads, spec.head_dim, dtype=torch.long)
    for head in range(heads):
        back[0, head], back[1, head] = _BACK[head % len(_BACK)]
    channels = torch.cat([back.flatten(), torch.zeros(num_rates * heads, dtype=torch.long)])
    conv[torch.arange(len(conv)), last - channels.clamp(max=last)] += 1.0
    sums = torch.arange(heads) < spec.num_sums
    bias = [torch.logit(_spread(spec.lr_range, heads))]
    if spec.has_retention:
        keeping = torch.log(torch.expm1(1 / _spread(spec.retention_range, heads)))
        bias.append(keeping.masked_fill(sums, -MIN_LOG_RETENTION))
    if spec.has_momentum:
        shares = torch.where(sums, 1 - 1 / SUM_TOKENS, BRIEF_MOMENTUM)
        bias.append(torch.logit(shares.double()))
    initial = {}
    for name, shape in memories.shapes().items():
        initial[name] = normal(*shape, scale=0.1 / shape[-2] ** 0.5 if name == "weights" else 1 / shape[-2] ** 0.5)
    if not spec.is_residual and not spec.self_targets:
        # Nothing is needed to start from, and small first steps would drown in it.
        memories.clear_main(initial)
    return TitansParams(
        conv=conv,
        qkv=qkv.reshape(3 * inner, width),
        rates=normal(num_rates * heads, width, scale=0.1 * width**-0.5),
        rate_bias=torch.cat(bias),
        out_norm=torch.ones(spec.head_dim, dtype=torch.float64),
        out_gate=normal(inner, width, scale=width**-0.5),
        out=normal(width, inner, scale=0.2 * inner**-0.5),
        initial=initial,
        branch=torch.zeros(1, dtype=torch.float64) if spec.beside_attention else None,
    )


def _spread(ends: tuple[float, float], heads: int) -> torch.Tensor:
    """One number a head, from the first end to the last in even ratios, float64."""
    return torch.logspace(math.log10(ends[0]), math.log10(ends[1]), heads, dtype=torch.float64)
