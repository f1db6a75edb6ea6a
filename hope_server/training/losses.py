"""Losses and accuracies of the outer loop: weighted means over the scored tokens of a batch.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hope_server.training.batch import Batch

__all__ = ["batch_loss", "binary_cross_entropy", "cross_entropy", "row_accuracy", "token_accuracy", "token_hits"]

_IS_ALLOWED = 0.5


def batch_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the loss that the batch's kind of targets asks for; logits: [B, T, V]; result: scalar, nats."""
    if batch.is_multi_hot:
        return binary_cross_entropy(logits, batch.targets, batch.weights)
    return cross_entropy(logits, batch.targets, batch.weights)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of -log p(target), in nats; 0 where nothing is scored.

    logits: [B, T, V], read as float32 or wider. targets: [B, T] int64; those with weight 0 are not looked at.
    weights: [B, T], not negative. Result: scalar.
    """
    picked = weights.reshape(-1) > 0
    flat = _wide(logits.reshape(-1, logits.shape[-1])[picked])
    return _mean(
        functional.cross_entropy(flat, targets.reshape(-1)[picked], reduction="none"), weights.reshape(-1)[picked]
    )


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over tokens of the mean over the vocabulary of each entry's binary cross-entropy, nats.

    logits: [B, T, V], read as float32 or wider. targets: [B, T, V] from 0 to 1, 1 where a token may follow.
    weights: [B, T], not negative. Result: scalar; 0 where nothing is scored.
    """
    picked = weights.reshape(-1) > 0
    flat = _wide(logits.reshape(-1, logits.shape[-1])[picked])
    wanted = targets.reshape(-1, targets.shape[-1])[picked].to(flat.dtype)
    losses = functional.binary_cross_entropy_with_logits(flat, wanted, reduction="none").mean(-1)
    return _mean(losses, weights.reshape(-1)[picked])


def token_hits(logits: Tensor, batch: Batch) -> Tensor:
    """Return where the model is right, bool [B, T]: its likeliest token is the target, or its set is the whole set.

    logits: [B, T, V]. A token is in the model's set when its logit is above 0.
    """
    if batch.is_multi_hot:
        return ((logits > 0) == (batch.targets > _IS_ALLOWED)).all(-1)
    return logits.argmax(-1) == batch.targets


def token_accuracy(logits: Tensor, batch: Batch) -> float:
    """Return the share of right tokens among those with a weight above 0; NaN where nothing is scored."""
    scored = batch.weights > 0
    return float(token_hits(logits, batch)[scored].float().mean())


def row_accuracy(logits: Tensor, batch: Batch) -> float:
    """Return the share of rows whose scored tokens are all right; rows with nothing scored do not count."""
    scored = batch.weights > 0
    is_right = (token_hits(logits, batch) | ~scored).all(1)
    return float(is_right[scored.any(1)].float().mean())


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    weights = weights.to(losses.dtype)
    # An empty sum keeps the graph, so that a batch in which nothing is scored has a zero gradient.
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
