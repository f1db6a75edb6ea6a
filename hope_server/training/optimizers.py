"""The outer optimizer of a recipe and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hope_server.errors import SettingsError
from hope_server.optim.outer import make_optimizer
from hope_server.optim.registry import RULE_NAMES

__all__ = ["OptimizerSpec", "build_optimizer", "check_optimizer", "clip_gradients", "lr_at", "set_lr"]

_LOOKED_UP = ("embed", "head")
_DELICATE = ("conv", "rates")


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """How slow weights follow their gradients.

    name: adamw (torch's own) or a rule of `hope_server.optim`. warmup: steps of linear rise from 0.
    final_share: share of lr at the end of a cosine. clip: gradient norm above which the gradient is scaled down, 0 for
    never. fallback_scale: lr of Adam over lr, where a matrix rule leaves vectors and looked-up rows to it.
    """

    name: str = "adamw"
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    final_share: float = 0.1
    clip: float = 1.0
    fallback_scale: float = 1.0


def check_optimizer(spec: OptimizerSpec, where: str) -> None:
    """Raise SettingsError for a name that is unknown and for numbers that cannot be."""
    if spec.name not in RULE_NAMES:
        raise SettingsError(f"{where}: {spec.name!r} is unknown; known are {', '.join(RULE_NAMES)}")
    for name in ("lr", "fallback_scale"):
        if getattr(spec, name) <= 0:
            raise SettingsError(f"{where}: {name} is {getattr(spec, name)}; it must be above 0")
    for name in ("weight_decay", "warmup", "clip"):
        if getattr(spec, name) < 0:
            raise SettingsError(f"{where}: {name} is {getattr(spec, name)}; it must not be negative")
    if not all(0 <= share < 1 for share in spec.betas) or not 0 <= spec.final_share <= 1:
        raise SettingsError(f"{where}: betas {list(spec.betas)} must lie in 0..1, 1 excluded, final_share in 0..1")


def build_optimizer(spec: OptimizerSpec, tensors: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer over named leaves; vectors are not decayed. Raises ValueError for an unknown name."""
    if spec.name != "adamw":
        by_adam = tuple(name for name in tensors if _is_left_to_adam(name))
        return make_optimizer(spec.name, tensors, spec.lr, spec.betas, spec.weight_decay, by_adam, spec.fallback_scale)
    matrices = [tensor for tensor in tensors.values() if tensor.ndim >= 2]
    vectors = [tensor for tensor in tensors.values() if tensor.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=spec.lr, betas=spec.betas)


def _is_left_to_adam(name: str) -> bool:
    """Rows that are looked up; and what a step of full rank throws off: gates, convolutions and memories' starts.

    Measured: with gates orthogonalised, retention fell to nothing within a few hundred steps, and nothing was recalled.
    """
    return name in _LOOKED_UP or name.split(".")[-1] in _DELICATE or ".initial." in name


def lr_at(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of a run of `steps`."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    if spec.schedule == "constant":
        return spec.lr
    share = (step - spec.warmup) / max(1, steps - spec.warmup)
    return spec.lr * (spec.final_share + (1 - spec.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of an optimizer the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(tensors: Mapping[str, Tensor], limit: float) -> float:
    """Scale the gradients down together to a norm of `limit`, 0 for never, and return the norm that they had."""
    leaves = [tensor for tensor in tensors.values() if tensor.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(leaves, limit or math.inf))
