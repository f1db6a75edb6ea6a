"""The memory levels a model is served with: the default for any depth, or a file of the operator's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from hope_server.errors import SettingsError
from hope_server.model.config import LevelSpec, ModelConfig

CHUNK_SIZE = 64


def default_levels(model: ModelConfig, block: int) -> tuple[LevelSpec, ...]:
    """Two levels (measured in docs/LOG.md): the last blocks learn online, the middle ones by consolidation.

    block: tokens in a consolidation block. On 30 blocks these are 26-29 and 4-25.
    """
    depth = model.num_layers
    first, last = depth * 4 // 30, max(depth * 4 // 30 + 1, depth * 26 // 30)
    slow = LevelSpec("slow", tuple(range(first, last)), rank=16, update_period=block)
    if last >= depth:
        return (slow,)
    fast = LevelSpec(
        "fast",
        tuple(range(last, depth)),
        rank=8,
        schedule="online",
        update_period=CHUNK_SIZE,
        rule="adam",
        lr=1e-4,
        norm_cap=8.0,
    )
    return (fast, slow)


def choose_levels(name: str, model: ModelConfig, block: int) -> tuple[LevelSpec, ...]:
    """`default`, `off`, or the path of a YAML or JSON list of levels. Raises SettingsError."""
    if name == "default":
        return default_levels(model, block)
    if name == "off":
        return ()
    path = Path(name)
    if not path.is_file():
        raise SettingsError(f"levels: {name!r} is neither `default`, `off` nor a file")
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise SettingsError(f"levels: {path.name} cannot be read as YAML or JSON") from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError(f"levels: {path.name} must be a list of levels")
    return tuple(_parse_level(entry, path.name) for entry in entries)


def _parse_level(entry: dict[str, Any], where: str) -> LevelSpec:
    known = [field.name for field in fields(LevelSpec)]
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise SettingsError(f"levels: {where} has unknown keys {unknown}; known are {', '.join(known)}")
    values = dict(entry)
    try:
        values["blocks"] = tuple(int(block) for block in values["blocks"])
        if "betas" in values:
            first, second = values["betas"]
            values["betas"] = (float(first), float(second))
        spec = LevelSpec(**values)
        numbers = (
            spec.rank + 0,
            spec.lr + 0.0,
            spec.update_period + 0,
            spec.norm_cap + 0.0,
            spec.max_update_norm + 0.0,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise SettingsError(
            f"levels: {where} has a level without name or blocks, or with a value of the wrong type"
        ) from exc
    if spec.kind not in ("low_rank", "dense", "residual") or spec.schedule not in ("online", "consolidation"):
        raise SettingsError(
            f"levels: {where}: kind is low_rank, dense or residual; schedule is online or consolidation"
        )
    if spec.rule not in ("sgd", "momentum", "adam") or not all(number == number for number in numbers):
        raise SettingsError(f"levels: {where}: rule is sgd, momentum or adam, and numbers must be finite")
    return spec
