"""Token-by-token truth for the write of a linear memory: slow, plain, and what every fast form is checked against."""

from __future__ import annotations

import torch

from hope_kernels.dgd_memory.gates import Gates


def write_tokens(
    weights: torch.Tensor,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    gates: Gates,
    delta: float,
    surprise: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Write C tokens one after another into a linear memory; keys and residuals were taken at the chunk's start.

    weights, surprise [..., K, V]: the memory, keys first, and its momentum (needed where `gates.momentum` is given).
    keys [..., C, K]; residuals [..., C, V]: gradient of the token's loss at the memory's output, at the chunk's start;
    delta: 1 with the decay along the key of delta gradient descent, 0 without.
    Returns the memory after 0..C tokens, and its momentum (empty without momentum).

        surprise_t = momentum_t surprise_{t-1} - lr_t key_t residual_t'
        weights_t  = (retention_t I - delta lr_t key_t key_t') weights_{t-1} + surprise_t

    Source: NL eq. 88, 90, 92, 93; momentum as in Titans eq. 9-10.
    """
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    states, surprises = [weights], [] if surprise is None else [surprise]
    for t in range(keys.shape[-2]):
        key, residual = keys[..., t, :], residuals[..., t, :]
        lr = gates.lr[..., t, None, None]
        retention = gates.log_retention[..., t, None, None].exp()
        step = -lr * key[..., :, None] * residual[..., None, :]
        if gates.momentum is not None:
            step = gates.momentum[..., t, None, None] * surprises[-1] + step
            surprises.append(step)
        transition = retention * eye - delta * lr * key[..., :, None] * key[..., None, :]
        states.append(transition @ states[-1] + step)
    return states, surprises
