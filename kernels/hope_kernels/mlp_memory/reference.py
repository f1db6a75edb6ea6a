"""Token-by-token truth for the write of an MLP memory, its gradients left to autograd."""

from __future__ import annotations

import torch
from torch.nn import functional

from hope_kernels.dgd_memory.gates import Gates


def loss(
    first: torch.Tensor,
    second: torch.Tensor,
    key: torch.Tensor,
    target: torch.Tensor,
    objective: str,
    is_residual: bool,
) -> torch.Tensor:
    """The inner loss of one token: half the squared error (`l2`) or minus the dot product (`dot`).

    first [K, F], second [F, V], key [K], target [V]; is_residual: the key itself is added to what is retrieved (K = V).
    Source: NL eq. 88 (l2, with the factor g = 1), eq. 92 (dot), M(z) of eq. 89.
    """
    found = functional.gelu(key @ first) @ second
    if is_residual:
        found = found + key
    return 0.5 * (found - target).square().sum() if objective == "l2" else -(found * target).sum()


def write_tokens(
    first: torch.Tensor,
    second: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    gates: Gates,
    *,
    objective: str = "l2",
    dgd_scope: str = "layer_input",
    is_residual: bool = True,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Write C tokens one after another, every gradient taken by autograd at the memory of the chunk's start.

    first [K, F], second [F, V]; keys [C, K]; targets [C, V]. Each layer decays along its own input: the key, and the
    hidden activation s at the chunk's start, whose rate is lr / (1 + |s|^2).
    Returns both layers after 0..C tokens. Source: NL eq. 88-90, read as PAPER.md §3 says; momentum as Titans eq. 9-10.
    """
    firsts, seconds = [first], [second]
    surprises = [torch.zeros_like(first), torch.zeros_like(second)]
    for t in range(keys.shape[0]):
        leaves = [first.detach().requires_grad_(), second.detach().requires_grad_()]
        gradients = torch.autograd.grad(loss(leaves[0], leaves[1], keys[t], targets[t], objective, is_residual), leaves)
        hidden = functional.gelu(keys[t] @ first)
        inputs = (keys[t], hidden)
        deltas = (float(dgd_scope != "none"), float(dgd_scope == "layer_input"))
        rates = (gates.lr[t], gates.lr[t] / (1 + hidden.square().sum()))
        for index, kept in enumerate((firsts, seconds)):
            share = torch.zeros(()) if gates.momentum is None else gates.momentum[t]
            surprises[index] = share * surprises[index] - rates[index] * gradients[index]
            decay = gates.log_retention[t].exp() * torch.eye(len(inputs[index]), dtype=first.dtype)
            decay = decay - deltas[index] * rates[index] * torch.outer(inputs[index], inputs[index])
            kept.append(decay @ kept[-1] + surprises[index])
    return firsts, seconds
