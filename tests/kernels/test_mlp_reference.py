"""The token-by-token reference of `mlp_memory` against the paper's recurrence and finite differences."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.mlp_memory import predict, reference
from hope_kernels.mlp_memory.chunk import through_gelu
from memory_cases import EXACT, MOMENTA, draw, draw_gates, draw_keys, paper_mlp_memory

SCOPES = ["layer_input", "k_only", "none"]


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("dgd_scope", SCOPES)
@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_reference_is_the_papers_recurrence(
    objective: str, dgd_scope: str, is_residual: bool, momentum: str
) -> None:
    """Both layers after every token, for both losses, all scopes of the decay, with and without momentum."""
    first, second = draw(4, 7), draw(7, 4 if is_residual else 3)
    keys, targets = draw_keys(5, 4), draw(5, second.shape[1])
    gates = draw_gates(5, momentum=momentum)
    kind = {"objective": objective, "dgd_scope": dgd_scope, "is_residual": is_residual}

    firsts, seconds = reference.write_tokens(first, second, keys, targets, gates, **kind)
    expected = paper_mlp_memory((first, second), keys, targets, gates, **kind)

    for t, state in enumerate(expected):
        torch.testing.assert_close(firsts[t], state[0].detach(), **EXACT)
        torch.testing.assert_close(seconds[t], state[1].detach(), **EXACT)


@pytest.mark.parametrize("is_residual", [True, False])
def test_the_loss_is_that_of_what_is_retrieved(is_residual: bool) -> None:
    """Half the squared distance, or minus the dot product, between the target and what `predict` gives for the key."""
    first, second, key, target = draw(4, 6), draw(6, 4), draw_keys(1, 4)[0], draw(4)
    found = predict(first, second, key[None], is_residual=is_residual)[0]

    squared = reference.loss(first, second, key, target, "l2", is_residual)
    torch.testing.assert_close(squared, (found - target).square().sum() / 2, **EXACT)
    torch.testing.assert_close(
        reference.loss(first, second, key, target, "dot", is_residual), -(found * target).sum(), **EXACT
    )


def test_the_gradient_passes_the_nonlinearity() -> None:
    """It is multiplied by the exact GELU's slope, far from zero too, and can itself be differentiated, twice."""
    x = torch.linspace(-12, 12, 101, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    slope = normal.cdf(x) + x * normal.log_prob(x).exp()
    torch.testing.assert_close(through_gelu(x, torch.full_like(x, 3.0)), 3 * slope, **EXACT)

    inputs = (draw(3).requires_grad_(), draw(3).requires_grad_())
    assert torch.autograd.gradcheck(through_gelu, inputs)
    assert torch.autograd.gradgradcheck(through_gelu, inputs)
