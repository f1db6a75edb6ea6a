"""The rules by name: those that work from a gradient alone, as inner rules of levels and as outer optimizers."""

from __future__ import annotations

from collections.abc import Callable

from hope_server.optim.adam import Adam, AdamW
from hope_server.optim.deep import DeepMomentum
from hope_server.optim.delta import DeltaMomentum
from hope_server.optim.gradient import FeatureMomentum, GradientDescent, Momentum, PreconditionedMomentum
from hope_server.optim.m3 import M3
from hope_server.optim.muon import Muon
from hope_server.optim.rules import UpdateRule

Betas = tuple[float, float]

_MAKERS: dict[str, Callable[[float, Betas], UpdateRule]] = {
    "sgd": lambda lr, _betas: GradientDescent(lr),
    "momentum": lambda lr, betas: Momentum(lr, betas[0]),
    "preconditioned": lambda lr, betas: PreconditionedMomentum(lr, betas),
    "delta_momentum": lambda lr, betas: DeltaMomentum(lr, betas[0], second_share=betas[1]),
    "deep_momentum": lambda lr, _betas: DeepMomentum(lr),
    "feature_momentum": lambda lr, betas: FeatureMomentum(lr, betas[0]),
    "muon": lambda lr, betas: Muon(lr, betas[0]),
    "adam": lambda lr, betas: Adam(lr, betas),
    "adamw": lambda lr, betas: AdamW(lr, betas),
    "m3": lambda lr, betas: M3(lr, (betas[0], betas[1], betas[0])),
}

RULE_NAMES = tuple(_MAKERS)
"""Every rule that works from a gradient alone."""


def make_rule(name: str, lr: float, betas: Betas = (0.9, 0.99)) -> UpdateRule:
    """The rule of this name; its other hyperparameters are the class's own defaults.

    betas: shares of the past kept in the first moment (or retention of a delta memory) and in the second.
    Raises ValueError with the known names.
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown rule {name!r}; known are {', '.join(RULE_NAMES)}")
    return _MAKERS[name](lr, betas)
