"""The rules as `torch.optim.Optimizer`s, for the outer loop.

A parameter of two or more dimensions is a batch of matrices [..., m, n] under a matrix rule, its leading dimensions
rows that never interact; one of fewer dimensions falls back to Adam, as does any in a group with `is_matrix` False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch

from hope_server.optim.adam import Adam
from hope_server.optim.registry import Betas, make_rule
from hope_server.optim.rules import State, UpdateRule


class RuleOptimizer(torch.optim.Optimizer):
    """Steps parameters by an UpdateRule. Options of a parameter group:

    lr; weight_decay: share `lr * weight_decay` of each weight lost at a step, apart from the gradient;
    is_matrix: whether the rule may take the group's parameters as matrices; fallback_scale: lr of Adam, where it
    stands in for a matrix rule, over lr. A parameter without gradient is left alone.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        rule: UpdateRule,
        weight_decay: float = 0.0,
        fallback: Adam | None = None,
        fallback_scale: float = 1.0,
    ) -> None:
        self._rule = rule
        self._fallback = fallback or Adam(rule.lr)
        defaults = {
            "lr": rule.lr,
            "weight_decay": weight_decay,
            "is_matrix": True,
            "fallback_scale": fallback_scale,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change every parameter that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group)
        return loss

    def _step_one(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        lr = float(group["lr"])
        rule = replace(self._rule, lr=lr)
        if rule.needs_matrix and (parameter.ndim < 2 or not group["is_matrix"]):
            rule = replace(self._fallback, lr=lr * float(group["fallback_scale"]))
        rows = parameter.flatten(0, -3) if rule.needs_matrix and parameter.ndim > 2 else parameter[None]
        kept = self.state[parameter]
        if not kept:
            kept.update({"step": torch.zeros((), dtype=torch.float32), **rule.init(rows)})
        kept["step"] += 1
        steps = torch.full((rows.shape[0],), int(kept["step"]), device=parameter.device)
        state: State = {name: tensor for name, tensor in kept.items() if name != "step"}
        weights = rows.detach()
        change, state = rule.update(state, gradient.reshape(rows.shape), steps, weights)
        kept.update(state)
        if group["weight_decay"]:
            change = change - lr * float(group["weight_decay"]) * weights
        parameter.add_(change.reshape(parameter.shape))


def make_optimizer(
    name: str,
    params: Mapping[str, torch.Tensor],
    lr: float,
    betas: Betas = (0.9, 0.99),
    weight_decay: float = 0.0,
    adam_names: tuple[str, ...] = ("embed", "head"),
    fallback_scale: float = 1.0,
) -> RuleOptimizer:
    """An outer optimizer by rule name over named parameters.

    adam_names: parameters that matrix rules leave to Adam whatever their shape, for their rows are looked up, not
    multiplied; vectors are neither decayed nor orthogonalised. Raises ValueError for an unknown name.
    """
    rule = make_rule("adam" if name == "adamw" else name, lr, betas)
    groups: list[dict[str, Any]] = [
        {"params": [p for key, p in params.items() if p.ndim >= 2 and key not in adam_names]},
        {"params": [p for key, p in params.items() if p.ndim >= 2 and key in adam_names], "is_matrix": False},
        {"params": [p for p in params.values() if p.ndim < 2], "is_matrix": False, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return RuleOptimizer(groups, rule, weight_decay, Adam(lr, betas), fallback_scale)
