"""Titans layers small enough to be written out by hand: specs, slow weights and inputs that tests share."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import torch

from hope_server.model.config import TitansSpec
from hope_server.model.titans_params import TitansParams, random_titans

WIDTH, ROWS, EPS = 10, 2, 1e-5
LONGEST = 23
CHUNK_SIZES = (1, 5, 16)
SPEC = TitansSpec((0,), num_heads=2, head_dim=4, hidden_size=3)
ADAPTIVE = ("k", "v", "q", "lr", "retention")
SUBSETS = tuple(chain.from_iterable(combinations(ADAPTIVE, size) for size in range(len(ADAPTIVE) + 1)))

# The dot product without decay adds up what it is told: the same token ten times, at a step size of 1, makes a memory
# of norm 10, where a head of size 16 may have 6 from one write.
ADDING = TitansSpec(
    (0,),
    num_heads=3,
    head_dim=16,
    objective="dot",
    dgd_scope="none",
    adaptive=(),
    self_targets=False,
    has_retention=False,
    has_momentum=True,
    conv_size=1,
)


def drawn(spec: TitansSpec, seed: int = 0) -> TitansParams:
    """Slow weights whose rates, memories and branch all matter, and under which MLP memories stay of size 1."""
    params = random_titans(spec, WIDTH, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    bias = params.rate_bias.clone()
    if spec.has_momentum:
        bias[-spec.num_heads :] *= 0.3
    strength = 3 if spec.memory == "matrix" else 1
    changed = replace(
        params,
        rates=10 * params.rates,
        rate_bias=bias,
        out_norm=1 + 0.3 * torch.randn(spec.head_dim, generator=generator, dtype=torch.float64),
        initial={name: strength * weight for name, weight in params.initial.items()},
    )
    return changed if params.branch is None else replace(changed, branch=torch.full_like(params.branch, 0.7))


def inputs(tokens: int = LONGEST, seed: int = 2) -> torch.Tensor:
    """Normalised inputs [B, T, D]."""
    return torch.randn(ROWS, tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
