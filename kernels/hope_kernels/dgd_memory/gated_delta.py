"""A chunk's write in the terms of the gated delta rule, for which other libraries have operators.

Shapes: C tokens of the chunk, V value size; any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_kernels.dgd_memory.gates import Gates


@dataclass(frozen=True, slots=True)
class GatedDeltaRule:
    """Inputs of the gated delta rule: values [..., C, V], beta and log_decay [..., C].

        memory_t = decay_t (I - beta_t key_t key_t') memory_{t-1} + beta_t key_t values_t'

    beta may be above 1, which some operators refuse.
    """

    values: torch.Tensor
    beta: torch.Tensor
    log_decay: torch.Tensor


def as_gated_delta_rule(residuals: torch.Tensor, gates: Gates) -> GatedDeltaRule:
    """Give the gated delta rule that writes what `write_chunk` writes with delta 1 and without momentum.

    residuals [..., C, V]: gradient at the outputs, at the chunk's start. Holds for one chunk: the values of the next
    one depend on the memory that this one leaves. Raises ValueError for rates with momentum: that rule has none.
    Source: NL eq. 93.
    """
    if gates.momentum is not None:
        raise ValueError("the gated delta rule has no momentum; leave it out of the rates")
    retention = gates.log_retention.exp()
    return GatedDeltaRule(-retention[..., None] * residuals, gates.lr / retention, gates.log_retention)
