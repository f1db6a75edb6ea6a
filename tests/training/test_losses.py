"""The losses and accuracies against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from hope_server.training.batch import Batch
from hope_server.training.losses import batch_loss, row_accuracy, token_accuracy


def _batch(seed: int = 0) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (3, 5), generator=generator)
    weights = torch.randint(3, (3, 5), generator=generator).double()
    return logits, Batch(torch.zeros(3, 5, dtype=torch.long), targets, weights)


def test_cross_entropy_is_the_weighted_mean_of_the_targets_log_probabilities() -> None:
    """Every position counts by its weight, and the weights add up to one."""
    logits, batch = _batch()
    total = sum(
        float(batch.weights[b, t] * -torch.log_softmax(logits[b, t], 0)[batch.targets[b, t]])
        for b in range(3)
        for t in range(5)
    )
    assert float(batch_loss(logits, batch)) == pytest.approx(total / float(batch.weights.sum()), abs=1e-12)


def test_binary_cross_entropy_is_the_weighted_mean_over_entries() -> None:
    """A set of allowed tokens is scored entry by entry."""
    logits, batch = _batch()
    allowed = (torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    prob = torch.sigmoid(logits)
    each = -(allowed * prob.log() + (1 - allowed) * (1 - prob).log()).mean(-1)
    expected = (each * batch.weights).sum() / batch.weights.sum()
    found = batch_loss(logits, Batch(batch.tokens, allowed, batch.weights))
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


def test_a_position_without_weight_has_no_gradient_whatever_its_target() -> None:
    """Targets of positions that are not scored may be out of range."""
    logits, batch = _batch()
    targets = batch.targets.masked_fill(batch.weights == 0, -100)
    logits.requires_grad_()
    batch_loss(logits, Batch(batch.tokens, targets, batch.weights)).backward()
    assert logits.grad is not None
    assert bool((logits.grad[batch.weights == 0] == 0).all())
    assert bool((logits.grad[batch.weights > 0] != 0).any())


def test_a_batch_in_which_nothing_is_scored_has_no_loss_and_no_gradient() -> None:
    """The loss of nothing is 0, not NaN."""
    logits, batch = _batch()
    logits.requires_grad_()
    loss = batch_loss(logits, Batch(batch.tokens, batch.targets, torch.zeros(3, 5)))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and bool((logits.grad == 0).all())


def test_token_and_row_accuracy_count_scored_positions_only() -> None:
    """One wrong scored token spoils its row; a wrong token without weight spoils nothing."""
    targets = torch.tensor([[0, 1], [2, 0], [1, 1]])
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    guesses = torch.tensor([[0, 2], [2, 1], [0, 0]])
    logits = torch.nn.functional.one_hot(guesses, 3).float()
    batch = Batch(targets, targets, weights)
    assert token_accuracy(logits, batch) == pytest.approx(2 / 3)
    assert row_accuracy(logits, batch) == 0.5


def test_a_set_is_right_only_when_it_is_the_whole_set() -> None:
    """A logit above 0 claims the token; every claim must be right."""
    targets = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    logits = torch.tensor([[[2.0, -1.0], [2.0, -1.0]]])
    batch = Batch(torch.zeros(1, 2, dtype=torch.long), targets, torch.ones(1, 2))
    assert token_accuracy(logits, batch) == 0.5
    assert row_accuracy(logits, batch) == 0.0


@pytest.mark.parametrize(
    ("tokens", "targets", "weights"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.long), torch.zeros(2)),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 2)),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 3)),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2), torch.zeros(1, 2)),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(
    tokens: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> None:
    """Shapes and kinds are checked where a batch is made."""
    with pytest.raises(ValueError, match=r"need|wrong kind"):
        Batch(tokens, targets, weights)
