"""The memory levels a model is served with: the default for any depth, or a file of the operator's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import yaml

from hope_server.errors import SettingsError
from hope_server.model.config import BlockKind, LevelSpec, ModelConfig, Rule, Schedule

CHUNK_SIZE = 64
STUDY_LR = 0.024
"""Of a whitened level: Muon makes of it steps of spectral norm 0.19 in whitened keys, at the default model's size."""
STUDY_NORM_CAP = 400.0
STUDY_GATE = 0.9
"""Of a whitened level: share of stored prose at which it keeps silent; about 0.95 of other texts."""


def whitened_levels(blocks: tuple[int, ...], model: ModelConfig, block: int) -> tuple[LevelSpec, ...]:
    """Two levels for a network whose keys are known of some `blocks` (measured in docs/LOG.md).

    Those blocks learn by study, in whitened keys; the last two learn online, a little. block: tokens in a consolidation
    block.
    """
    last = max(blocks) + 1
    fast = LevelSpec(
        "fast",
        tuple(range(max(last, model.num_layers - 2), model.num_layers)),
        rank=4,
        schedule="online",
        update_period=CHUNK_SIZE,
        rule="adam",
        lr=1e-3,
        norm_cap=8.0,
    )
    slow = LevelSpec(
        "slow",
        blocks,
        "dense",
        update_period=block,
        rule="muon",
        lr=STUDY_LR,
        betas=(0.0, 0.0),
        norm_cap=STUDY_NORM_CAP,
        is_whitened=True,
        gate=STUDY_GATE,
    )
    return (fast, slow) if fast.blocks else (slow,)


def default_levels(model: ModelConfig, block: int, chunk_size: int = CHUNK_SIZE) -> tuple[LevelSpec, ...]:
    """Two levels (measured in docs/LOG.md): the last blocks learn online, the middle ones by consolidation.

    block: tokens in a consolidation block; chunk_size: in an online chunk. On 30 blocks these are 26-29 and 4-25.
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
        update_period=chunk_size * max(1, CHUNK_SIZE // chunk_size),
        rule="adam",
        lr=1e-3,
        norm_cap=8.0,
    )
    return (fast, slow)


def choose_levels(
    name: str, model: ModelConfig, block: int, chunk_size: int = CHUNK_SIZE, known: tuple[int, ...] = ()
) -> tuple[LevelSpec, ...]:
    """`default`, `off`, or the path of a YAML or JSON list of levels. known: blocks with key statistics.

    Raises SettingsError.
    """
    if name == "default":
        return whitened_levels(known, model, block) if known else default_levels(model, block, chunk_size)
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
    unknown = sorted(str(key) for key in set(entry) - set(known))
    if unknown:
        raise SettingsError(f"levels: {where} has unknown keys {unknown}; known are {', '.join(known)}")
    if "name" not in entry or "blocks" not in entry:
        raise SettingsError(f"levels: {where} has a level without name or blocks")
    values = {}
    for key, value in entry.items():
        try:
            values[key] = _READERS[key](value)
        except (TypeError, ValueError) as exc:
            raise SettingsError(f"levels: {where}: {key} cannot be {str(value)[:40]!r}; {_EXPECTED[key]}") from exc
    return LevelSpec(**values)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _number(value: object) -> float:
    # YAML 1.1 reads 2e-3, which has no point, as text.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _blocks(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_whole(item) for item in value)


def _betas(value: object) -> tuple[float, float]:
    if not isinstance(value, list):
        raise TypeError
    first, second = (_number(item) for item in value)
    return first, second


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError
        return _text(value)

    return read


_READERS: dict[str, Callable[[object], Any]] = {
    "name": _text,
    "blocks": _blocks,
    "kind": _one_of(*get_args(BlockKind)),
    "rank": _whole,
    "schedule": _one_of(*get_args(Schedule)),
    "update_period": _whole,
    "rule": _one_of(*get_args(Rule)),
    "lr": _number,
    "betas": _betas,
    "norm_cap": _number,
    "max_update_norm": _number,
    "share": _number,
    "is_whitened": _flag,
    "gate": _number,
}
_EXPECTED = {
    "name": "it is a word",
    "blocks": "it is a list of block numbers",
    "kind": f"it is one of {', '.join(get_args(BlockKind))}",
    "rank": "it is a whole number",
    "schedule": f"it is one of {', '.join(get_args(Schedule))}",
    "update_period": "it is a whole number of tokens",
    "rule": f"it is one of {', '.join(get_args(Rule))}",
    "lr": "it is a finite number",
    "betas": "it is a list of two numbers",
    "norm_cap": "it is a finite number",
    "max_update_norm": "it is a finite number",
    "share": "it is a finite number",
    "is_whitened": "it is true or false",
    "gate": "it is a finite number",
}
