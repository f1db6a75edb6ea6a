"""The families of models by name: each is a HopeConfig of the same code, told apart by a few fields.

hope            self-modifying Titans, then MLPs with levels; no attention         NL eq. 94-97
hope-attention  attention, then MLPs with levels                                   NL §8.3
retrofit        a pretrained network, levels stacked on its MLPs, and, where blocks are named, a Titans branch
                beside their attention, closed at first                            NL §7.3
transformer     attention and MLPs                                                 baseline
titans          MLP memories of static keys and values, momentum and retention     baseline, Titans eq. 8-14
delta           the gated delta rule: a matrix of static keys and values           baseline, NL eq. 92
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import torch

from hope_server.errors import SettingsError
from hope_server.model.config import CmsForm, HopeConfig, LevelSpec, ModelConfig, TitansSpec, WindowSpec
from hope_server.model.params import Params
from hope_server.model.titans_params import random_titans

Family = Literal["hope", "hope-attention", "retrofit", "transformer", "titans", "delta"]
FAMILY_NAMES: tuple[Family, ...] = get_args(Family)

_ATTENTION = frozenset({"hope-attention", "retrofit", "transformer"})
_WITHOUT_LEVELS = frozenset({"transformer", "titans", "delta"})
_MEMORIES: dict[str, dict[str, Any]] = {
    "titans": {
        "memory": "mlp",
        "dgd_scope": "none",
        "adaptive": (),
        "self_targets": False,
        "has_momentum": True,
    },
    # With the dot product as the loss, the decay along the key is the whole of the delta rule, at any chunk size.
    "delta": {
        "objective": "dot",
        "reads": "current",
        "adaptive": (),
        "self_targets": False,
        "is_residual": False,
    },
}
"""What sets a family's memories apart from the paper's own, which are the defaults of TitansSpec."""


def family_config(
    family: str,
    model: ModelConfig,
    window: WindowSpec | None = None,
    chunk_size: int = 64,
    titans: Mapping[str, Any] | None = None,
    levels: tuple[LevelSpec, ...] = (),
    cms: CmsForm = "independent",
) -> HopeConfig:
    """Return the config of a family for a network's sizes.

    titans: fields of TitansSpec that differ from the family's. In `hope-attention` and `retrofit` naming any makes a
    gated branch beside attention. `blocks` are all by default, heads and their size those of the network.
    Raises SettingsError for an unknown family or field, and for what the family does not have.
    """
    if family not in FAMILY_NAMES:
        raise SettingsError(f"there is no family {family!r}; there are: {', '.join(FAMILY_NAMES)}")
    if levels and family in _WITHOUT_LEVELS:
        raise SettingsError(f"the family {family!r} has no levels; use hope, hope-attention or retrofit")
    return HopeConfig(
        model=model,
        window=window or WindowSpec(),
        levels=levels,
        chunk_size=chunk_size,
        titans=_titans(family, model, titans or {}),
        cms=cms,
    )


def retrofitted(base: Params, config: HopeConfig, seed: int) -> Params:
    """Return a pretrained network's slow weights with fresh Titans branches where `config` has them, closed.

    With its branches closed and every level's lr 0, the network computes exactly what it did.
    Raises SettingsError where `config` has Titans in place of attention: nothing pretrained could stay.
    """
    titans = config.titans
    if titans is None:
        return base
    if not titans.beside_attention:
        raise SettingsError("a pretrained network keeps its attention; set titans.beside_attention, or train `hope`")
    generator = torch.Generator().manual_seed(seed)
    blocks = list(base.blocks)
    for index in titans.blocks:
        drawn = random_titans(titans, config.model.hidden_size, generator)
        layer = drawn.replaced({name: tensor.to(base.dtype) for name, tensor in drawn.named().items()})
        blocks[index] = replace(blocks[index], titans=layer)
    return replace(base, blocks=tuple(blocks))


def _titans(family: str, model: ModelConfig, changes: Mapping[str, Any]) -> TitansSpec | None:
    known = {field.name for field in fields(TitansSpec)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise SettingsError(f"titans: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    beside = family in _ATTENTION
    if beside and not changes:
        return None
    if family == "transformer":
        raise SettingsError("the family 'transformer' has no titans; use hope-attention or retrofit")
    if changes.get("beside_attention", beside) != beside:
        raise SettingsError(
            f"titans: the family {family!r} has Titans {'beside' if beside else 'instead of'} attention"
        )
    default = TitansSpec(
        tuple(range(model.num_layers)),
        model.num_heads,
        model.head_dim,
        beside_attention=beside,
        **_MEMORIES.get(family, {}),
    )
    return replace(default, **changes)
