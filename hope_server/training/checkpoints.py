"""Keeps a training run on disk so that it goes on bit for bit: weights, optimizer, random states, step and recipe.

A checkpoint is a folder `step-00000100` with safetensors files and one JSON file; it is complete or not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hope_server.errors import CheckpointError, SettingsError
from hope_server.model.model_cache import sync_path
from hope_server.training.recipe import Recipe, decisive, differing_keys

__all__ = ["Checkpoint", "Progress", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1
_WEIGHTS, _OPTIMIZER, _RANDOM, _FACTS = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "run.json"
_FOLDER = re.compile(r"step-(\d{8})")
_MAX_SHOWN = 8


@dataclass(slots=True)
class Progress:
    """Where a run is. step: updates made; num_tokens: tokens read."""

    step: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run goes on from. generators: states of random generators by name."""

    path: Path
    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    generators: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, Tensor],
    recipe: Recipe,
    seed: int,
) -> Path:
    """Write a checkpoint into `folder`, remove all but the newest `keep_checkpoints`, and return its path.

    Raises CheckpointError when it cannot be written; what was there stays.
    """
    target = folder / f"step-{progress.step:08d}"
    scratch = folder / f".{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        arrays, plain = _flatten(optimizer.state_dict())
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch / _WEIGHTS)
        save_file(arrays, scratch / _OPTIMIZER)
        save_file(dict(generators), scratch / _RANDOM)
        facts = {
            "format": _FORMAT,
            "seed": seed,
            "recipe": decisive(recipe),
            "step": progress.step,
            "num_tokens": progress.num_tokens,
            "optimizer": plain,
        }
        (scratch / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        for name in (_WEIGHTS, _OPTIMIZER, _RANDOM, _FACTS, "."):
            sync_path(scratch / name)
        # A run that was resumed may come past a step again.
        shutil.rmtree(target, ignore_errors=True)
        os.rename(scratch, target)
        sync_path(folder)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"checkpoint {target} cannot be written ({exc}); free some space, then resume") from exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for path in _checkpoints(folder)[: -recipe.keep_checkpoints]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, None where there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, recipe: Recipe, seed: int) -> Checkpoint:
    """Return a checkpoint of this recipe and seed.

    Raises SettingsError when it is of another recipe, naming the keys that differ, or of another seed;
    CheckpointError when it is damaged.
    """
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise CheckpointError(f"{path} has format {facts['format']}, this version reads {_FORMAT}; start a new run")
        _refuse_another(facts, recipe, seed, path)
        return Checkpoint(
            path,
            Progress(facts["step"], facts["num_tokens"]),
            load_file(path / _WEIGHTS),
            _unflatten(facts["optimizer"], load_file(path / _OPTIMIZER)),
            load_file(path / _RANDOM),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise CheckpointError(f"checkpoint {path} is damaged ({reason}); delete it and resume again") from exc


def _refuse_another(facts: dict[str, Any], recipe: Recipe, seed: int, path: Path) -> None:
    different = differing_keys(facts["recipe"], decisive(recipe))
    if different:
        shown = ", ".join(different[:_MAX_SHOWN]) + (" …" if len(different) > _MAX_SHOWN else "")
        raise SettingsError(
            f"{path} was trained with another recipe: {shown} differ; restore them, or start anew in another folder"
        )
    if facts["seed"] != seed:
        raise SettingsError(f"{path} is a run of seed {facts['seed']}, not {seed}; give --seed {facts['seed']}")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _FOLDER.fullmatch(path.name) and (path / _FACTS).is_file())


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors by `parameter.name` and what is left, as plain values."""
    arrays: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        plain[str(index)] = {}
        for name, value in entry.items():
            if isinstance(value, Tensor):
                arrays[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain[str(index)][name] = value
    return arrays, {"state": plain, "param_groups": state["param_groups"]}


def _unflatten(plain: dict[str, Any], arrays: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in plain["state"].items()}
    for key, tensor in arrays.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": plain["param_groups"]}
