"""Small trained weights, shipped with the package so that `--quick` measures models that were trained for long."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.evaluation.outcome import Facts

__all__ = ["FOLDER", "MAX_BYTES", "Shipped", "keep_weights", "load_weights", "weights_path"]

FOLDER = Path(__file__).parent / "weights"
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Shipped:
    """Trained tensors by name and how they came to be: settings of their cell, seed, updates."""

    tensors: dict[str, torch.Tensor]
    facts: Facts


def weights_path(folder: Path, task: str, part: str, column: str) -> Path:
    """Return the file of a cell's weights."""
    return folder / task / f"{_slug(part)}-{_slug(column)}.safetensors"


def keep_weights(path: Path, tensors: dict[str, torch.Tensor], facts: Facts) -> bool:
    """Write tensors as float32, or as bfloat16 where that is needed to stay below MAX_BYTES.

    Returns false, and writes nothing, when they are too large even so.
    """
    count = sum(tensor.numel() for tensor in tensors.values())
    dtype = torch.float32 if 4 * count < MAX_BYTES * 0.95 else torch.bfloat16
    if count * dtype.itemsize >= MAX_BYTES * 0.95:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"facts": json.dumps(facts, sort_keys=True, default=str)})
    return True


def load_weights(path: Path) -> Shipped:
    """Read shipped weights as float32. Raises CheckpointError when the file cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as exc:
        raise CheckpointError(f"the shipped weights {path.name} cannot be read ({exc}); run without --quick") from exc
    return Shipped(tensors, facts)


def fill(tensors: dict[str, torch.Tensor], shipped: Shipped, name: str) -> None:
    """Copy shipped weights into the leaves `tensors`. Raises CheckpointError when names or shapes differ."""
    wanted = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found = {key: tuple(tensor.shape) for key, tensor in shipped.tensors.items()}
    if wanted != found:
        odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise CheckpointError(f"the shipped weights of {name} do not fit this version ({odd[0]}); run without --quick")
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(shipped.tensors[key])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "all"
