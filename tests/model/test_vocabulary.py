"""Looked-up log-probabilities against autograd through the plain softmax, in float64."""

import pytest
import torch

from hope_server.model.vocabulary import log_probs_at


def draw(num: int, num_looked_up: int, num_candidates: int, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Hidden states [N, 7], a head [V, 7] and distinct candidates [n, K]."""
    generator = torch.Generator().manual_seed(num + vocabulary)
    hidden = torch.randn(num, 7, generator=generator, dtype=torch.float64)
    head = torch.randn(vocabulary, 7, generator=generator, dtype=torch.float64)
    order = torch.rand(num_looked_up, vocabulary, generator=generator).argsort(dim=1)
    return hidden, head, order[:, :num_candidates]


@pytest.mark.parametrize(
    ("num", "num_looked_up", "num_candidates", "vocabulary"),
    [(1, 1, 1, 2), (5, 5, 3, 11), (64, 63, 1, 301), (9, 4, 301, 301), (3, 0, 1, 17), (2, 2, 1, 1)],
)
def test_values_and_gradients_are_those_of_the_plain_softmax(
    num: int, num_looked_up: int, num_candidates: int, vocabulary: int
) -> None:
    """Looked-up log-probabilities, the other rows' logits and the gradient of any function of the former."""
    hidden, head, candidates = draw(num, num_looked_up, num_candidates, vocabulary)
    weights = torch.randn(candidates.shape, dtype=torch.float64)
    mine, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found, logits = log_probs_at(mine, head, candidates)
    expected = (plain @ head.T)[:num_looked_up].log_softmax(-1).gather(1, candidates)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, (hidden @ head.T)[num_looked_up:], rtol=1e-12, atol=1e-12)
    (found * weights).square().sum().backward()
    (expected * weights).square().sum().backward()
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-10, atol=1e-11)


def test_scores_far_apart_stay_finite() -> None:
    """A token whose probability underflows keeps its log-probability, and a gradient."""
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    found, _ = log_probs_at(hidden, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, -1000.0, -2000.0]]))
    (gradient,) = torch.autograd.grad(found[0, 1], hidden)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0]]))


def test_a_value_that_is_not_finite_shows() -> None:
    """It reaches the loss and the gradient, where the learner looks for it."""
    hidden = torch.tensor([[float("nan"), 1.0]], requires_grad=True)
    found, _ = log_probs_at(hidden, torch.eye(2), torch.tensor([[0]]))
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert bool(found.isnan().all())
    assert bool(gradient.isnan().all())


def test_a_second_backward_pass_is_refused() -> None:
    """The buffer is used up by the first; a silent second pass would give something else."""
    hidden, head, candidates = draw(4, 4, 1, 11)
    found, _ = log_probs_at(hidden.requires_grad_(), head, candidates)
    torch.autograd.grad(found.sum(), hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(found.sum(), hidden)
