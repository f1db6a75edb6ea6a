"""Log-probabilities of a few tokens out of a large vocabulary, with a backward pass that reuses the forward's buffer.

Shapes: N predictions, n of them looked up (the first n), K tokens each, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def log_probs_at(
    hidden: torch.Tensor, head: torch.Tensor, candidates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of candidates [n, K], n at most N, under the softmax of hidden [N, D] times head [V, D].

    Returns log-probabilities [n, K], differentiable once and in `hidden` alone, and the logits [N - n, V] of the
    predictions that have no candidates. It is `log_softmax(hidden @ head.T)[:n].gather(1, candidates)` with one buffer
    of N V numbers where autograd keeps four.
    """
    log_probs, logits = _LogProbsAt.apply(hidden, head, candidates)  # type: ignore[no-untyped-call]
    return log_probs, logits


class _LogProbsAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, candidates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_looked_up = candidates.shape[0]
        # [V, N]: with few predictions, faster than the other way round. Sums over the vocabulary are never of halves.
        scores = (head @ hidden.T).to(hidden.dtype)
        logits = scores[:, num_looked_up:].T.contiguous()
        found = scores[:, :num_looked_up].gather(0, candidates.T)
        highest = scores.amax(dim=0)
        probs = scores.sub_(highest).exp_()
        total = probs.sum(dim=0)
        ctx.save_for_backward(head, candidates)
        ctx.probs = probs.div_(total)
        ctx.mark_non_differentiable(logits)
        return (found - (highest + total.log())[:num_looked_up]).T, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        head, candidates = ctx.saved_tensors
        if ctx.probs is None:
            raise RuntimeError("log_probs_at can be differentiated once only")
        change, ctx.probs = ctx.probs, None
        pull = torch.zeros(change.shape[1], dtype=change.dtype)
        pull[: len(grad)] = grad.sum(dim=1)
        change.mul_(-pull)
        change[:, : len(grad)].scatter_add_(0, candidates.T, grad.T)
        return change.T @ head, None, None
