"""The token-by-token reference of `dgd_memory` against the stated loss, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import reference
from memory_cases import EXACT, MOMENTA, draw, draw_gates, draw_keys, paper_matrix_memory


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_reference_descends_the_stated_loss(objective: str, delta: float, momentum: str) -> None:
    """With the loss's gradient at the output as residual, every state is the paper's recurrence, transposed."""
    lead, num_tokens, key_size, value_size = (2, 3), 6, 5, 4
    weights = draw(*lead, key_size, value_size)
    keys, targets = draw_keys(*lead, num_tokens, key_size), draw(*lead, num_tokens, value_size)
    gates = draw_gates(*lead, num_tokens, momentum=momentum)
    residuals = -targets if objective == "dot" else keys @ weights - targets

    surprise = None if momentum == "none" else torch.zeros_like(weights)
    states, surprises = reference.write_tokens(weights, keys, residuals, gates, delta, surprise)

    assert len(states) == num_tokens + 1
    assert len(surprises) == (0 if momentum == "none" else num_tokens + 1)
    for row in range(lead[0]):
        for head in range(lead[1]):
            at = (row, head)
            own = gates.mapped(lambda rate, at=at: rate[at])
            expected = paper_matrix_memory(weights[at].T, keys[at], targets[at], own, delta, objective)
            torch.testing.assert_close(torch.stack(states)[:, row, head], torch.stack(expected).mT, **EXACT)


def test_the_residual_is_the_gradient_at_the_output() -> None:
    """Key times residual is the gradient of half the squared error, without a factor of 2."""
    weights, key, target = draw(5, 4).requires_grad_(), draw_keys(1, 5)[0], draw(4)
    (gradient,) = torch.autograd.grad(0.5 * (key @ weights - target).square().sum(), weights)

    torch.testing.assert_close(gradient, torch.outer(key, key @ weights - target).detach(), **EXACT)


def test_surprise_goes_on_from_the_chunk_before() -> None:
    """Writing six tokens at once equals writing two, then four from the memory and momentum that those left."""
    gates = draw_gates(6, momentum="some")
    weights, surprise, keys, residuals = draw(5, 4), draw(5, 4), draw_keys(6, 5), draw(6, 4)
    whole, whole_surprise = reference.write_tokens(weights, keys, residuals, gates, 1.0, surprise)

    early, late = gates.mapped(lambda rate: rate[:2]), gates.mapped(lambda rate: rate[2:])
    states, surprises = reference.write_tokens(weights, keys[:2], residuals[:2], early, 1.0, surprise)
    states, surprises = reference.write_tokens(states[-1], keys[2:], residuals[2:], late, 1.0, surprises[-1])

    assert torch.equal(states[-1], whole[-1])
    assert torch.equal(surprises[-1], whole_surprise[-1])
