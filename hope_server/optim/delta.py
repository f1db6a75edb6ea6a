"""Rules that regress: what a memory already holds decides what is written (the delta rule).

Delta momentum regresses on gradients alone. Delta gradient descent and its generalisation regress a layer's local
surprise on its inputs; they need both, so they are not rules of a CMS level, whose learner has gradients only.
Shapes: B rows, T tokens, weights [m, n] of a layer from n inputs to m outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from hope_server.optim.gradient import precondition
from hope_server.optim.rules import State, UpdateRule, row_norm


@dataclass(frozen=True, slots=True)
class DeltaMomentum(UpdateRule):
    """`W <- W + m`, `m <- m (retention I - k^T k) - lr P g`: momentum that forgets along the gradient it takes in.

    One step of gradient descent on half of ||m k^T + lr P||^2 with a share `retention` of m kept, 0 to 1.
    key: `raw` is the printed k = g; `unit` scales g to norm 1, so that forgetting does not depend on the loss's scale
    (raw keys of norm above sqrt(1 + retention) diverge).
    preconditioner: P is `identity`, or `diagonal`, one over the root mean square of past gradients, of which
    second_share is kept. Source: NL eq. 48-49.
    """

    retention: float = 0.9
    key: Literal["unit", "raw"] = "unit"
    preconditioner: Literal["diagonal", "identity"] = "diagonal"
    second_share: float = 0.99
    epsilon: float = 1e-8

    @property
    def needs_matrix(self) -> bool:
        """Yes: the key's outer product acts on the columns."""
        return True

    def init(self, params: torch.Tensor) -> State:
        """first_moment [B, m, n], in units of the gradient's value; second_moment with the diagonal preconditioner."""
        state = {"first_moment": torch.zeros_like(params)}
        return state | ({"second_moment": torch.zeros_like(params)} if self.preconditioner == "diagonal" else {})

    def update(
        self, state: State, gradient: torch.Tensor, num_steps: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """See UpdateRule."""
        out: State = {}
        value, key = gradient, gradient
        if self.preconditioner == "diagonal":
            value, out["second_moment"] = precondition(state, gradient, self.second_share, self.epsilon, num_steps)
        if self.key == "unit":
            norm = row_norm(gradient)
            key = gradient / torch.where(norm > 0, norm, torch.ones_like(norm))
        past = state["first_moment"]
        is_wide = gradient.shape[-2] <= gradient.shape[-1]
        forgotten = (past @ key.mT) @ key if is_wide else past @ (key.mT @ key)
        out["first_moment"] = self.retention * past - forgotten + value
        return -self.lr * out["first_moment"], out


def proximal_change(weights: torch.Tensor, inputs: torch.Tensor, values: torch.Tensor, lr: float) -> torch.Tensor:
    """Change [B, m, n] from weights W0 to argmin_W sum_t ||W x_t - u_t||^2 / 2 + ||W - W0||^2 / (2 lr), exactly.

    inputs x [B, T, n], values u [B, T, m]. Woodbury's identity: one system of T equations; for one token it is
    Sherman-Morrison's `lr / (1 + lr ||x||^2) (u - W0 x) x^T`. Source: NL eq. 56-57, appendix C.
    """
    error = lr * (values - inputs @ weights.mT)
    gram = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device) + lr * inputs @ inputs.mT
    change: torch.Tensor = torch.linalg.solve(gram, error).mT @ inputs
    return change


@dataclass(frozen=True, slots=True)
class DeltaGradientDescent:
    """`W <- W (I - s x x^T) + s u x^T`, s = lr / (1 + lr ||x||^2), u = -dL/dy: the proximal L2 step on a layer.

    Several tokens are one joint problem, whatever their order. Source: NL eq. 56-57.
    """

    lr: float

    def init(self, params: torch.Tensor) -> State:
        """No state."""
        return {}

    def update(
        self, state: State, weights: torch.Tensor, inputs: torch.Tensor, local_surprise: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Return the change of weights [B, m, n] for the layer's inputs [B, T, n] and -dL/dy [B, T, m]; no state."""
        return proximal_change(weights, inputs, local_surprise, self.lr), {}


@dataclass(frozen=True, slots=True)
class GeneralizedGradientDescent:
    """`W <- argmin_W loss(W x, u) + Ret(W, recent W)`, u made by the memory itself.

    objective: `l2`, half the squared error; `dot`, the negative inner product of W x and u.
    Ret is the mean square distance to the `num_recent` last weights over 2 lr, older ones weighing `recency` times the
    next newer one. With one recent weight, `l2` is delta gradient descent and `dot` gradient descent.
    Source: NL eq. 59-60.
    """

    lr: float
    objective: Literal["l2", "dot"] = "l2"
    num_recent: int = 1
    recency: float = 0.5

    def init(self, params: torch.Tensor) -> State:
        """recent [B, num_recent - 1, m, n]: earlier weights, newest first."""
        return {"recent": params.new_zeros(params.shape[0], self.num_recent - 1, *params.shape[1:])}

    def update(
        self,
        state: State,
        weights: torch.Tensor,
        inputs: torch.Tensor,
        values: torch.Tensor,
        num_steps: torch.Tensor,
    ) -> tuple[torch.Tensor, State]:
        """Return the change of weights [B, m, n], and the new state.

        inputs [B, T, n]; values [B, T, m]: u = f_W(x) at these weights, for instance the layer's local surprise
        -dL/dy; num_steps [B] counts this step, from 1.
        """
        known = torch.cat([weights[:, None], state["recent"]], dim=1)
        ages = torch.arange(self.num_recent, dtype=weights.dtype, device=weights.device)
        shares = torch.where(ages < num_steps[:, None], self.recency**ages, 0.0)
        anchor = torch.einsum("bc,bcmn->bmn", shares / shares.sum(dim=1, keepdim=True), known)
        if self.objective == "l2":
            moved = proximal_change(anchor, inputs, values, self.lr)
        else:
            moved = self.lr * values.mT @ inputs
        return anchor + moved - weights, {"recent": known[:, :-1]}
